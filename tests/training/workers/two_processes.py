"""Started by a test on two processes: `main(ROOT, KIND, …, [key__sub=value …])`.

Trains each kind under its own name and writes every rank's weights; `one_bad_rank` lets rank 1's loss go astray, once
where that stops the training and once where it goes on; `from_one` goes on with a run of one process and writes every
rank's random state as it starts.
"""

from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

from tests.training.workers.tiny import configure
from training import checkpoint
from training.objectives import one_loss
from training.trainer import Trainer

KIND = "genie_redux_guided"


def train_kind(root: Path, kind: str, settings: dict[str, str]) -> None:
    run = Trainer(configure(kind, root, name=kind, **settings))
    run.accelerator.end_training = lambda: None  # it would close the process group that the next kind needs
    run.run()
    torch.save(dict(run.state.weights), root / f"{kind}-rank{run.accelerator.process_index}.pt")
    AcceleratorState._reset_state()
    GradientState._reset_state()


def go_on_from_one(root: Path, settings: dict[str, str]) -> None:
    resumed = {"name": "from-one", "train__resume_ckpt": root / "runs" / KIND / "one", "train__num_train_steps": 5}
    run = Trainer(configure(KIND, root, **settings | resumed))
    torch.save(checkpoint.random_state(), root / f"random-rank{run.accelerator.process_index}.pt")
    run.accelerator.end_training = lambda: None
    run.run()
    AcceleratorState._reset_state()
    GradientState._reset_state()


def train_with_one_bad_rank(root: Path, on_nonfinite: str) -> None:
    def objective(parts, clip, step):
        for name, output in one_loss(parts, clip, step):
            is_bad = step == 1 and PartialState().process_index == 1
            yield name, output._replace(loss=output.loss * (torch.nan if is_bad else 1))

    cfg = configure("noisy_line", root, name=on_nonfinite, train__on_nonfinite=on_nonfinite)
    run = Trainer(cfg, objective)
    run.accelerator.end_training = lambda: None
    rank, message = run.accelerator.process_index, "did not stop"
    try:
        run.run()
    except ValueError as error:
        message = str(error)
    assert all(torch.isfinite(value).all() for value in run.state.weights.values())
    (root / f"{on_nonfinite}-{rank}.txt").write_text(f"after {run.state.step} updates: {message}")
    torch.save(dict(run.state.weights), root / f"{on_nonfinite}-{rank}.pt")
    AcceleratorState._reset_state()
    GradientState._reset_state()


def main(root: str, *words: str) -> None:
    kinds = [word for word in words if "=" not in word]
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    if kinds == ["one_bad_rank"]:
        train_with_one_bad_rank(Path(root), "stop")
        train_with_one_bad_rank(Path(root), "skip")
    else:
        for kind in kinds:
            if kind == "from_one":
                go_on_from_one(Path(root), settings)
            else:
                train_kind(Path(root), kind, settings)
    PartialState().destroy_process_group()
