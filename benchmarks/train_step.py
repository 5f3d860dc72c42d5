"""One training step at its real size: `python -m benchmarks.train_step --config=genie_redux_guided [--key=value …]`.

Seconds and frames per second of forward, backward and update on random clips; the FLOPs that the step needs, and the
FLOP/s reached against this machine's own matrix multiplications of the model's largest layer; what memory goes to:
weights, gradients, optimizer, tensors kept for the backward pass (with and without gradient checkpointing), the peak
of the first forward and backward (the optimizer has no state yet) and the peak of everything.

Keys of the config can be set as in `run.sh`; `--train.batch_size`, `--train.num_frames` and
`--train.gradient_checkpointing=true` too. `--steps=N` steps are timed after one that warms up; the fastest counts.
`--list_kept` lists the kept tensors by shape. Where other programs run on the same cores, compare CPU seconds.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks import machine, memory
from data.clips import Clip
from models.genie_redux import WorldModel
from training import command_line, optimizers
from training.settings import ScheduleSettings
from training.setup import checkpoint_gradients

GIB = 2**30
# Forward and backward cost one and two products per weight; repeated work (checkpointing) is not needed work.
PASSES = 3


class Seconds(NamedTuple):
    forward: float
    backward: float
    update: float
    cpu: float  # of all three, over all threads

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.update


class Peaks(NamedTuple):
    forward_backward: int  # bytes
    update: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=("tokenizer", "genie_redux", "genie_redux_guided"), required=True)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--list_kept", action="store_true")
    arguments, words = parser.parse_known_args()
    one_clip = ["--train.batch_size=1", "--train.num_frames=16"]
    cfg = command_line.compose(command_line.parse([f"--config={arguments.config}", *one_clip, *words]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    model = build(cfg).to(device).train()
    if cfg.train.gradient_checkpointing:
        checkpoint_gradients(model)
    schedule, node = ScheduleSettings.from_optimizer(cfg.optimizer)
    optimizer = optimizers.build(node, model)
    clip = random_clip(cfg, device)
    limit = schedule.max_grad_norm or float("inf")

    runs = [measure_step(model, optimizer, clip, limit, device) for _ in range(1 + arguments.steps)]
    seconds = min((run[0] for run in runs[1:] or runs), key=lambda run: run.total)
    peaks = [run[1] for run in runs]
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = {
        "weights": memory.tensor_bytes(model.parameters()),
        "gradients": memory.tensor_bytes(trainable),
        "optimizer": memory.tensor_bytes(state),
        "kept": kept_bytes(model, clip, device, checkpointing=False).total(),
        "kept_with_checkpointing": kept_bytes(model, clip, device, checkpointing=True).total(),
        "peak_forward_backward": peaks[0].forward_backward,
        "peak_memory": max(max(peak) for peak in peaks),
    }
    flops = needed_flops(model, clip, device)
    rate = matmul_rate(largest_layer(model), clip, device)
    report(arguments.config, cfg, sum(parameter.numel() for parameter in trainable), seconds, flops, rate, sizes)
    if arguments.list_kept:
        listed = kept_bytes(model, clip, device, checkpointing=cfg.train.gradient_checkpointing)
        for shape, size in listed.most_common(20):
            print(f"  {size / 2**20:10.1f} MiB  {shape}")
    print(json.dumps(result(arguments.config, cfg, seconds, flops, rate, sizes)))


# ------------------------------------------------------------------------------------------------------------ measuring


def measure_step(
    model: nn.Module, optimizer: Optimizer, clip: Clip, limit: float, device: torch.device
) -> tuple[Seconds, Peaks]:
    memory.reset_peak(device)
    cpu_began = time.process_time()
    loss, forward = timed(lambda: loss_of(model, clip, device), device)
    _, backward = timed(loss.backward, device)
    forward_backward_peak = memory.peak(device)
    memory.reset_peak(device)

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    _, seconds = timed(update, device)
    cpu = time.process_time() - cpu_began
    return Seconds(forward, backward, seconds, cpu), Peaks(forward_backward_peak, memory.peak(device))


def loss_of(model: nn.Module, clip: Clip, device: torch.device) -> Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return model(clip, 0).loss


def timed(work: Callable, device: torch.device) -> tuple:
    synchronise(device)
    began = time.perf_counter()
    result = work()
    synchronise(device)
    return result, time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


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
    """FLOPs of the forward pass, and twice as many for the gradients of what is trained."""
    with torch.no_grad():
        total = count_flops(lambda: loss_of(model, clip, device))
        if not isinstance(model, WorldModel):
            return PASSES * total
        frozen = count_flops(lambda: model.tokenizer.encode(clip.frames))
    return PASSES * (total - frozen) + frozen


def count_flops(work: Callable) -> int:
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the counter does not know this one
    with FlopCounterMode(display=False, custom_mapping={fused: _attention_flops}) as counter:
        work()
    return counter.get_total_flops()


def _attention_flops(q_shape, k_shape, v_shape, *_, **__) -> int:
    return sdpa_flop_count(q_shape, k_shape, v_shape)


def largest_layer(model: nn.Module) -> nn.Linear:
    """The feed-forward layer that most of the FLOPs go through."""
    layers = [layer for name, layer in model.named_modules() if name.endswith("_ff.expand")]
    return max(layers, key=lambda layer: layer.weight.numel())


def matmul_rate(layer: nn.Linear, clip: Clip, device: torch.device) -> float:
    """FLOP/s of the machine in products of the layer's shape with all tokens of the clip, the best of ten."""
    tokens = clip.frames.shape[0] * clip.frames.shape[1] * 256
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(tokens, layer.in_features, device=device, dtype=dtype)
    weight = torch.randn(layer.out_features, layer.in_features, device=device, dtype=dtype)
    seconds = min(timed(lambda: x @ weight.T, device)[1] for _ in range(10))
    return 2 * tokens * weight.numel() / seconds


