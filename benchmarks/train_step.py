"""One training step at its real size: `python -m benchmarks.train_step --config=genie_redux_guided [--key=value …]`.

The same command on a CPU (fp32) and on a GPU (bf16 autocast, fused optimizer): seconds and frames per second of
forward, backward and update; the FLOPs that the step needs, and the FLOP/s reached against this machine's own matrix
multiplications of the model's largest layer, on a GPU also against large square ones and the vendor's data sheet; the
bytes that its operations move, against the rate of a copy; what memory goes to: weights, gradients, optimizer, tensors
kept for the backward pass (with and without gradient checkpointing), the peak of the first forward and backward and
the peak of everything; and how long the device waits for data. Clips come through the training loader from --dataset,
or from a small dataset that is generated first; --random_clip takes one clip that stays on the device instead.

Keys of the config can be set as in `run.sh`; `--train.batch_size`, `--train.num_frames` and
`--train.gradient_checkpointing=true` too. --batch=auto finds the largest batch that a GPU's memory holds. --compile
measures eager steps, then compiled ones. --profile lists the kernels that the time goes to. --small takes the
quickstart's sizes. `--steps=N` steps are timed after those that warm up: on a GPU the median counts, on a CPU, where
other programs may run on the same cores, the fastest (compare processor seconds there). `--list_kept` lists the kept
tensors by shape.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from itertools import repeat
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from benchmarks import kernels, kinds, memory, rates, step_inputs, step_report
from benchmarks.step_run import BATCH_SIZES, Run, Stepper, largest_that_fits, loss_of
from benchmarks.traffic import UNAVOIDABLE, Traffic
from data.clips import Clip
from training import optimizers
from training.compiling import compile_blocks
from training.flops import needed
from training.settings import ScheduleSettings
from training.setup import checkpoint_gradients

STEPS = {"cpu": 2, "cuda": 20}
# Steps that are not timed. Eager ones on a CPU need none: one step ran before them, and another takes half a minute.
WARM_UP = {("eager", "cpu"): 0, ("compiled", "cpu"): 1, ("eager", "cuda"): 3, ("compiled", "cuda"): 3}
TOKENS_PER_FRAME, MOST_TOKENS = 256, 2**18  # of the products that the machine's rate is measured with


def main(words: list[str]) -> None:
    arguments, words = parse(words)
    cfg = step_inputs.compose(arguments.config, words, small=arguments.small)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.batch == "auto" and device.type == "cpu":
        raise SystemExit("error: --batch=auto fills a GPU's memory and torch sees none; set --train.batch_size=N")
    with tempfile.TemporaryDirectory(prefix="lamp-train-step-") as scratch:
        dataset = arguments.dataset
        if dataset is None and not arguments.random_clip:
            dataset = step_inputs.generate(Path(scratch))
        measured = Measurement(cfg, arguments, dataset, device).measure()
    step_report.show(measured)
    print(json.dumps(step_report.result(measured)))


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=step_inputs.CONFIGS, required=True)
    parser.add_argument("--small", action="store_true", help="the quickstart's sizes")
    parser.add_argument("--steps", type=int, help="timed steps (2; on a GPU 20)")
    parser.add_argument("--batch", choices=("auto",), help="as many clips as the GPU's memory holds")
    parser.add_argument("--compile", action="store_true", help="compiled steps too, after the eager ones")
    parser.add_argument("--profile", action="store_true", help="which kernels the time goes to")
    parser.add_argument("--dataset", type=Path, help="folder of a dataset (default: a small one is generated)")
    parser.add_argument("--random_clip", action="store_true", help="one clip that stays on the device, no loader")
    parser.add_argument("--list_kept", action="store_true")
    return parser.parse_known_args(words)


# ------------------------------------------------------------------------------------------------------------ measuring


class Measurement:
    """A model, its optimizer and what was measured of them; `step_report` reads it."""

    def __init__(self, cfg: DictConfig, arguments: argparse.Namespace, dataset: Path | None, device: torch.device):
        self.cfg, self.arguments, self.dataset, self.device = cfg, arguments, dataset, device
        self.model = step_inputs.build(cfg, small=arguments.small).to(device).train()
        if cfg.train.gradient_checkpointing:
            checkpoint_gradients(self.model)
        schedule, node = ScheduleSettings.from_optimizer(cfg.optimizer)
        self.optimizer = optimizers.build(node, self.model)
        self.stepper = Stepper(self.model, self.optimizer, schedule.max_grad_norm or float("inf"), device)
        self.steps = STEPS[device.type] if arguments.steps is None else arguments.steps
        self.runs: dict[str, Run] = {}
        self.profiles: dict[str, kernels.Profile] = {}

    def measure(self) -> "Measurement":
        one = step_inputs.random_clip(self.cfg, self.device, batch_size=1)
        sizes = self.batch_sizes(one) if self.arguments.batch == "auto" else [self.cfg.train.batch_size]
        with Traffic() as self.traffic:  # of one clip; at the same time the warm-up
            first = self.stepper.run(repeat(one), 1)
        self.peak_forward_backward = first.peak_forward_backward  # the optimizer has no state yet
        self.flops = needed_flops(self.model, one, self.device)
        self.runs["eager"] = self.run("eager", sizes) if self.steps else first
        self.sizes = self.measure_sizes(one)
        if self.arguments.list_kept:
            is_checkpointed = self.cfg.train.gradient_checkpointing
            self.listed = kept_bytes(self.model, one, self.device, checkpointing=is_checkpointed)
        if self.arguments.compile:
            compile_blocks(self.model, self.device)
            eager = self.runs["eager"].batch_size
            self.runs["compiled"] = self.run("compiled", [size for size in sizes if size <= eager])
        tokens = self.runs["eager"].batch_size * self.cfg.train.num_frames * TOKENS_PER_FRAME
        self.matmul_rate = rates.matmul_rate(largest_layer(self.model), min(tokens, MOST_TOKENS), self.device)
        self.square_rate = rates.square_rate(self.device) if self.device.type == "cuda" else None
        self.copy_rate = rates.copy_rate(self.device)
        return self

    def batch_sizes(self, one: Clip) -> list[int]:
        """Those that a GPU's memory could hold, by what one clip keeps for the backward pass."""
        is_checkpointed = self.cfg.train.gradient_checkpointing
        kept = kept_bytes(self.model, one, self.device, checkpointing=is_checkpointed).total()
        memory_size = torch.cuda.get_device_properties(self.device).total_memory
        return [size for size in BATCH_SIZES if size * kept < memory_size] or [1]

    def run(self, way: str, sizes: list[int]) -> Run:
        """The timed steps, with the first of the batch sizes that fits."""
        found = []

        def attempt(size: int) -> None:
            batches = step_inputs.batches(self.cfg, self.dataset, self.device, batch_size=size)
            next(batches)  # the loader's own start is not timed
            warm_up = [self.stepper.run(batches, 1) for _ in range(WARM_UP[way, self.device.type])]
            run = self.stepper.run(batches, self.steps)
            found.append(run._replace(batch_size=size, warm_up=warm_up[0].steps[0].total if warm_up else None))
            if self.arguments.profile:
                clip = next(batches)
                self.profiles[way] = kernels.measure(lambda: self.stepper.step(clip), self.device)

        largest_that_fits(attempt, sizes)
        return found[-1]

    def measure_sizes(self, one: Clip) -> dict[str, int]:
        """Bytes that things take; what is kept for the backward pass is that of one clip."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        return {
            "weights": memory.tensor_bytes(self.model.parameters()),
            "gradients": memory.tensor_bytes(self.trainable),
            "optimizer": memory.tensor_bytes(filter(torch.is_tensor, state)),
            "kept": kept_bytes(self.model, one, self.device, checkpointing=False).total(),
            "kept_with_checkpointing": kept_bytes(self.model, one, self.device, checkpointing=True).total(),
            "peak_forward_backward": self.peak_forward_backward,
            "peak_memory": max(run.peak for run in self.runs.values()),
        }

    def bytes_moved(self, batch_size: int, *, fused: bool) -> int:
        """Bytes that a step moves; what the optimizer moves is the same for every batch."""
        of_clip = dict(self.traffic.bytes)
        of_step = of_clip.pop(kinds.OPTIMIZER, 0)
        return of_step + batch_size * sum(size for kind, size in of_clip.items() if not fused or kind in UNAVOIDABLE)

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def kept_bytes(model: nn.Module, clip: Clip, device: torch.device, *, checkpointing: bool) -> Counter:
    parts = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    before = [part.gradient_checkpointing for part in parts]
    for part in parts:
        part.gradient_checkpointing = checkpointing
    kept = memory.kept_for_backward(lambda: loss_of(model, clip, device), model)
    for part, value in zip(parts, before, strict=True):
        part.gradient_checkpointing = value
    return kept


def needed_flops(model: nn.Module, clip: Clip, device: torch.device) -> int:
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return needed(model, clip)


def largest_layer(model: nn.Module) -> nn.Linear:
    """The feed-forward layer that most of the FLOPs go through."""
    layers = [layer for name, layer in model.named_modules() if name.endswith("_ff.expand")]
    return max(layers, key=lambda layer: layer.weight.numel())


if __name__ == "__main__":
    main(sys.argv[1:])
