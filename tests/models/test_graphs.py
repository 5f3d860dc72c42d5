"""Sessions by recorded graphs dream what eager ones dream, though a graph knows nothing but its buffers.

On a CPU a list of the operations that were done stands in for CUDA: they are done again to the same buffers, Python is
not run, and every number that came from the host stays what it was. `tests/models/test_gpu.py` records on a GPU, where
there is one.
"""

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from models import graphs, recording
from models.graphs import FrameGraphs
from models.interfaces import Sampling
from tests.models import builders
from tests.models.builders import clip, settle
from tests.models.test_waiting import waits

WINDOW = 3
REFINED = Sampling(steps=3, temperature=1.0, noise=1.0)
CASES = {
    "guided-published": Sampling(temperature=1.0, top_k=6),
    "latent-published": Sampling(),
    "guided-film": Sampling(temperature=0.7),
    "latent-film": Sampling(),
    "guided-in-place": REFINED,
    "latent-in-place": Sampling(steps=4, temperature=0.7, order="halton"),
}


class Tape(TorchDispatchMode):
    """Every operation on tensors, below autograd and autocast."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if waits(function, args):
            raise RuntimeError(f"no graph holds {function}: the host waits for its result")
        result = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """What was there before the recording is met where it is; what was made then is made anew."""
        made = {}

        def now(then: torch.Tensor) -> torch.Tensor:
            return made.get(id(then), then)

        with torch.autocast("cpu", enabled=False):
            for function, args, kwargs, before in self.done:
                args, kwargs = tree_map_only(torch.Tensor, now, (args, kwargs))
                result = function(*args, **kwargs)
                for then, again in zip(tree_flatten(before)[0], tree_flatten(result)[0], strict=True):
                    made[id(then)] = again


class Recorder:
    """Does to the buffers what a CUDA graph would do, and counts what it recorded."""

    def __init__(self):
        self.count = 0

    def __call__(self, function, buffers):
        self.count += 1
        function()  # what is computed once is computed now
        with Tape() as tape:
            function()
        return tape.replay


def world_of(name):
    torch.manual_seed(0)
    return settle(builders.world(name))


def by_graphs(name):
    """The same world by graphs, and what records them."""
    world, recorder = world_of(name), Recorder()
    world.use_graphs(FrameGraphs(world, lambda: recorder))
    return world, recorder


def begin(world, batch, sampling, **changes):
    settings = {"sampling": sampling, "seeds": batch.seeds, "window": WINDOW} | changes
    return world.start(batch.frames[:, :1], **settings)


def play(session, actions) -> torch.Tensor:
    return torch.stack([session.step(action) for action in actions.unbind(1)], dim=1)


@pytest.mark.parametrize("name", CASES)
def test_a_session_by_graphs_is_the_eager_one_far_beyond_its_rings(name):
    batch, (world, _) = clip(num_frames=16), by_graphs(name)
    given = {"sampling": CASES[name], "seeds": batch.seeds, "window": WINDOW}
    sessions = [w.start(batch.frames[:, :3], batch.actions[:, :2], **given) for w in (world, world_of(name))]
    found, expected = (play(session, batch.actions[:, 2:]) for session in sessions)
    assert torch.equal(found, expected)


def take_turns(world, device="cpu") -> list[torch.Tensor]:
    """All frames of dreams that share a world and its graphs, are forked, taken back, parted and set anew."""
    one, other = (clip(num_frames=9, seed=seed).to(device) for seed in (1, 2))
    first = begin(world, one, REFINED, max_rewind=3)
    second = begin(world, other, REFINED, max_rewind=3)
    frames = []
    for action in one.actions[:, :4].unbind(1):
        frames += [first.step(action), second.step(action)]
    fork = first.fork()
    first.rewind(2)
    frames += [first.step(other.actions[:, 0]), fork.step(one.actions[:, 4]), first.step(other.actions[:, 1])]
    alone = second.select(torch.tensor([1], device=device))
    frames += [alone.step(one.actions[1:, 5]), second.step(one.actions[:, 5]), fork.step(one.actions[:, 5])]
    second.sampling = Sampling(steps=5, temperature=0.3, noise=0.3)
    first.sampling = Sampling(steps=2)
    frames += [second.step(one.actions[:, 6]), first.step(one.actions[:, 6]), second.step(one.actions[:, 7])]
    world.use_graphs(None)
    return [*frames, first.step(one.actions[:, 7]), second.step(one.actions[:, 0]), alone.step(one.actions[1:, 0])]


def test_dreams_that_share_graphs_do_not_touch_each_other():
    found, expected = take_turns(by_graphs("guided-in-place")[0]), take_turns(world_of("guided-in-place"))
    for number, (frame, of_eager) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(frame, of_eager), number


def test_steps_temperature_and_players_need_no_further_graphs():
    world, recorder = by_graphs("guided-in-place")
    batch = clip(num_frames=4)
    session = begin(world, batch, REFINED)
    play(session, batch.actions)
    before, num_bytes = recorder.count, world.graphs.num_bytes()
    assert before == 4  # first, middle and last pass, and the picture
    session.sampling = Sampling(steps=6, temperature=0.2, noise=4.5)
    play(session, batch.actions)
    for _ in range(3):
        play(begin(world, batch, REFINED), batch.actions)
    assert (recorder.count, world.graphs.num_bytes()) == (before, num_bytes)


def test_only_the_latest_shapes_have_graphs_and_the_others_dream_on(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_STAGES", 2)
    (world, recorder), eager = by_graphs("guided-film"), world_of("guided-film")
    batch = clip(batch=3, num_frames=5)
    frames = []
    for w in (world, eager):
        three = begin(w, batch, Sampling())
        frames.append([play(three, batch.actions[:, :2])])
        one = three.select(torch.tensor([2]))
        frames[-1] += [play(one, batch.actions[2:, 2:]), play(three, batch.actions[:, 2:])]
    assert recorder.count == 6  # two for each of the shapes, and two again
    for found, expected in zip(*frames, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("name", "chunk"), [("guided-in-place", 2), ("guided-published", 3)])
def test_a_rollout_by_graphs_is_the_eager_one(name, chunk):
    batch, tokens = clip(num_frames=6), []
    for world in (by_graphs(name)[0], world_of(name)):
        given = {"sampling": CASES[name], "seeds": batch.seeds, "chunk": chunk}
        tokens.append(world.rollout(batch.frames[:, :1], batch.actions, **given).tokens)
    assert torch.equal(*tokens)


def test_under_autocast_frames_stay_the_same_and_weights_what_they_were():
    batch, frames = clip(num_frames=4), []
    for world in (by_graphs("guided-in-place")[0], world_of("guided-in-place")):
        with torch.autocast("cpu", torch.bfloat16):
            frames.append(play(begin(world, batch, REFINED), batch.actions))
        assert all(parameter.dtype == torch.float32 for parameter in world.parameters())
    assert torch.equal(*frames)


def compared(function, buffers):
    """Runs a function compiled and eagerly on the same buffers; both do the same to them."""
    before = [buffer.clone() for buffer in buffers]
    function()
    compiled = [buffer.clone() for buffer in buffers]
    torch._foreach_copy_(buffers, before)
    with torch.compiler.set_stance("force_eager"):
        function()
    torch.testing.assert_close(buffers, compiled)
    return function


def test_compiled_blocks_are_whole_graphs_that_do_the_same(monkeypatch):
    monkeypatch.setattr(recording, "BACKEND", "aot_eager")  # writing code for them takes a minute
    torch._dynamo.reset()
    counters.clear()
    batch, world = clip(num_frames=4), world_of("guided-in-place")
    world.use_graphs(FrameGraphs(world, lambda: compared, is_compiled=True))
    found = play(begin(world, batch, REFINED), batch.actions)
    assert counters["stats"]["unique_graphs"] == 3  # the first pass, later ones, and the picture
    world.use_graphs(None)
    assert torch.equal(play(begin(world, batch, REFINED), batch.actions), found)
    assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"]
    torch._dynamo.reset()


def test_a_number_of_the_host_would_be_seen():
    total, numbers = torch.zeros(()), [1.0]
    replay = Recorder()(lambda: total.add_(numbers[0]), [total])
    total.zero_()
    numbers[0] = 2.0
    replay()
    assert total == 1
    with pytest.raises(RuntimeError, match=r"no graph holds aten\._local_scalar_dense"):
        Recorder()(lambda: total.add_(total.item()), [total])


def test_a_choice_fits_the_device():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [recording.choose(choice, cpu, "k") for choice in ("auto", "false")] == [None, None]
    kinds = [recording.choose(choice, gpu, "k") for choice in ("auto", "true", "compiled", "false")]
    assert kinds == ["plain", "plain", "compiled", None]
    with pytest.raises(ValueError, match=r"^play\.session_graphs is compiled, but graphs are recorded on a GPU"):
        recording.choose("compiled", cpu, "play.session_graphs")
