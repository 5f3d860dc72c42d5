"""A dream that goes on frame by frame is the one that full recomputation gives, whatever the model."""

import pytest
import torch

from models.components.cache import ring_bias
from models.components.positions import causal_alibi
from models.interfaces import Sampling
from tests.models import builders
from tests.models.builders import NUM_ACTIONS, WORLDS, clip, settle

SAMPLINGS = {
    "greedy": Sampling(),
    "drawn": Sampling(temperature=1.0, top_k=6),
    "refined": Sampling(steps=3, temperature=1.0, noise=1.0),
    "spread": Sampling(steps=3, order="halton"),
}
WINDOW = 3


@pytest.fixture(params=WORLDS)
def world(request):
    torch.manual_seed(0)
    return settle(builders.world(request.param))


@pytest.fixture(params=SAMPLINGS)
def sampling(request, world):
    sampling = SAMPLINGS[request.param]
    try:
        world.dynamics.rule.check(sampling, 1)
    except ValueError:
        pytest.skip("the next rule makes one pass a frame")
    return sampling


def recomputed(world, prompt, actions, sampling, seeds, window=None, chunk=1):
    """Tokens of a rollout that remembers nothing: all frames so far go through the network for every new one."""
    tokens, vectors = world.tokenizer.encode(prompt), world.actions.embed(actions)
    total = actions.shape[1] + 1
    for start in range(prompt.shape[1], total, chunk):
        count = min(chunk, total - start)
        new = world.dynamics.sample(
            tokens,
            vectors[:, : start + count - 1],
            num_new=count,
            sampling=sampling,
            seeds=seeds,
            window=window,
        )
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


def play(session, actions) -> torch.Tensor:
    """Frames (B, K, C, H, W) after actions (B, K)."""
    return torch.stack([session.step(action) for action in actions.unbind(1)], dim=1)


@pytest.mark.parametrize("num_given", [1, 3])
def test_a_session_gives_the_frames_of_full_recomputation(world, sampling, num_given):
    batch = clip(num_frames=8)
    prompt, actions = batch.frames[:, :num_given], batch.actions
    with torch.no_grad():
        tokens = recomputed(world, prompt, actions, sampling, batch.seeds, window=WINDOW)
        expected = world.tokenizer.decode(tokens, window=WINDOW)[:, num_given:]
    session = world.start(prompt, actions[:, : num_given - 1], sampling=sampling, seeds=batch.seeds, window=WINDOW)
    torch.testing.assert_close(play(session, actions[:, num_given - 1 :]), expected)
    assert session.num_frames == 8


def test_the_window_matters_to_what_is_dreamed(world):
    batch = clip(num_frames=8)
    with torch.no_grad():
        frames = [
            world.tokenizer.decode(world.tokenizer.encode(batch.frames), window=window) for window in (2, WINDOW, None)
        ]
    assert not torch.allclose(frames[0], frames[1]) and not torch.allclose(frames[1], frames[2])
    torch.testing.assert_close(frames[0][:, :2], frames[2][:, :2])


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_rollout_gives_the_tokens_of_full_recomputation(world, sampling, chunk):
    batch = clip(num_frames=8)
    result = world.rollout(batch.frames[:, :1], batch.actions, sampling=sampling, seeds=batch.seeds, chunk=chunk)
    with torch.no_grad():
        expected = recomputed(world, batch.frames[:, :1], batch.actions, sampling, batch.seeds, chunk=chunk)
        assert torch.equal(result.tokens, expected)
        assert torch.equal(result.frames, world.tokenizer.decode(expected)[:, 1:])


def test_a_session_outlives_the_position_table_on_its_latest_frames_encoded_anew():
    world = settle(builders.world("guided-published"))
    context, kept = world.dynamics.context, world.dynamics.context // 2
    assert context == 8
    batch = clip(num_frames=12)
    session = world.start(batch.frames[:, :1], sampling=Sampling(), seeds=batch.seeds, window=context)
    frames = play(session, batch.actions)
    last = context + 1 - kept  # frames shown when the table is full: the context's inputs and one prediction
    anew = world.start(
        frames[:, last - 1 : context].clamp(0, 1),
        batch.actions[:, last:context],
        sampling=Sampling(),
        seeds=batch.seeds,
        window=context,
    )
    torch.testing.assert_close(frames[:, context:], play(anew, batch.actions[:, context:]))


def test_what_was_encoded_anew_is_not_gone_back_into():
    world = settle(builders.world("guided-published"))
    batch = clip(num_frames=12)
    session = world.start(batch.frames[:, :1], sampling=Sampling(), seeds=batch.seeds, window=8, max_rewind=6)
    frames = play(session, batch.actions)
    since = 12 - (world.dynamics.context + 1)  # frames dreamed after the table was full
    assert session.num_rewindable == since
    session.rewind(since)
    torch.testing.assert_close(play(session, batch.actions[:, -since:]), frames[:, -since:])


def test_rewinding_and_forking_lead_back_to_the_same_dream(world, sampling):
    batch = clip(num_frames=8)
    session = world.start(batch.frames[:, :1], sampling=sampling, seeds=batch.seeds, window=WINDOW, max_rewind=3)
    frames = play(session, batch.actions)
    fork = session.fork()
    assert session.num_rewindable == 3
    session.rewind(3)
    assert session.num_frames == 5
    other = play(session, (batch.actions[:, 4:6] + 1) % NUM_ACTIONS)
    assert not torch.allclose(other, frames[:, 4:6])
    assert session.num_rewindable == 2  # one frame short of the furthest so far
    session.rewind(2)
    torch.testing.assert_close(play(session, batch.actions[:, 4:]), frames[:, 4:])
    fork.rewind(1)
    torch.testing.assert_close(play(fork, batch.actions[:, 6:]), frames[:, 6:])
    with pytest.raises(ValueError, match="cannot take 4 frames back, at most 3 here"):
        session.rewind(4)


def test_a_dream_does_not_depend_on_the_others_in_its_batch(world, sampling):
    batch = clip(batch=3, num_frames=6)
    sizes = {"sampling": sampling, "window": WINDOW}
    together = world.start(batch.frames[:, :1], seeds=batch.seeds, **sizes)
    first = play(together, batch.actions[:, :2])
    rows = torch.tensor([2, 0])
    some = together.select(rows)
    rest = play(together, batch.actions[:, 2:])
    torch.testing.assert_close(play(some, batch.actions[rows, 2:]), rest[rows])
    alone = world.start(batch.frames[1:2, :1], seeds=batch.seeds[1:2], **sizes)
    torch.testing.assert_close(play(alone, batch.actions[1:2]), torch.cat([first, rest], dim=1)[1:2])


def test_a_session_does_not_grow(world):
    batch = clip(num_frames=8)
    session = world.start(batch.frames[:, :1], sampling=Sampling(), seeds=batch.seeds, window=WINDOW, max_rewind=2)
    play(session, batch.actions[:, :6])
    before = session.num_bytes()
    play(session, batch.actions)
    assert session.num_bytes() <= before


def test_a_ring_is_masked_like_the_frames_in_it():
    for first, count in ((0, 1), (0, 3), (2, 2), (9, 3), (40, 1)):
        times = torch.arange(first, first + count)
        bias = ring_bias(times, size=8, window=4, heads=2)
        expected = causal_alibi(first + count, heads=2, window=4)[:, first:]
        for slot in range(8):
            frame = max((t for t in range(first + count) if t % 8 == slot), default=None)
            of_slot = bias[:, :, slot]
            if frame is None:
                assert torch.isinf(of_slot).all()
            else:
                torch.testing.assert_close(of_slot, expected[:, :, frame])
