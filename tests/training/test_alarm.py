import pytest

from training.alarm import WATCHED, CollapseAlarm

ACTIONS = "train/actions_used"


def told(alarm: CollapseAlarm, values: dict[int, float]) -> list[int]:
    """The steps at which it said something."""
    return [step for step, value in values.items() if alarm.warnings(step, {ACTIONS: value})]


def test_a_collapse_is_told_once_after_it_has_lasted():
    assert told(CollapseAlarm(patience=100), {step: 1.2 for step in range(0, 1000, 50)}) == [100]


def test_a_short_dip_is_no_collapse():
    assert told(CollapseAlarm(100), {0: 1.2, 50: 1.2, 99: 1.6, 100: 1.2, 150: 1.2, 199: 1.2}) == []


def test_a_second_collapse_is_told_again():
    assert told(CollapseAlarm(10), {0: 1.0, 10: 1.0, 20: 3.0, 30: 1.0, 40: 1.0, 50: 1.0}) == [10, 40]


def test_healthy_codes_and_models_without_codes_are_silent():
    alarm = CollapseAlarm(0)
    assert alarm.warnings(5, {ACTIONS: 1.5, "train/codes_used": 400.0}) == []
    assert alarm.warnings(5, {"train/loss": 0.1}) == []


@pytest.mark.parametrize("name", WATCHED)
def test_a_warning_says_what_collapsed_since_when_and_what_to_try(name):
    alarm = CollapseAlarm(0)
    (line,) = alarm.warnings(7, {name: 1.04})
    what, advice = WATCHED[name]
    assert what in line and "1.04" in line and "step 7" in line and advice in line and "\n" not in line