# ------------------------------------------------------------------------------------------------------------ inputs


def build(cfg: DictConfig) -> nn.Module:
    """The config's model with random weights; a world stands on a random tokenizer of the published size."""
    if cfg.model == "tokenizer":
        return instantiate(cfg.network, _convert_="all")
    tokenizer = command_line.compose(command_line.parse(["--config=tokenizer.yaml"]))
    return WorldModel(
        tokenizer=instantiate(tokenizer.network, _convert_="all"),
        actions=instantiate(cfg.actions, _convert_="all"),
        dynamics=instantiate(cfg.dynamics, _convert_="all"),
    )


def random_clip(cfg: DictConfig, device: torch.device) -> Clip:
    batch, length = cfg.train.batch_size, cfg.train.num_frames
    return Clip(
        frames=torch.rand(batch, length, cfg.data.channels, *cfg.data.image_size, device=device),
        actions=torch.randint(cfg.data.num_actions, (batch, length - 1), device=device),
        seeds=torch.arange(batch, device=device),
    )


# ------------------------------------------------------------------------------------------------------------ showing


def report(
    config: str, cfg: DictConfig, count: int, seconds: Seconds, flops: int, rate: float, sizes: dict[str, int]
) -> None:
    batch, length = cfg.train.batch_size, cfg.train.num_frames
    checkpointing = ", gradient checkpointing" if cfg.train.gradient_checkpointing else ""
    gib = {name: f"{size / GIB:10.2f} GiB" for name, size in sizes.items()}
    print(f"{config}: {count / 1e6:.1f}M trainable parameters, {batch} x {length} frames{checkpointing}")
    print(f"  step          {seconds.total:10.2f} s    {batch * length / seconds.total:.1f} frames/s")
    print(f"    forward     {seconds.forward:10.2f} s")
    print(f"    backward    {seconds.backward:10.2f} s")
    print(f"    update      {seconds.update:10.2f} s")
    print(f"    processor   {seconds.cpu:10.2f} s    over all threads")
    print(f"  needs         {flops / 1e12:10.2f} TFLOP")
    print(f"  reaches       {flops / seconds.total / 1e9:10.1f} GFLOP/s")
    print(f"  machine       {rate / 1e9:10.1f} GFLOP/s in matrix products of the largest layer")
    print(f"  weights       {gib['weights']}")
    print(f"  gradients     {gib['gradients']}")
    print(f"  optimizer     {gib['optimizer']}")
    print(f"  kept          {gib['kept']}  for the backward pass")
    print(f"                {gib['kept_with_checkpointing']}  with gradient checkpointing")
    print(f"  peak          {gib['peak_forward_backward']}  of the first forward and backward")
    print(f"                {gib['peak_memory']}  of all steps with their updates")


def result(config: str, cfg: DictConfig, seconds: Seconds, flops: int, rate: float, sizes: dict[str, int]) -> dict:
    frames = cfg.train.batch_size * cfg.train.num_frames
    return {
        "name": f"train_step.{config}",
        "value": round(flops / seconds.total / 1e9, 2),
        "unit": "GFLOP/s",
        "reference": round(rate / 1e9, 2),
        "ratio": round(flops / seconds.total / rate, 3),
        "seconds": round(seconds.total, 3),
        "seconds_of": {name: round(value, 3) for name, value in seconds._asdict().items()},
        "frames_per_second": round(frames / seconds.total, 2),
        "tflop": round(flops / 1e12, 3),
        "gradient_checkpointing": cfg.train.gradient_checkpointing,
        "gib": {name: round(size / GIB, 3) for name, size in sizes.items()},
        "peak_memory_gib": round(sizes["peak_memory"] / GIB, 2),
        "machine": machine.describe(),
    }


if __name__ == "__main__":
    main()
