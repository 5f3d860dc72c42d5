"""What a causal transformer remembers of past frames, so that a new frame costs the same at any time.

Past frames never change and no frame reads a later one. So the keys and values of attention over time and the inputs of
the convolutions over time are kept, in rings of one slot per frame: frame t is at slot t modulo the size. All sizes
are fixed from the start and times are tensors, so that the same kernels run for every frame and a graph can hold them.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from models.components.positions import slopes_on

TAPS = 2  # past frames that a convolution over time reads
# Slots beyond the needed ones: times before 0 must find slots that nothing was written to.
SPARE = TAPS


class Ring:
    """Tensors of the latest `size` frames, (…, size at `dim`, …), zero where no frame was written."""

    def __init__(self, values: Tensor, dim: int):
        self.values, self.dim = values, dim

    @property
    def size(self) -> int:
        return self.values.shape[self.dim]

    def write(self, slots: Tensor, values: Tensor) -> None:
        """slots (n,), values (…, n at `dim`, …): kept until `size` frames later."""
        self.values.index_copy_(self.dim, slots, values.to(self.values.dtype))

    def read(self, slots: Tensor) -> Tensor:
        return self.values.index_select(self.dim, slots)

    def fork(self) -> "Ring":
        return Ring(self.values.clone(), self.dim)

    def select(self, rows: Tensor) -> "Ring":
        return Ring(self.values.index_select(0, rows), self.dim)


class Slots(NamedTuple):
    """Where in the rings the frames of a pass are; the same in every block."""

    attended: Tensor  # (n,) of keys and values
    convolved: Tensor  # (n,) of the inputs of convolutions
    read: Tensor  # (TAPS + n,) there, of the frames before the first and of these


class BlockCache:
    """The rings of one `STBlock`: inputs of its two convolutions, keys and values of its attention over time."""

    def __init__(self, convolved: dict[str, Ring], keys: Ring, values: Ring):
        self.convolved, self.keys, self.values = convolved, keys, values

    @property
    def rings(self) -> list[Ring]:
        return [*self.convolved.values(), self.keys, self.values]

    def map(self, change) -> "BlockCache":
        convolved = {axis: change(ring) for axis, ring in self.convolved.items()}
        return BlockCache(convolved, change(self.keys), change(self.values))


class Borrower(Protocol):
    """Holds the contents of a cache's rings for a while, so that several caches can take turns in the same buffers."""

    def give_back(self) -> None: ...  # copies them into the cache


class TransformerCache:
    """What an `STTransformer` remembers of a batch, and the bias of its attention over space.

    length: frames that are remembered for good; frames written after them are drafts until `commit`.
    window: frames that attention over time reads, its own included. max_new: frames that one pass may add.
    max_rewind: how far behind the furthest frame so far `rewind` may go.
    """

    def __init__(self, blocks: list[BlockCache], spatial_bias: Tensor, *, window: int, max_new: int, max_rewind: int):
        self._blocks, self.spatial_bias = blocks, spatial_bias
        self.window, self.max_new, self.max_rewind = window, max_new, max_rewind
        self.length = 0
        self._num_written = 0
        self._furthest = 0  # slots were overwritten up to here, whatever was rewound since
        self._ahead = torch.arange(max_new, device=spatial_bias.device)
        self._borrower: Borrower | None = None

    @property
    def blocks(self) -> list[BlockCache]:
        """One cache per block, brought back from whoever works on them elsewhere."""
        if self._borrower is not None:
            self._borrower.give_back()
        return self._blocks

    @property
    def layout(self) -> tuple:
        """Caches of which this is equal can take turns in the same buffers; all blocks have rings of the same sizes."""
        rings = (ring.values for ring in self._blocks[0].rings)
        return self.window, self.max_new, self.spatial_bias.dtype, *((ring.shape, ring.dtype) for ring in rings)

    def tensors(self) -> list[Tensor]:
        """The contents of all rings."""
        return [ring.values for block in self.blocks for ring in block.rings]

    def lend(self, borrower: "Borrower | None") -> None:
        """From now on the borrower has the rings' contents, until it gives them back and None follows it."""
        self._borrower = borrower

    @staticmethod
    def num_slots(window: int, max_new: int, max_rewind: int) -> tuple[int, int]:
        """Slots of the rings of attention and of the convolutions."""
        return window + max_new + max_rewind, TAPS + max_new + max_rewind + SPARE

    def now(self) -> Tensor:
        """The time of the next frame, () int64, on the device."""
        return torch.full((), self.length, device=self._ahead.device)

    def times(self, now: Tensor, count: int, *, skipped: int = 0) -> Tensor:
        """The times of the `count` frames that follow `skipped` ones from `now` on, (count,)."""
        return self._ahead[skipped : skipped + count] + now

    def slots_of(self, times: Tensor) -> Slots:
        """The slots of frames at `times` (n,), one after the other."""
        block = self._blocks[0]
        size = block.convolved["temporal"].size
        read = torch.arange(-TAPS, len(times), device=times.device) + times[:1]
        return Slots(times % block.keys.size, times % size, read % size)

    def draft(self, count: int) -> None:
        """Passes will write the next `count` frames, again and again, until `commit`."""
        assert 0 < count <= self.max_new, (count, self.max_new)
        self._num_written = self.length + count

    def commit(self, count: int) -> None:
        """Remember the next `count` drafted frames for good."""
        assert self.length + count <= self._num_written, (self.length, count, self._num_written)
        self.length += count
        self._furthest = max(self._furthest, self.length)

    def can_rewind(self, count: int) -> bool:
        """Whether the last `count` frames can be forgotten: what came before them is still in the rings."""
        return 0 <= count <= self.length and self._furthest - (self.length - count) <= self.max_rewind

    def rewind(self, count: int) -> None:
        """Forget the last `count` frames."""
        assert self.can_rewind(count), (count, self.length, self._furthest, self.max_rewind)
        self.length -= count
        self._num_written = self.length

    def fork(self) -> "TransformerCache":
        return self._like([block.map(Ring.fork) for block in self.blocks])

    def select(self, rows: Tensor) -> "TransformerCache":
        """These clips of the batch."""
        return self._like([block.map(lambda ring: ring.select(rows)) for block in self.blocks])

    def num_bytes(self) -> int:
        return sum(ring.values.nbytes for block in self._blocks for ring in block.rings)

    def _like(self, blocks: list[BlockCache]) -> "TransformerCache":
        sizes = {"window": self.window, "max_new": self.max_new, "max_rewind": self.max_rewind}
        other = TransformerCache(blocks, self.spatial_bias, **sizes)
        other.length, other._num_written, other._furthest = self.length, self._num_written, self._furthest
        return other


def ring_bias(times: Tensor, size: int, window: int, heads: int) -> Tensor:
    """`causal_alibi` of the frames at `times` (n,) against the slots of a ring of `size`: (heads, n, size).

    The last of `times` is the newest frame in the ring.
    """
    newest = times[-1]
    slots = torch.arange(size, device=times.device)
    held = newest - (newest - slots) % size  # the time of the frame in each slot
    distance = times[:, None] - held
    is_seen = (distance >= 0) & (distance < window) & (held >= 0)
    slopes = slopes_on(times.device, heads)
    bias = -distance.float() * slopes[:, None, None]
    return bias.masked_fill(~is_seen, float("-inf"))
