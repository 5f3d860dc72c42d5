"""One training step at its real size: `python -m benchmarks.train_step --config=genie_redux_guided [--key=value …]`.

Time and frames per second of forward, backward and update on random clips, peak memory, the FLOPs that the step needs
(counted on the operations that ran), and the FLOP/s reached against this machine's own matrix multiplications of the
model's largest layer. Keys of the config can be set as in `run.sh`; `--train.batch_size` and `--train.num_frames` too.
`--steps=N` steps are timed after one that warms up; the fastest counts.
"""

import argparse
import json
import resource
import time

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from data.clips import Clip
from models.genie_redux import WorldModel
from training import command_line, optimizers
from training.settings import ScheduleSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=("tokenizer", "genie_redux", "genie_redux_guided"), required=True)
    parser.add_argument("--steps", type=int, default=2)
    arguments, words = parser.parse_known_args()
    one_clip = ["--train.batch_size=1", "--train.num_frames=16"]
    cfg = command_line.compose(command_line.parse([f"--config={arguments.config}", *one_clip, *words]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    model = build(cfg).to(device).train()
    schedule, node = ScheduleSettings.from_optimizer(cfg.optimizer)
    optimizer = optimizers.build(node, model)
    clip = random_clip(cfg, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(clip, 0).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    flops = count_flops(counter)
    seconds = min(timed(step, device) for _ in range(arguments.steps))
    memory = peak_memory(device)
    rate = matmul_rate(largest_layer(model), clip, device)
    frames = clip.frames.shape[0] * clip.frames.shape[1]
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    batch, length = clip.frames.shape[:2]
    print(f"{arguments.config}: {count / 1e6:.1f}M trainable parameters, {batch} x {length} frames")
    print(f"  step          {seconds:10.2f} s   {frames / seconds:.1f} frames/s")
    print(f"  needs         {flops / 1e12:10.2f} TFLOP")
    print(f"  reaches       {flops / seconds / 1e9:10.1f} GFLOP/s")
    print(f"  machine       {rate / 1e9:10.1f} GFLOP/s in matrix products of the largest layer")
    print(f"  peak memory   {memory / 2**30:10.2f} GiB")
    result = {
        "name": f"train_step.{arguments.config}",
        "value": round(flops / seconds / 1e9, 2),
        "unit": "GFLOP/s",
        "reference": round(rate / 1e9, 2),
        "ratio": round(flops / seconds / rate, 3),
        "seconds": round(seconds, 3),
        "frames_per_second": round(frames / seconds, 2),
        "tflop": round(flops / 1e12, 3),
        "peak_memory_gib": round(memory / 2**30, 2),
        "machine": machine.describe(),
    }
    print(json.dumps(result))


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


def count_flops(counter: FlopCounterMode) -> int:
    """FLOPs of the operations that ran.

    The counter takes the backward pass of a depthwise convolution for that of a dense one, which is hundreds of times
    as much; it costs what two forward passes do.
    """
    counts = {str(operation): flops for operation, flops in counter.get_flop_counts()["Global"].items()}
    backward = counts.pop("aten.convolution_backward", 0)
    return sum(counts.values()) + (2 * counts.get("aten.convolution", 0) if backward else 0)


def random_clip(cfg: DictConfig, device: torch.device) -> Clip:
    batch, length = cfg.train.batch_size, cfg.train.num_frames
    return Clip(
        frames=torch.rand(batch, length, cfg.data.channels, *cfg.data.image_size, device=device),
        actions=torch.randint(cfg.data.num_actions, (batch, length - 1), device=device),
        seeds=torch.arange(batch, device=device),
    )


def timed(work, device: torch.device) -> float:
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: torch.device) -> int:
    """Bytes: what the GPU's allocator held at most, on a CPU what the whole process did."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
    seconds = min(timed(lambda: x @ weight.T, device) for _ in range(10))
    return 2 * tokens * weight.numel() / seconds


if __name__ == "__main__":
    main()
