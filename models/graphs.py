"""Frames of sessions by recorded graphs: what a session does for a frame, as functions of fixed buffers.

`FrameGraphs` stands in for `MaskGIT.extend` and `STViViT.decode_next`. For each shape it has a `Stage`: buffers for all
that a frame needs, and graphs that work on them. What changes from frame to frame is copied into the buffers, numbers
among it: times, the frame's number, how many tokens a pass hides, temperature. The rings of the session that drew last
lie in the stage; another session's are exchanged for them, which copies a session's memory twice. So all sessions of a
world share its graphs, and forking, rewinding or selecting knows nothing of them (`TransformerCache.blocks`).
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.components.cache import TransformerCache
from models.components.masking import Pass, passes
from models.dynamics import DynamicsCache
from models.interfaces import Sampling
from models.recording import CudaRecorder, Function, Recorder, WithWeights, compiled, narrowed

MOST_STAGES = 8  # a shape of sessions has two; beyond these the least lately used one goes
MOST_GRAPHS = 24  # of a stage: three for each way of sampling


class Precision(NamedTuple):
    """Autocast as it was when a frame was asked for."""

    device: str
    dtype: torch.dtype | None  # None where it is off

    @classmethod
    def of(cls, tensor: Tensor) -> "Precision":
        device = tensor.device.type
        return cls(device, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)

    def context(self) -> torch.autocast:
        """The same, without its memory of cast weights: what was cast outside a graph is gone when it is replayed."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype is not None, cache_enabled=False)


class Stage(ABC):
    """Buffers of one shape and the graphs that work on them; see the module.

    cache: whose like the stage gets for itself.
    """

    def __init__(self, cache: TransformerCache, record: Recorder):
        self.cache = cache.fork()
        self._record = record
        self._replays: dict[object, Function] = {}
        self._owner: weakref.ref[TransformerCache] | None = None  # whose rings are here

    @abstractmethod
    def buffers(self) -> list[Tensor]:
        """All that its graphs read and write."""

    def borrow(self, cache: TransformerCache) -> None:
        """Have the contents of a session's rings here."""
        if self._owner is None or self._owner() is not cache:
            self.give_back()
            torch._foreach_copy_(self.cache.tensors(), cache.tensors())
            self._owner = weakref.ref(cache)
            cache.lend(self)

    def give_back(self) -> None:
        """Let the session whose rings are here have them; a session that is gone wants nothing."""
        owner = self._owner and self._owner()
        self._owner = None
        if owner is not None:
            owner.lend(None)
            torch._foreach_copy_(owner.tensors(), self.cache.tensors())

    def replay(self, kind: object, function: Function) -> Function:
        """The graph of a kind; recording it needs the buffers, so ask for all that a frame takes before `borrow`."""
        if kind not in self._replays:
            self.give_back()
            while len(self._replays) >= MOST_GRAPHS:
                del self._replays[next(iter(self._replays))]
            self._replays[kind] = self._record(function, self.buffers())
        return self._replays[kind]


