"""Recorded CUDA graphs against eager kernels; `tests/models/test_graphs.py` shows on a CPU all that a CPU can show."""

import threading
from itertools import cycle

import pytest
import torch

from models import graphs
from models.interfaces import Sampling
from tests.models import builders
from tests.models.builders import WORLDS, clip, settle
from tests.models.test_graphs import CASES, REFINED, begin, play, take_turns

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]
GPU = torch.device("cuda")
SAME = 0.95  # share of what must agree: where a near tie falls the other way, a few tokens follow it


def world_on_gpu(name, chosen=None):
    torch.manual_seed(0)
    world = settle(builders.world(name)).to(GPU)
    world.use_graphs(graphs.of(world, chosen))
    return world


def batch_on_gpu(**sizes):
    return clip(**sizes).to(GPU)


def agreement(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> float:
    """Share of pixels that are as expected."""
    return ((found - expected).abs() <= tolerance).float().mean().item()


@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize("name", WORLDS)
def test_a_session_by_cuda_graphs_is_the_eager_one(name, is_mixed):
    batch, frames = batch_on_gpu(num_frames=16), []
    for chosen in ("plain", None):
        world = world_on_gpu(name, chosen)
        with torch.autocast("cuda", torch.bfloat16, enabled=is_mixed):
            frames.append(play(begin(world, batch, CASES[name]), batch.actions))
    assert agreement(*frames, tolerance=0.02 if is_mixed else 1e-3) > SAME


@pytest.mark.parametrize("name", ["guided-published", "guided-in-place"])
def test_a_session_by_graphs_of_compiled_blocks_is_the_eager_one(name):
    batch, frames = batch_on_gpu(num_frames=12), []
    for chosen in ("compiled", None):
        frames.append(play(begin(world_on_gpu(name, chosen), batch, CASES[name]), batch.actions))
    assert agreement(*frames, tolerance=1e-2) > SAME


def test_a_rollout_by_cuda_graphs_gives_the_eager_tokens():
    batch, tokens = batch_on_gpu(num_frames=8), []
    for chosen in ("plain", None):
        world = world_on_gpu("guided-in-place", chosen)
        given = {"sampling": REFINED, "seeds": batch.seeds}
        tokens.append(world.rollout(batch.frames[:, :1], batch.actions, **given).tokens)
    assert (tokens[0] == tokens[1]).float().mean() > SAME


def test_dreams_that_share_cuda_graphs_do_not_touch_each_other():
    frames = (take_turns(world_on_gpu("guided-in-place", chosen), GPU) for chosen in ("plain", None))
    for number, (found, expected) in enumerate(zip(*frames, strict=True)):
        assert agreement(found, expected, tolerance=1e-3) > SAME, number


def test_the_host_never_waits_for_a_frame():
    batch, world = batch_on_gpu(num_frames=8), world_on_gpu("guided-in-place", "plain")
    session = begin(world, batch, REFINED)
    play(session, batch.actions[:, :2])
    torch.cuda.set_sync_debug_mode("error")
    try:
        play(session, batch.actions[:, 2:])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_is_recorded_while_another_thread_uses_the_gpu():
    """A server loads worlds and reads actions off frames beside the thread that dreams."""
    batch, is_over, sizes = batch_on_gpu(num_frames=6), threading.Event(), cycle((2**20, 2**22, 2**24))
    eager = play(begin(world_on_gpu("guided-in-place"), batch, REFINED), batch.actions)
    failures = []

    def work() -> None:
        try:
            while not is_over.is_set():
                torch.ones(next(sizes), device=GPU).mul(2).sum().item()
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = play(begin(world_on_gpu("guided-in-place", "plain"), batch, REFINED), batch.actions)
    finally:
        is_over.set()
        thread.join()
    assert not failures
    assert agreement(found, eager, tolerance=1e-3) > SAME


def test_memory_does_not_grow_with_frames_sessions_or_settings():
    batch, world = batch_on_gpu(num_frames=5), world_on_gpu("guided-in-place", "plain")

    def one(sampling: Sampling) -> int:
        play(begin(world, batch, sampling), batch.actions)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    one(REFINED)
    before = one(REFINED)
    after = [one(Sampling(steps=steps, temperature=0.1 * steps, noise=1.0)) for steps in (3, 4, 6)]
    # The numbers of a way of sampling are kept, a few bytes for each of its passes.
    assert max(after) - before < 64 * 1024
