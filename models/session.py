"""Dreams in progress: a world that goes on frame by frame, each at the same cost."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from models.components.cache import TransformerCache
from models.dynamics import DynamicsCache
from models.interfaces import Sampling

MAX_NEW = 4  # frames that one pass may add to a cache; a prompt goes in by so many


class Session:
    """A batch of dreams that `WorldModel.start` began; `step` shows their next frames.

    A step costs the same after 10 frames and after 10,000: attention over time reads the latest `window` frames, and
    what it reads is cached. Where the dynamics' position table ends (`dynamics.context`), the latest frames that fill
    half of it are encoded anew and become the start of another clip, which costs a longer step now and then.

    seeds: (B,), with the frame's number they key all noise. Not thread-safe; sessions of one world may take turns.
    """

    def __init__(
        self,
        world,
        prompt: Tensor,
        actions: Tensor,
        *,
        sampling: Sampling,
        seeds: Tensor,
        window: int,
        max_rewind: int,
    ):
        self.world = world
        self.sampling = sampling
        self.seeds = seeds
        self.window, self.max_rewind = window, max_rewind
        self.num_frames = prompt.shape[1]  # the prompt's, and those dreamed since
        self._frames = prompt  # the latest ones, as many as may be encoded anew
        self._actions = F.pad(actions, (1, 0))  # (B, frames held): the one that led to each; none led to the first
        self._is_anew = False
        self._begin(prompt)

    @property
    def batch_size(self) -> int:
        return len(self.seeds)

    @property
    def num_rewindable(self) -> int:
        """Frames that `rewind` can take back now."""
        return max(count for count in range(self.max_rewind + 1) if self._can_rewind(count))

    @torch.no_grad()
    def step(self, actions: Tensor) -> Tensor:
        """The next frames, (B, C, H, W) unclamped, after actions (B,) int64."""
        assert actions.shape == self.seeds.shape, (actions.shape, self.seeds.shape)
        if self._is_full():
            self._begin_anew()
        arriving = self.world.actions.embed(actions[:, None])
        new = self.world.extend(
            self._pending,
            torch.cat([self._arriving, arriving], dim=1),
            self._dynamics,
            num_new=1,
            sampling=self.sampling,
            seeds=self.seeds,
            frame=self.num_frames,
        )
        frames = self.world.decode_next(new, self._decoder)
        self._pending, self._arriving = new, arriving
        self._tokens = self._latest(torch.cat([self._tokens, new], dim=1))
        self._actions = self._latest(torch.cat([self._actions, actions[:, None]], dim=1))
        self._frames = self._latest(torch.cat([self._frames, frames], dim=1))
        self.num_frames += 1
        return frames[:, 0]

    @torch.no_grad()
    def rewind(self, count: int) -> None:
        """Take the last `count` frames back; the next step goes on from the frame before them.

        Raises ValueError for more than `num_rewindable`.
        """
        if not self._can_rewind(count):
            raise ValueError(f"cannot take {count} frames back, at most {self.num_rewindable} here")
        if count == 0:
            return
        self._dynamics.transformer.rewind(count)
        self._decoder.rewind(count)
        self._tokens, self._actions = self._tokens[:, :-count], self._actions[:, :-count]
        self._frames = self._frames[:, :-count]
        self._pending = self._tokens[:, -1:]
        self._arriving = self.world.actions.embed(self._actions[:, -1:])
        if self._num_in_clip() == 1:
            self._arriving = torch.zeros_like(self._arriving)  # nothing led to a clip's first frame
        self.num_frames -= count

    def fork(self) -> "Session":
        """Another session in the same state; what happens to one does not touch the other."""
        return self._with(self._dynamics.fork(), self._decoder.fork())

    def select(self, rows: Tensor) -> "Session":
        """A session of these dreams alone."""
        other = self._with(self._dynamics.select(rows), self._decoder.select(rows))
        for name in ("seeds", "_tokens", "_actions", "_frames", "_pending", "_arriving"):
            setattr(other, name, getattr(self, name)[rows])
        return other

    def num_bytes(self) -> int:
        """Memory of the caches and the history."""
        history = (self._tokens, self._actions, self._frames)
        return self._dynamics.transformer.num_bytes() + self._decoder.num_bytes() + sum(x.nbytes for x in history)

    # ---------------------------------------------------------------------------------------------------- beginning

    def _begin(self, frames: Tensor) -> None:
        """Start empty caches with a clip: frames (B, P, C, H, W), the latest P of `_actions` led to them."""
        world, count = self.world, frames.shape[1]
        tokens = world.tokenizer.encode(frames)
        sizes = {"window": self.window, "max_rewind": self.max_rewind}
        grid = tuple(tokens.shape[2:])
        self._dynamics: DynamicsCache = world.dynamics.start(len(frames), grid, max_new=MAX_NEW, **sizes)
        self._decoder: TransformerCache = world.tokenizer.start_decoding(len(frames), grid, max_new=MAX_NEW, **sizes)
        world.tokenizer.decode_next(tokens, self._decoder)
        self._num_begun = count
        self._tokens = tokens
        self._pending = tokens
        self._arriving = world.actions.embed(self._actions[:, -count:])
        self._arriving[:, 0] = 0

    def _is_full(self) -> bool:
        """Whether the position table has no row for what the next step reads."""
        context = self.world.dynamics.context
        return context is not None and self.world.dynamics.rule.input_frames(self._num_in_clip() + 1) > context

    def _begin_anew(self) -> None:
        """Start another clip with the latest frames; the tokens of a clip depend on where it starts."""
        self._begin(self._frames[:, -self._num_kept() :].clamp(0, 1))
        self._is_anew = True

    def _num_in_clip(self) -> int:
        """Frames since the clip in the caches began."""
        return self._decoder.length

    def _num_kept(self) -> int:
        """Frames that start another clip."""
        context = self.world.dynamics.context
        return 1 if context is None else max(1, context // 2)

    def _latest(self, history: Tensor) -> Tensor:
        return history[:, -max(self._num_kept(), self.max_rewind + 1) :]

    def _can_rewind(self, count: int) -> bool:
        """Within the history, the caches, and the clip in them (of whose first step nothing is cached).

        What was encoded anew is not gone back into: its tokens are others than those that were dreamed.
        """
        if count == 0:
            return True
        if self._is_anew and count > self._num_in_clip() - self._num_begun:
            return False
        cached = self._dynamics.transformer.can_rewind(count) and self._decoder.can_rewind(count)
        return cached and self._pending.shape[1] == 1 and count < min(self._num_in_clip(), self._tokens.shape[1])

    def _with(self, dynamics: DynamicsCache, decoder: TransformerCache) -> "Session":
        other = copy.copy(self)
        other._dynamics, other._decoder = dynamics, decoder
        return other
