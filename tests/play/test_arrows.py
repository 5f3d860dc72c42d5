"""Keys by the names of actions."""

import pytest

from data_generation.environment import COINRUN_ACTIONS, PROCGEN_BUTTONS
from play.arrows import bindings, keys_of


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("RIGHT_JUMP", "ArrowRight+ArrowUp"),
        ("jump + right", "ArrowRight+ArrowUp"),
        ("LEFT_DOWN", "ArrowLeft+ArrowDown"),
        ("Up 2", "ArrowUp"),
        ("NOOP", ""),
        ("fly left", None),
        ("D", None),
        ("", None),
        ("3", None),
    ],
)
def test_a_name_says_which_arrows_it_is_pressed_with(name, keys):
    assert keys_of(name) == keys


def test_every_action_of_coinrun_has_keys_and_of_procgen_the_moves():
    assert bindings(COINRUN_ACTIONS, range(7)) == {
        "": 0,
        "ArrowRight": 1,
        "ArrowLeft": 2,
        "ArrowUp": 3,
        "ArrowRight+ArrowUp": 4,
        "ArrowLeft+ArrowUp": 5,
        "ArrowDown": 6,
    }
    assert len(bindings(PROCGEN_BUTTONS, range(15))) == 9


def test_of_two_actions_with_the_same_keys_the_first_is_pressed():
    assert bindings(["up", "JUMP", "shout"], [4, 2, 0]) == {"ArrowUp": 4}
