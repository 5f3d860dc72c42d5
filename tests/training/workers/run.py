"""Started by tests in processes of their own (see `forked`): `main(ROOT, KIND, [key__sub=value …])`.

Trains a tiny model whose loss hangs on the process's own random numbers. What a test can set besides the config:
`slow=SECONDS` waits in every step, so that a test can strike in the middle; `slow_disk=SECONDS` before each fsync;
`stuck_step=N` waits for ever after the last forward pass of a step, on `stuck_rank` if that is given, and leaves the
file ROOT/stuck; `patience=SECONDS` is how long a step may go on after a signal.
"""

import os
import time
from collections import Counter
from pathlib import Path

import torch

from tests.training.workers.tiny import configure
from training import rescue
from training.objectives import one_loss
from training.trainer import train

FOR_EVER = 600.0


def own_settings(settings: dict[str, str]) -> dict[str, float]:
    names = ("slow", "stuck_step", "stuck_rank", "slow_disk", "patience")
    return {name: float(settings.pop(name)) for name in names if name in settings}


def make_objective(root: Path, own: dict[str, float], grad_accum: int):
    passes = Counter()

    def objective(parts, clip, step):
        for name, output in one_loss(parts, clip, step):
            loss = output.loss * (1 + 0.1 * torch.rand(()))
            time.sleep(own.get("slow", 0))
            passes[step] += 1
            is_stuck = step == own.get("stuck_step") and passes[step] == grad_accum
            if is_stuck and int(os.environ.get("RANK", 0)) == own.get("stuck_rank", 0):
                (root / "stuck").write_text(str(os.getpid()))
                time.sleep(FOR_EVER)
            yield name, output._replace(loss=loss)

    return objective


def slow_down_disk(seconds: float) -> None:
    fsync = os.fsync

    def slow_fsync(descriptor: int) -> None:
        time.sleep(seconds)
        fsync(descriptor)

    os.fsync = slow_fsync


def main(root: str, kind: str, *words: str) -> None:
    settings = dict(word.split("=", 1) for word in words)
    own = own_settings(settings)
    rescue.PATIENCE_SECONDS = own.get("patience", rescue.PATIENCE_SECONDS)
    if "slow_disk" in own:
        slow_down_disk(own["slow_disk"])
    cfg = configure(kind, Path(root), **settings)
    train(cfg, objective=make_objective(Path(root), own, cfg.train.grad_accum))