class Drawing(Stage):
    """The new frames of `MaskGIT.extend`."""

    def __init__(
        self, dynamics: nn.Module, past: DynamicsCache, tokens: Tensor, arriving: Tensor, num_new: int, record: Recorder
    ):
        super().__init__(past.transformer, record)
        self.dynamics = dynamics
        self.past = past._replace(transformer=self.cache)
        self.tokens, self.arriving = torch.zeros_like(tokens), torch.zeros_like(arriving)
        self.new = tokens.new_zeros(len(tokens), num_new, *tokens.shape[2:])
        self.hidden = torch.zeros_like(self.new, dtype=torch.bool)
        self.seeds = tokens.new_zeros(len(tokens))
        self.now, self.frame = tokens.new_zeros(()), tokens.new_zeros(())
        self.turn = Pass(*(torch.zeros_like(value) for value in passes(Sampling(), 1, tokens.device)[0]))

    def buffers(self) -> list[Tensor]:
        given = (self.tokens, self.arriving, self.seeds, self.now, self.frame, *self.turn)
        return [*given, self.new, self.hidden, *self.cache.tensors()]

    def extend(
        self,
        tokens: Tensor,
        arriving: Tensor,
        cache: TransformerCache,
        *,
        sampling: Sampling,
        seeds: Tensor,
        frame: int,
        at: int,
    ) -> Tensor:
        """at: the time of the first of the known frames."""
        turns = passes(sampling, self.new[0].numel(), self.new.device)
        remember = None if tokens.shape[1] == 1 else self.replay("remember", self._remember)
        replays = [self._pass(sampling, turn is turns[0], turn is turns[-1]) for turn in turns]
        self.borrow(cache)
        self.tokens.copy_(tokens)
        self.arriving.copy_(arriving)
        self.seeds.copy_(seeds)
        self.now.fill_(at)
        self.frame.fill_(frame)
        if remember is not None:
            remember()
        for turn, replay in zip(turns, replays, strict=True):
            for buffer, value in zip(self.turn, turn, strict=True):
                buffer.copy_(value)
            replay()
        return self.new.clone()

    def _remember(self) -> None:
        count = self.tokens.shape[1] - 1
        self.dynamics.remember(self.tokens[:, :count], self.arriving[:, : count + 1], self.past, now=self.now)

    def _pass(self, sampling: Sampling, is_first: bool, is_last: bool) -> Function:
        drawn_from = None if sampling.temperature == 0 else sampling.top_k or self.dynamics.num_tokens
        kind = (drawn_from, sampling.order, sampling.noise > 0, is_first, is_last)
        num_before = self.tokens.shape[1] - 1

        def refine() -> None:
            new, hidden = self.dynamics.refine_next(
                self.tokens[:, num_before:],
                self.arriving[:, num_before:],
                self.new,
                self.hidden,
                self.past,
                now=self.now + num_before,
                sampling=sampling,
                turn=self.turn,
                seeds=self.seeds,
                frame=self.frame,
                is_first=is_first,
                is_last=is_last,
            )
            self.new.copy_(new)
            self.hidden.copy_(hidden)

        return self.replay(kind, refine)


class Decoding(Stage):
    """One frame of `STViViT.decode_next`, not the first of its clip."""

    def __init__(self, tokenizer: nn.Module, cache: TransformerCache, tokens: Tensor, record: Recorder):
        super().__init__(cache, record)
        self.tokenizer = tokenizer
        self.tokens, self.now = torch.zeros_like(tokens), tokens.new_zeros(())
        # The picture's size and type are known once one was drawn.
        self.picture = torch.zeros_like(tokenizer.draw_next(self.tokens, self.cache, self.now, is_start=False))

    def buffers(self) -> list[Tensor]:
        return [self.tokens, self.now, self.picture, *self.cache.tensors()]

    def decode(self, tokens: Tensor, cache: TransformerCache) -> Tensor:
        replay = self.replay(None, self._draw)
        self.borrow(cache)
        self.tokens.copy_(tokens)
        self.now.fill_(cache.length)
        replay()
        return self.picture.clone()

    def _draw(self) -> None:
        self.picture.copy_(self.tokenizer.draw_next(self.tokens, self.cache, self.now, is_start=False))


def of(world: nn.Module, chosen: str | None) -> "FrameGraphs | None":
    """The graphs of a world that is on a GPU; chosen: what `models.recording.choose` gives."""
    if chosen is None:
        return None
    device = next(world.parameters()).device
    return FrameGraphs(world, lambda: CudaRecorder(device), is_compiled=chosen == "compiled")


