"""Started by a test on two processes: `main(ROOT, NAME, …)` trains what `RUNS` says of each name, weights sharded."""

from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from torch.distributed.tensor import DTensor

from tests.training.workers import tiny
from training import compiling
from training.trainer import Trainer

COMMON = {"train__num_train_steps": 3, "train__validate_every": 3, "optimizer__max_grad_norm": 0.05}
COMMON |= {"train__batch_size": 2, "train__grad_accum": 2, "optimizer__kind": "constant"}
EXACT = COMMON | {"linear": True}
ADAMW = COMMON | {"train__ema_decay": 0.9, "train__save_model_every": 2}
RUNS = {
    "tokenizer": ("tokenizer", EXACT),
    "genie_redux": ("genie_redux_revived", EXACT),
    "compiled": ("genie_redux_guided", EXACT | {"train__compile": True, "train__gradient_checkpointing": True}),
    "bf16": ("genie_redux_guided", EXACT | {"train__mixed_precision": "bf16"}),
    "adamw": ("genie_redux_guided", ADAMW),
    "muon": ("tokenizer", COMMON | {"optimizer": "muon"}),
    "resumed": ("genie_redux_guided", ADAMW | {"name": "adamw-one", "train__resume_ckpt": "auto"}),
}


def train(root: Path, name: str) -> None:
    kind, settings = RUNS[name]
    run = Trainer(tiny.configure(kind, root, **({"name": name} | settings), train__sharding="fsdp"))
    weights = run.state.weights.values()
    assert all(isinstance(weight, DTensor) for weight in weights)
    share = sum(weight.to_local().numel() for weight in weights) / sum(weight.numel() for weight in weights)
    (root / f"{name}-share-{run.accelerator.process_index}.txt").write_text(str(share))
    run.accelerator.end_training = lambda: None  # it would close the process group that the next run needs
    run.run()
    if name in ("adamw", "muon"):
        step_that_does_nothing(run)
    AcceleratorState._reset_state()
    GradientState._reset_state()


def step_that_does_nothing(run: Trainer) -> None:
    """On a GPU the device decides (`FiniteGuard`); its way to say so must reach shares of weights as well."""
    optimizer, weights = run.state.parts["model"].optimizer.optimizer, list(run.state.weights.values())
    before = [weight.to_local().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.full_like(weight, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(weight.to_local(), value) for weight, value in zip(weights, before, strict=True))


def main(root: str, *names: str) -> None:
    compiling.BACKEND = "aot_eager"
    for name in names:
        train(Path(root), name)
    PartialState().destroy_process_group()
