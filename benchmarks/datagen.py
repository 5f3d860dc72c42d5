"""How fast a dataset is written, against the bare simulator: `python -m benchmarks.datagen [--key=value …]`.

In each round `coinrun_random` at its real settings is generated for further `--n_instances` levels below
`--root_dpath` (and deleted again), and as many processes step the same levels with the same buttons and keep nothing.
The two take turns, so that what else the machine does hits both. Other keys are those of `data_generation/generate.py`.

The bare simulator is Procgen's gym3 interface as its documentation uses it, at its fastest for one game per process (in
the thread that steps it): a new simulator per level, then `act` and `observe` until the episode ends. The seconds of
the generator count from the first level played to the last shard on the disk, synchronised; what a command does once
(starting Python, loading pictures, playing a few levels to tell the size) is a figure of its own.
"""

import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import machine
from data_generation.composition import parse
from data_generation.environment import procgen
from data_generation.generate import DEFAULT_CONFIG, read_settings
from data_generation.settings import Settings
from data_generation.shards import generate, plan

NUM_ROUNDS = 4
# Half of the usual shard, so that no process waits long for the last one of a round.
DEFAULTS = {"n_instances": "400", "episodes_per_shard": "25", "root_dpath": "data_generation/datasets"}


class Turn(NamedTuple):
    num_frames: int
    seconds: float
    seconds_in_all: float  # with what is done once per command

    @property
    def rate(self) -> float:
        return self.num_frames / self.seconds


def main(words: list[str]) -> None:
    config, overrides = parse(words, DEFAULT_CONFIG)
    overrides = DEFAULTS | overrides
    root = Path(overrides["root_dpath"])
    root.mkdir(parents=True, exist_ok=True)
    made, bare = [], []
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=root) as folder:
        for number in range(NUM_ROUNDS):
            offset = str(number * int(overrides["n_instances"]))
            settings = read_settings(config, overrides | {"root_dpath": folder, "level_offset": offset})
            if number % 2:
                made.append(generated(settings))
            bare.append(stepped(settings))
            if not number % 2:
                made.append(generated(settings))
            assert made[-1].num_frames == bare[-1].num_frames, (made[-1], bare[-1])
    result = report(made, bare, settings)
    print(json.dumps(result))


def generated(settings: Settings) -> Turn:
    began = time.perf_counter()
    summary = generate(settings)
    in_all = time.perf_counter() - began
    shutil.rmtree(settings.folder)
    return Turn(summary.num_frames, summary.seconds, in_all)


def stepped(settings: Settings) -> Turn:
    """The same shards, dealt out in the same way to as many processes that were started and warmed up before."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(settings.n_workers)
    in_all = time.perf_counter()
    with ProcessPoolExecutor(settings.n_workers, context, initializer=_get_ready, initargs=(settings, ready)) as pool:
        list(pool.map(_wait, range(settings.n_workers)))
        work = [(shard.levels, [chosen_buttons(settings, level) for level in shard.levels]) for shard in plan(settings)]
        began = time.perf_counter()
        num_frames = sum(pool.map(_step, *zip(*work, strict=True)))
        ended = time.perf_counter()
    return Turn(num_frames, ended - began, ended - in_all)


def chosen_buttons(settings: Settings, level: int) -> np.ndarray:
    """What the policy presses at each step of a level, as the simulator takes it: (steps, 1) int32."""
    policy = settings.policy()
    policy.start([level])
    actions = [policy.act([], np.ones(1, bool)) for _ in range(settings.n_steps_max)]
    return settings.simulated.buttons[np.stack(actions)]


def _get_ready(settings: Settings, ready: "multiprocessing.synchronize.Barrier") -> None:
    global _game, _ready
    _game, _ready = settings.simulated, ready
    _step([settings.level_offset], [chosen_buttons(settings, settings.level_offset)])


def _wait(number: int) -> None:
    _ready.wait()


def _step(levels: Sequence[int], buttons: Sequence[np.ndarray]) -> int:
    """Frames shown by these levels."""
    game, num_frames = _game, 0
    for level, pressed in zip(levels, buttons, strict=True):
        simulator = procgen().ProcgenGym3Env(
            num=1,
            env_name=game.game,
            distribution_mode=game.distribution_mode,
            use_backgrounds=game.use_backgrounds,
            restrict_themes=game.restrict_themes,
            paint_vel_info=game.paint_vel_info,
            num_levels=1,
            start_level=level,
            rand_seed=0,
            num_threads=0,
        )
        for button in pressed:
            simulator.act(button)
            num_frames += 1
            if simulator.observe()[2][0]:
                break
        simulator.close()
    return num_frames


def report(made: list[Turn], bare: list[Turn], settings: Settings) -> dict:
    """Print the table; the figures over all rounds, and the ratio of each."""
    rate, reference = _rate(made, "seconds"), _rate(bare, "seconds")
    in_all = _rate(made, "seconds_in_all")
    ratios = [one.rate / other.rate for one, other in zip(made, bare, strict=True)]
    frames = sum(turn.num_frames for turn in made)
    print(f"{settings.game}, {settings.n_workers} processes, {NUM_ROUNDS} rounds, {frames:,} frames")
    print(f"  {'written':32}{rate:10,.0f} frames/s {rate * settings.image_size**2 * 3 / 1e6:8,.0f} MB/s")
    print(f"  {'bare simulator':32}{reference:10,.0f} frames/s")
    print(f"  {'ratio':32}{rate / reference:10.3f}          of rounds {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
    print(f"  {'written, start of Python counted':32}{in_all:10,.0f} frames/s")
    return {
        "name": "datagen",
        "value": round(rate),
        "unit": "frames/s",
        "reference": round(reference),
        "ratio": round(rate / reference, 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "frames": frames,
        "processes": settings.n_workers,
        "compression": settings.compression,
        "frames_per_second_with_start": round(in_all),
        "machine": machine.describe(),
    }


def _rate(turns: list[Turn], field: str) -> float:
    return sum(turn.num_frames for turn in turns) / sum(getattr(turn, field) for turn in turns)


if __name__ == "__main__":
    main(sys.argv[1:])
