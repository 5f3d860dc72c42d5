"""How fast a dataset is written, against the bare simulator: `python -m benchmarks.datagen [--key=value …]`.

`coinrun_random` at its real settings, but for fewer `--n_instances`, is written below `--root_dpath` (and deleted
again); then as many processes step the same levels with the same buttons and keep nothing. The two take turns; the
fastest turn of each counts, for what else the machine does. Other keys are those of `data_generation/generate.py`.

The bare simulator is Procgen's gym3 interface at its fastest for one game per process (stepped by the thread that asks;
with Procgen's default of four threads, given as well, it reaches a third): a new simulator per level, then `act` and
`observe` until the episode ends. The seconds of the generator count from the first level played to the last shard on
the disk, synchronised; what a command does once (starting Python, loading pictures, playing a few levels to tell the
size) is a figure of its own. `cpu_ratio` compares the processor time per frame: the ratio where nobody else is at work
and no disk is waited for. `disk_rate` is what the disk takes (frames/s), written by one process alone in the same way
and synchronised: where the bare simulator is faster than that, the disk limits.
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
from data.direct_file import DirectFile, room
from data_generation.composition import parse
from data_generation.environment import procgen
from data_generation.generate import DEFAULT_CONFIG, read_settings
from data_generation.settings import Settings
from data_generation.shards import generate, plan

NUM_TURNS = 5
DISK_BYTES = 1 << 28  # written to the disk alone, in pieces as large as a typical episode
DISK_PIECE = 1 << 22
# Half of the usual shard, so that no process waits long for the last one of a turn.
DEFAULTS = {"n_instances": "400", "episodes_per_shard": "25", "root_dpath": "data_generation/datasets"}


class Turn(NamedTuple):
    num_frames: int
    seconds: float
    cpu_seconds: float
    seconds_in_all: float  # with what is done once per command

    @property
    def rate(self) -> float:
        return self.num_frames / self.seconds


def main(words: list[str]) -> None:
    config, overrides = parse(words, DEFAULT_CONFIG)
    if config in ("--help", "--list"):
        print(__doc__)
        return
    overrides = DEFAULTS | overrides
    Path(overrides["root_dpath"]).mkdir(parents=True, exist_ok=True)
    made, bare, disk = [], [], []
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=overrides["root_dpath"]) as folder:
        settings = read_settings(config, overrides | {"root_dpath": folder})
        for _ in range(NUM_TURNS):
            made.append(generated(settings))
            bare.append(stepped(settings, num_threads=0))
            disk.append(taken_by_disk(Path(folder)) / (settings.image_size**2 * 3))
    as_documented = stepped(settings, num_threads=4)
    assert len({turn.num_frames for turn in [*made, *bare, as_documented]}) == 1, (made, bare, as_documented)
    result = report(settings, made, bare, as_documented, max(disk))
    print(json.dumps(result | {"machine": machine.describe()}))


def generated(settings: Settings) -> Turn:
    began = time.perf_counter()
    counts = generate(settings).counts
    in_all = time.perf_counter() - began
    shutil.rmtree(settings.folder)
    return Turn(*counts, in_all)


def taken_by_disk(folder: Path) -> float:
    """Bytes per second that are on the disk at the end, written in the way in which shards are."""
    data = room(DISK_PIECE, 0)
    data[:] = np.random.default_rng(0).integers(0, 256, data.size, np.uint8)
    began = time.perf_counter()
    file = DirectFile(folder / "disk")
    for place in range(0, DISK_BYTES, DISK_PIECE):
        file.write(data, place)
    file.synchronise()
    file.close()
    seconds = time.perf_counter() - began
    (folder / "disk").unlink()
    return DISK_BYTES / seconds


def stepped(settings: Settings, num_threads: int) -> Turn:
    """The same shards, dealt out in the same way to as many processes that were started and warmed up before."""
    context = multiprocessing.get_context("spawn")
    arguments = (settings, num_threads, context.Barrier(settings.n_workers))
    work = [(shard.levels, [chosen_buttons(settings, level) for level in shard.levels]) for shard in plan(settings)]
    in_all = time.perf_counter()
    with ProcessPoolExecutor(settings.n_workers, context, initializer=_get_ready, initargs=arguments) as pool:
        list(pool.map(_wait, range(settings.n_workers)))
        began = time.perf_counter()
        num_frames, cpu_seconds = zip(*pool.map(_step, *zip(*work, strict=True)), strict=True)
        ended = time.perf_counter()
    return Turn(sum(num_frames), ended - began, sum(cpu_seconds), ended - in_all)


def chosen_buttons(settings: Settings, level: int) -> np.ndarray:
    """What the policy presses at each step of a level, as the simulator takes it: (steps, 1) int32."""
    policy = settings.policy()
    policy.start([level])
    return settings.simulated.buttons[policy.act([], np.ones(1, bool))]


def _get_ready(settings: Settings, num_threads: int, everyone: "multiprocessing.synchronize.Barrier") -> None:
    global _game, _num_threads, _everyone
    _game, _num_threads, _everyone = settings.simulated, num_threads, everyone
    _step([settings.level_offset], [chosen_buttons(settings, settings.level_offset)])


def _wait(number: int) -> None:
    _everyone.wait()


def _step(levels: Sequence[int], buttons: Sequence[np.ndarray]) -> tuple[int, float]:
    """Frames shown by these levels, and processor seconds."""
    num_frames, began = 0, time.process_time()
    for level, pressed in zip(levels, buttons, strict=True):
        simulator = procgen().ProcgenGym3Env(
            num=1,
            env_name=_game.game,
            distribution_mode=_game.distribution_mode,
            use_backgrounds=_game.use_backgrounds,
            restrict_themes=_game.restrict_themes,
            paint_vel_info=_game.paint_vel_info,
            num_levels=1,
            start_level=level,
            rand_seed=0,
            num_threads=_num_threads,
        )
        for button in pressed:
            simulator.act(button)
            num_frames += 1
            if simulator.observe()[2][0]:
                break
        simulator.close()
    return num_frames, time.process_time() - began


def report(settings: Settings, made: list[Turn], bare: list[Turn], as_documented: Turn, disk_rate: float) -> dict:
    """Print the table; the result without the machine."""
    rate, reference = max(turn.rate for turn in made), max(turn.rate for turn in bare)
    cpu = [min(turn.cpu_seconds for turn in turns) / made[0].num_frames for turns in (made, bare)]
    in_all = max(turn.num_frames / turn.seconds_in_all for turn in made)
    print(
        f"{settings.game}: {made[0].num_frames:,} frames of {settings.n_instances} levels, {settings.n_workers} "
        f"processes, the fastest of {NUM_TURNS} turns"
    )
    for way, value, processor in (
        ("written", rate, f"{1e6 * cpu[0]:8.1f} µs of a processor per frame"),
        ("bare simulator", reference, f"{1e6 * cpu[1]:8.1f}"),
        ("bare simulator, four threads", as_documented.rate, ""),
        ("written, from the command on", in_all, ""),
        ("the disk alone", disk_rate, f"{disk_rate * settings.image_size**2 * 3 / 1e6:8,.0f} MB/s"),
    ):
        print(f"  {way:30}{value:10,.0f} frames/s {processor}")
    print(f"  {'ratio':30}{rate / reference:10.3f} {cpu[1] / cpu[0]:17.3f} by processor time")
    limit = "disk" if settings.compression is None and disk_rate < reference else "processor"
    print(f"  limited by the {limit}")
    return {
        "name": "datagen",
        "value": round(rate),
        "unit": "frames/s",
        "reference": round(reference),
        "ratio": round(rate / reference, 3),
        "cpu_ratio": round(cpu[1] / cpu[0], 3),
        "rates": [round(turn.rate) for turn in made],
        "reference_rates": [round(turn.rate) for turn in bare],
        "reference_with_default_threads": round(as_documented.rate),
        "disk_rate": round(disk_rate),
        "limit": limit,
        "rate_with_start": round(in_all),
        "frames": made[0].num_frames,
        "processes": settings.n_workers,
        "compression": settings.compression,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
