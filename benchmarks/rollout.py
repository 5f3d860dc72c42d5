"""How fast a world dreams: `python -m benchmarks.rollout [--weights=RUN | --config=NAME] [--key=value …]`.

Without weights, a model of the config's size with random ones; keys are those of `run.sh`. Frames are dreamed one by
one, by a session that remembers the past and by full recomputation of the same `--window` latest frames, which must
give the same tokens. Milliseconds per frame (median, 99th percentile) and frames per second for each batch size, early
(frame 2) and late (frame 200): a session's cost does not grow. What a longer step costs that encodes its latest frames
anew, where the position table ends, is in the 99th percentile. Beside it: the time that the frame's matrix products
would take at the rate this machine multiplies with.

`--ways`: `session` (eager), `graphs` (by CUDA graphs), `compiled` (graphs of compiled blocks), `recomputed`. Without a
GPU those with graphs are left out. Several `--inference_steps` need `--dynamics.rule=in_place`.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import machine, rates, step_inputs, train_step
from models import graphs, pretrained
from models.graphs import FrameGraphs
from models.interfaces import Sampling
from models.session import Session
from training.flops import count

EARLY, LATE = 2, 200
SEED = 0
RECOMPUTED = "recomputed"
SESSIONS = {"session": None, "graphs": "plain", "compiled": "compiled"}  # the graphs that each takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="run folder, step folder or file of a world")
    parser.add_argument("--config", choices=("genie_redux", "genie_redux_guided"), default="genie_redux_guided")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--inference_steps", type=int, nargs="+", default=[1])
    parser.add_argument("--ways", nargs="+", choices=(*SESSIONS, RECOMPUTED), default=["session", "graphs", RECOMPUTED])
    parser.add_argument("--window", type=int, default=15, help="latest frames that attention over time reads")
    parser.add_argument("--samples", type=int, default=30, help="frames that are timed")
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, for the way to the late frame")
    arguments, words = parser.parse_known_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = load(arguments.weights, arguments.config, words).to(device).eval()
    ways = ways_on(world, arguments.ways, device)
    if not ways:
        parser.error("none of --ways can be measured without a GPU; add session")
    window = min(arguments.window, world.dynamics.context or arguments.window)
    rows = []
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for steps in arguments.inference_steps:
            sampling = Sampling(steps=steps)
            for way in ("session", "graphs"):  # compiled code has roundings of its own, which its tests look at
                if way in ways:
                    world.use_graphs(ways[way])
                    check_same_tokens(world, sampling, window, device)
            for batch in arguments.batches:
                sizes = {"num_samples": arguments.samples, "seconds": arguments.seconds}
                rows += measure(world, ways, batch, sampling, window, device=device, **sizes)
    name = arguments.weights or f"{arguments.config}, random weights"
    report(name, window, rows)
    print(json.dumps(result(name, window, rows)))


def load(weights: str | None, config: str, words: list[str]) -> nn.Module:
    if weights is not None:
        return pretrained.load(weights)
    return step_inputs.build(step_inputs.compose(config, words, small=False))


# ------------------------------------------------------------------------------------------------------------ measuring


def ways_on(world: nn.Module, names: list[str], device: torch.device) -> dict[str, FrameGraphs | None]:
    """The ways to measure that the device has, each with its graphs."""
    if device.type != "cuda":
        left_out = [name for name in names if SESSIONS.get(name) is not None]
        print("".join(f"{name}: left out, graphs are recorded on a GPU\n" for name in left_out), end="")
        names = [name for name in names if name not in left_out]
    return {name: graphs.of(world, SESSIONS.get(name)) for name in names}


def measure(
    world: nn.Module,
    ways: dict[str, FrameGraphs | None],
    batch: int,
    sampling: Sampling,
    window: int,
    *,
    num_samples: int,
    seconds: float,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Two rows for each way of a session, early and late, and one for full recomputation."""
    world.use_graphs(None)
    session, actions = begin(world, batch, sampling, window, device)
    next_step(session, actions)  # warms up
    flops = count(lambda: next_step(session, actions))
    rate = rates.matmul_rate(train_step.largest_layer(world), batch * num_tokens(world), device)
    common = {"batch": batch, "steps": sampling.steps, "floor_ms": 1e3 * flops / rate, "gflop": flops / 1e9}
    rows = []
    for way, way_graphs in ways.items():
        world.use_graphs(way_graphs)
        if way == RECOMPUTED:
            found = [recompute(world, batch, sampling, window, max(3, num_samples // 10), device)]
        else:
            found = dream(world, batch, sampling, window, num_samples, seconds, device)
        rows += [common | {"way": way} | row for row in found]
    return rows


def dream(
    world: nn.Module,
    batch: int,
    sampling: Sampling,
    window: int,
    num_samples: int,
    seconds: float,
    device: torch.device,
) -> list[dict[str, Any]]:
    """A session early and late."""
    next_step(*begin(world, batch, sampling, window, device))  # records, where there are graphs
    early = []
    for _ in range(num_samples):
        session, actions = begin(world, batch, sampling, window, device)
        next_step(session, actions)
        early.append(timed_step(session, actions, device))
    began = time.perf_counter()
    while session.num_frames < LATE and time.perf_counter() - began < seconds:
        next_step(session, actions)
    at = session.num_frames + 1
    late = [timed_step(session, actions, device) for _ in range(num_samples)]
    held = session.num_bytes() + (0 if world.graphs is None else world.graphs.num_bytes())
    return [
        {"frame": EARLY} | spread(early, batch),
        {"frame": at, "mib": held / 2**20} | spread(late, batch),
    ]


def recompute(
    world: nn.Module, batch: int, sampling: Sampling, window: int, num_samples: int, device: torch.device
) -> dict[str, Any]:
    history = torch.randint(world.tokenizer.codebook_size, (batch, window, *world.tokenizer.grid), device=device)
    full = [timed_recomputation(world, history, sampling, device) for _ in range(num_samples)]
    return {"frame": window + 1} | spread(full, batch)


def begin(
    world: nn.Module, batch: int, sampling: Sampling, window: int, device: torch.device
) -> tuple[Session, Iterator[Tensor]]:
    """A session after its first given frame, and actions without end."""
    generator = torch.Generator().manual_seed(SEED)
    height, width = world.image_size
    prompt = torch.rand(batch, 1, 3, height, width, generator=generator).to(device)
    seeds = torch.arange(batch, device=device)
    session = world.start(prompt, sampling=sampling, seeds=seeds, window=window)
    return session, iter(lambda: torch.randint(world.num_actions, (batch,), generator=generator).to(device), None)


def next_step(session: Session, actions: Iterator[Tensor]) -> Tensor:
    return session.step(next(actions))


def timed_step(session: Session, actions: Iterator[Tensor], device: torch.device) -> float:
    action = next(actions)
    return rates.timed(lambda: session.step(action), device)[1]


def timed_recomputation(world: nn.Module, history: Tensor, sampling: Sampling, device: torch.device) -> float:
    """A new frame from `history` (B, window, h, w) without memory: all of it through the dynamics and the decoder."""
    batch, window = history.shape[:2]
    vectors = world.actions.embed(torch.zeros(batch, window, dtype=torch.long, device=device))
    seeds = torch.arange(batch, device=device)

    def recompute() -> Tensor:
        new = world.dynamics.sample(history, vectors, num_new=1, sampling=sampling, seeds=seeds)
        return world.tokenizer.decode(torch.cat([history[:, 1:], new], dim=1))[:, -1]

    return rates.timed(recompute, device)[1]


def check_same_tokens(world: nn.Module, sampling: Sampling, window: int, device: torch.device) -> None:
    """Raises AssertionError unless a rollout that remembers and one that does not give the same tokens.

    In full precision: what bfloat16 makes a tie, a few passes of refinement make a different frame.
    """
    with torch.autocast(device.type, enabled=False):
        _check_same_tokens(world, sampling, window, device)


def _check_same_tokens(world: nn.Module, sampling: Sampling, window: int, device: torch.device) -> None:
    num_frames = min(window + 1, 8)
    generator = torch.Generator().manual_seed(SEED)
    prompt = torch.rand(1, 1, 3, *world.image_size, generator=generator).to(device)
    actions = torch.randint(world.num_actions, (1, num_frames - 1), generator=generator).to(device)
    seeds = torch.zeros(1, dtype=torch.long, device=device)
    remembered = world.rollout(prompt, actions, sampling=sampling, seeds=seeds).tokens
    tokens, vectors = world.tokenizer.encode(prompt), world.actions.embed(actions)
    for frame in range(1, num_frames):
        new = world.dynamics.sample(tokens, vectors[:, :frame], num_new=1, sampling=sampling, seeds=seeds)
        tokens = torch.cat([tokens, new], dim=1)
    share = (remembered == tokens).float().mean().item()
    # Sums of another order flip tokens that were a tie.
    assert share == 1 or (device.type == "cuda" and share > 0.95), f"only {share:.1%} of the tokens are the same"


def spread(seconds: list[float], batch: int) -> dict[str, float]:
    middle, slow = np.percentile(seconds, [50, 99])
    return {"p50_ms": 1e3 * middle, "p99_ms": 1e3 * slow, "frames_per_second": batch / np.mean(seconds)}


def num_tokens(world: nn.Module) -> int:
    """Tokens of a frame."""
    height, width = world.tokenizer.grid
    return height * width


# -------------------------------------------------------------------------------------------------------------- showing


def report(name: str, window: int, rows: list[dict[str, Any]]) -> None:
    print(f"{name}: the latest {window} frames are read")
    print(
        f"  {'batch':>5}  {'steps':>5}  {'way':10}  {'frame':>5}  {'p50 ms':>9}  {'p99 ms':>9}  {'frames/s':>9}"
        f"  {'floor ms':>9}"
    )
    for row in rows:
        floor = "" if row["way"] == RECOMPUTED else f"{row['floor_ms']:9.1f}"
        print(
            f"  {row['batch']:5}  {row['steps']:5}  {row['way']:10}  {row['frame']:5}  {row['p50_ms']:9.1f}"
            f"  {row['p99_ms']:9.1f}  {row['frames_per_second']:9.1f}  {floor}"
        )


def result(name: str, window: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The value is of graphs where they were measured, else of the first way; the reference is of the last way."""
    late = [row for row in rows if row["frame"] > EARLY]
    same = [row for row in late if (row["batch"], row["steps"]) == (late[0]["batch"], late[0]["steps"])]
    first = next((row for row in same if row["way"] == "graphs"), same[0])
    last = same[-1]
    return {
        "name": "rollout",
        "model": name,
        "value": round(first["frames_per_second"], 2),
        "unit": "frames/s",
        "reference": round(last["frames_per_second"], 2),
        "ratio": round(last["p50_ms"] / first["p50_ms"], 2),
        "way": first["way"],
        "reference_way": last["way"],
        "inference_steps": first["steps"],
        "window": window,
        "rows": [{key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()} for row in rows],
        "machine": machine.describe(),
    }


if __name__ == "__main__":
    main()
