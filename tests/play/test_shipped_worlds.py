"""The two small worlds that come with Lamp: a fresh checkout can play them, and they have learned something."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data_generation.environment import Level
from data_generation.generate import read_settings
from models.interfaces import Sampling
from play.library import Library
from play.player import to_picture
from play.reality import game_of, psnr
from training.settings import PlaySettings

ROOT = Path(__file__).resolve().parents[2]
LEVELS = range(10000, 10008)  # of coinrun_plain_test: none was trained on
RIGHT, NUM_FRAMES = 1, 8


@pytest.fixture(scope="module")
def library() -> Library:
    settings = OmegaConf.load(ROOT / "configs" / "play" / "default.yaml")
    settings.roots = [str(ROOT / "assets")]
    return Library(PlaySettings.from_config(settings), torch.device("cpu"))


def test_a_fresh_checkout_offers_a_guided_and_a_latent_world(library):
    guided, latent = library.scan()
    assert (guided.name, latent.name) == ("worlds/coinrun_guided", "worlds/coinrun_latent")
    assert (guided.is_latent, guided.num_actions, latent.is_latent, latent.num_actions) == (False, 7, True, 8)
    for entry in (guided, latent):
        assert entry.modified == 0, "worlds of one's own are newer, and so shown before"
        assert entry.window == 8 and entry.dataset == ("data_generation/datasets", "coinrun_plain_test")
        assert library.load(entry).image_size == (64, 64)


def test_the_guided_one_foretells_levels_it_never_saw_better_than_a_still_picture(library):
    game = game_of({"generator": {"config": vars(read_settings("coinrun_quickstart_test", {}))}})
    truth = np.empty((len(LEVELS), 1 + NUM_FRAMES, *game.picture_shape), np.uint8)
    for frames, number in zip(truth, LEVELS, strict=True):
        level = Level(game, number)
        level.play([RIGHT] * NUM_FRAMES, frames)
        frames[-1] = level.frame
    entry = next(entry for entry in library.scan() if not entry.is_latent)
    given = torch.from_numpy(truth[:, :1]).permute(0, 1, 4, 2, 3).float() / 255
    seeds = torch.tensor(LEVELS)
    session = library.load(entry).start(given, sampling=Sampling(), seeds=seeds, window=entry.window)
    gains = []
    for step in range(1, NUM_FRAMES + 1):
        pictures = [to_picture(frame) for frame in session.step(torch.full((len(LEVELS),), RIGHT))]
        gains += [
            psnr(real[step], dream) - psnr(real[step], real[0]) for real, dream in zip(truth, pictures, strict=True)
        ]
    assert np.mean(gains) > 1, "dB over a still picture"