class FrameGraphs:
    """`extend` and `decode_next` of a world, by graphs; not thread-safe.

    make_recorder: one for each stage. is_compiled: compile the blocks before recording.
    """

    def __init__(self, world: nn.Module, make_recorder: Callable[[], Recorder], *, is_compiled: bool = False):
        self._dynamics, self._tokenizer = world.dynamics, world.tokenizer
        self._make_recorder, self._is_compiled = make_recorder, is_compiled
        self._stages: dict[object, Stage] = {}  # the least lately used first
        self._narrow: dict[tuple[nn.Module, torch.dtype], dict[str, Tensor]] = {}

    @torch.no_grad()
    def extend(
        self,
        tokens: Tensor,
        arriving: Tensor,
        cache: DynamicsCache,
        *,
        num_new: int,
        sampling: Sampling,
        seeds: Tensor,
        frame: int,
    ) -> Tensor:
        """As `MaskGIT.extend`."""
        dynamics = self._dynamics
        dynamics.rule.check(sampling, num_new)
        if cache.length == 0 or tokens.shape[1] - 1 > cache.transformer.max_new:
            tokens, arriving = dynamics.catch_up(tokens, arriving, cache)  # a prompt's length is rarely met again
        at, num_before = cache.length, tokens.shape[1] - 1
        if num_before:
            dynamics.draft(tokens, cache, num_before)
            cache.transformer.commit(num_before)
        dynamics.draft(tokens, cache, dynamics.rule.input_frames(1 + num_new))
        precision = Precision.of(tokens)
        shape = (tokens.shape, arriving.shape, arriving.dtype, num_new)
        stage = self._stage(
            (Drawing, shape, precision, cache.transformer.layout),
            lambda: Drawing(
                dynamics, cache, tokens, arriving, num_new, self._recorder(dynamics, dynamics.transformer, precision)
            ),
        )
        new = stage.extend(tokens, arriving, cache.transformer, sampling=sampling, seeds=seeds, frame=frame, at=at)
        cache.transformer.commit(1)
        return new

    @torch.no_grad()
    def decode_next(self, tokens: Tensor, cache: TransformerCache) -> Tensor:
        """As `STViViT.decode_next`."""
        tokenizer = self._tokenizer
        if tokens.shape[1] != 1 or cache.length == 0:
            return tokenizer.decode_next(tokens, cache)
        cache.draft(1)
        precision = Precision.of(tokens)
        stage = self._stage(
            (Decoding, tokens.shape, precision, cache.layout),
            lambda: Decoding(tokenizer, cache, tokens, self._recorder(tokenizer, tokenizer.decoder, precision)),
        )
        picture = stage.decode(tokens, cache)
        cache.commit(1)
        return picture

    def num_bytes(self) -> int:
        """Memory of all buffers; intermediates of the graphs not counted."""
        return sum(buffer.nbytes for stage in self._stages.values() for buffer in stage.buffers())

    def _stage(self, shape: object, make: Callable[[], Stage]) -> Stage:
        stage = self._stages.pop(shape, None)
        if stage is None:
            while len(self._stages) >= MOST_STAGES:
                self._stages.pop(next(iter(self._stages))).give_back()
            stage = make()
        self._stages[shape] = stage
        return stage

    def _recorder(self, part: nn.Module, stack: nn.Module, precision: Precision) -> Recorder:
        """Records functions of a part of the world, whose blocks `stack` has, as they would run now."""
        record, weights = self._make_recorder(), self._narrowed(part, precision)

        def call(function: Function) -> None:
            with precision.context():
                WithWeights(part).call(function, weights)

        def record_in_precision(function: Function, buffers: list[Tensor]) -> Function:
            with compiled(list(stack.layers) if self._is_compiled else []):
                return record(lambda: call(function), buffers)

        return record_in_precision

    def _narrowed(self, part: nn.Module, precision: Precision) -> dict[str, Tensor]:
        if precision.dtype is None:
            return {}
        key = (part, precision.dtype)
        if key not in self._narrow:
            self._narrow[key] = narrowed(part, precision.dtype)
        return self._narrow[key]
