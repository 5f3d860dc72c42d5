"""Started by torchrun in a test: `… zero ROOT NAME …` trains what `RUNS` says under each name, with DeepSpeed."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

from tests.training.workers import tiny
from training import accelerate_config, compiling
from training.objectives import one_loss
from training.trainer import Trainer

COMMON = {"train__num_train_steps": 3, "train__validate_every": 3, "optimizer__max_grad_norm": 0.05}
COMMON |= {"train__batch_size": 2, "train__grad_accum": 2, "optimizer__kind": "constant"}
EXACT = COMMON | {"linear": True}
ADAMW = COMMON | {"train__ema_decay": 0.9, "train__save_model_every": 2}
SKIP = EXACT | {"train__on_nonfinite": "skip"}
# name -> ZeRO stage, kind of model, settings
RUNS = {
    "stage_1": (1, "genie_redux_revived", EXACT),
    "stage_2": (2, "tokenizer_revived", EXACT),
    "compiled": (2, "tokenizer", EXACT | {"train__compile": True, "train__gradient_checkpointing": True}),
    "bf16": (1, "tokenizer", EXACT | {"train__mixed_precision": "bf16"}),
    "adamw": (1, "genie_redux_guided", ADAMW),
    "resumed": (2, "genie_redux_guided", ADAMW | {"name": "adamw-one", "train__resume_ckpt": "auto"}),
    "signalled": (1, "genie_redux_guided", ADAMW),
    "skip_1": (1, "noisy_line", SKIP),
    "skip_2": (2, "noisy_line", SKIP),
    "stop": (2, "noisy_line", EXACT),
}


def write_config(root: Path, stage: int) -> Path:
    """Stage 1 by the Accelerate config alone; stage 2 by a DeepSpeed file, with buckets smaller than a model."""
    own = "zero_stage: 1"
    if stage == 2:
        zero = {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 20_000}
        (root / "zero.json").write_text(json.dumps({"zero_optimization": zero, "gradient_clipping": "auto"}))
        own = "deepspeed_config_file: zero.json"
    fpath = root / f"zero-{stage}.yaml"
    fpath.write_text(f"distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  {own}\n")
    return fpath


def train(root: Path, name: str, **changes: object) -> None:
    """Train under one name, and leave behind what each process held."""
    stage, kind, settings = RUNS[name]
    os.environ[accelerate_config.VARIABLE] = str(write_config(root, stage))
    run = Trainer(tiny.configure(kind, root, **({"name": name} | settings | changes)), OBJECTIVES.get(name, one_loss))
    run.accelerator.end_training = lambda: None  # it would close the process group that the next one needs
    rank, message = run.accelerator.process_index, ""
    try:
        run.run()
    except (ValueError, SystemExit) as error:
        message = repr(error)
    AcceleratorState._reset_state()
    GradientState._reset_state()
    (root / f"{name}-{rank}.txt").write_text(f"after {run.state.step} updates: {message}")
    weights = {name: weight.detach().clone() for name, weight in run.state.weights.items()}
    torch.save(weights, root / f"{name}-{rank}.pt")
    held = sum(
        value.numel() for state in run.state.parts["model"].optimizer._own.state.values() for value in state.values()
    )
    (root / f"{name}-share-{rank}.txt").write_text(
        str(held / sum(value.numel() for value in run.state.weights.values()))
    )


def astray(value: float):
    """An objective with a loss that is not finite at step 1 in the second process; its gradient stays what it is."""

    def objective(parts, clip, step):
        for name, output in one_loss(parts, clip, step):
            is_bad = step == 1 and PartialState().process_index == 1
            yield name, output._replace(loss=output.loss + value if is_bad else output.loss)

    return objective


def signalled(parts, clip, step):
    """The second process gets SIGTERM in the middle of step 1."""
    if step == 1 and PartialState().process_index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    yield from one_loss(parts, clip, step)


OBJECTIVES = {
    "skip_1": astray(torch.inf),
    "skip_2": astray(torch.nan),
    "stop": astray(torch.inf),
    "signalled": signalled,
}


def main(root: Path, names: list[str]) -> None:
    compiling.BACKEND = "aot_eager"
    for name in names:
        train(root, name)
        if name == "signalled":
            own = root / f"{name}-{PartialState().process_index}.txt"
            own.rename(own.with_stem(f"{own.stem}-first"))
            OBJECTIVES.pop(name)
            train(root, name, train__resume_ckpt="auto")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
