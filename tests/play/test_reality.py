"""The true game: it stays where its episode ended, and can be played back."""

import numpy as np
import pytest

from data.episodes import read_info
from play.reality import Reality, game_of, psnr
from tests.play.stage import LEVELS

DEADLY = 200  # steps to the right in which some level ends


@pytest.fixture(scope="module")
def game(root):
    return game_of(read_info(root / "levels", LEVELS))


def test_going_back_and_on_again_shows_the_same_pictures(game):
    reality = Reality(game, 10_001, (16, 16), max_rewind=6)
    pictures = [reality.picture]
    for action in (1, 1, 4, 4, 4, 3, 1, 1):
        reality.step(action)
        pictures.append(reality.picture)
    reality.rewind(6)
    assert np.array_equal(reality.picture, pictures[2])
    for number, action in enumerate((4, 4, 4, 3, 1, 1), 3):
        reality.step(action)
        assert np.array_equal(reality.picture, pictures[number])
    reality.reset()
    assert np.array_equal(reality.picture, pictures[0])
    reality.step(1)
    assert np.array_equal(reality.picture, pictures[1])
    reality.close()


def test_after_the_end_the_last_picture_stays_and_going_back_leads_before_it(game):
    for level in range(10_000, 10_020):
        reality = Reality(game, level, (16, 16), max_rewind=5)
        pictures = [reality.picture]
        while len(pictures) < DEADLY and not reality.is_over:
            reality.step(4)
            pictures.append(reality.picture)
        if reality.is_over:
            break
        reality.close()
    assert reality.is_over, "no level ended; the test needs one that does"
    assert np.array_equal(pictures[-1], pictures[-2])
    reality.step(1)
    reality.step(2)
    assert reality.is_over and np.array_equal(reality.picture, pictures[-1])
    reality.rewind(1)
    assert reality.is_over
    reality.rewind(3)
    assert not reality.is_over and np.array_equal(reality.picture, pictures[-3])
    for picture in pictures[-2:]:
        reality.step(4)
        assert np.array_equal(reality.picture, picture)
    assert reality.is_over
    reality.close()


def test_pictures_come_at_the_size_of_the_world(game):
    reality = Reality(game, 10_000, (12, 20), max_rewind=1)
    reality.step(1)
    assert reality.picture.shape == (12, 20, 3)
    reality.close()


def test_only_levels_of_coinrun_as_we_record_it_can_be_played(root):
    info = read_info(root / "levels", LEVELS)
    assert game_of(info).game == "coinrun"
    assert game_of({}) is None and game_of({"generator": {"config": {"action_set": "coinrun7"}}}) is None
    config = info["generator"]["config"]
    assert game_of({"generator": {"config": config | {"action_set": "procgen15"}}}) is None
    assert game_of({"generator": {"config": config | {"game": "chess"}}}) is None


def test_psnr_is_that_of_a_known_error():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black + 51) == pytest.approx(20 * np.log10(5)) and psnr(black, black) is None
