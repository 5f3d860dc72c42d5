"""The spatiotemporal transformer that tokenizer, latent action model and dynamics share."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.components.attention import Attention, BiaslessLayerNorm, GatedFeedForward
from models.components.cache import BlockCache, Ring, Slots, TransformerCache, ring_bias
from models.components.position_generator import PositionGenerator
from models.components.positions import causal_alibi
from models.components.recompute import add, product_dtype

AXES = ("spatial", "temporal")
AXIS_DIM = {"spatial": 2, "temporal": 1}  # of (B, T, h·w, D)


class STBlock(nn.Module):
    """A spatial and a temporal half; each is position generator, attention, feed-forward, all residual.

    As published both halves have a feed-forward (`feed_forwards="both"`). Genie drops the first of the two
    (Bruce et al., 2024, section 2): `feed_forwards="last"`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        ff_mult: float,
        *,
        axes: tuple[str, str],
        feed_forwards: str,
        norm_keys: bool,
    ):
        super().__init__()
        self.axes, self.heads, self.dim_head = axes, heads, dim_head
        for axis in AXES:
            self.add_module(f"{axis}_peg", PositionGenerator(dim))
            self.add_module(f"{axis}_attention", Attention(dim, heads, dim_head, norm_keys=norm_keys))
            if feed_forwards == "both" or axis == axes[-1]:
                self.add_module(f"{axis}_ff", GatedFeedForward(dim, ff_mult))

    def forward(self, x: Tensor, biases: dict[str, Tensor]) -> Tensor:
        """x: (B, T, h, w, D)."""
        for axis in self.axes:
            x = self.get_submodule(f"{axis}_peg")(x)
            rows = x.flatten(2, 3)
            attention = self.get_submodule(f"{axis}_attention")
            x = add(rows, attention(rows, biases[axis], dim=AXIS_DIM[axis])).view_as(x)
            x = self._feed_forward(axis, x)
        return x

    def extend(self, x: Tensor, biases: dict[str, Tensor], cache: BlockCache, slots: Slots) -> Tensor:
        """`forward` for the frames x (B, n, h, w, D) alone, which go to `slots`; those before them are in the cache."""
        for axis in self.axes:
            x = self.get_submodule(f"{axis}_peg").extend(x, cache.convolved[axis], slots)
            rows = x.flatten(2, 3)
            attention = self.get_submodule(f"{axis}_attention")
            if axis == "temporal":
                branch = attention.extend(rows, biases[axis], cache, slots.attended)
            else:
                branch = attention(rows, biases[axis], dim=AXIS_DIM[axis])
            x = self._feed_forward(axis, add(rows, branch).view_as(x))
        return x

    def _feed_forward(self, axis: str, x: Tensor) -> Tensor:
        feed_forward = getattr(self, f"{axis}_ff", None)
        return x if feed_forward is None else add(x, feed_forward(x))

    def start(self, like: Tensor, slots: int, slots_convolved: int) -> BlockCache:
        """An empty cache for frames (B, 1, h, w, D) such as `like`."""
        batch, _, h, w, _ = like.shape
        convolved = {axis: Ring(like.new_zeros(batch, slots_convolved, *like.shape[2:]), 1) for axis in AXES}
        keys, values = (
            Ring(like.new_zeros(batch, h * w, self.heads, slots, self.dim_head, dtype=product_dtype(like)), 3)
            for _ in range(2)
        )
        return BlockCache(convolved, keys, values)


class STTransformer(nn.Module):
    """A stack of blocks and a final norm. Causal in time: frame t never reads a later frame.

    order: "spatial_first" (encoders, dynamics) or "temporal_first" (decoders).
    modulation_dim: width of a per-frame condition that scales and shifts the stream before every block
    (FiLM, Perez et al., 2018); None for none, as published.
    gradient_checkpointing: an attribute, false at first. True keeps a block's input alone for the backward pass, which
    runs the block again.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        blocks: int,
        ff_mult: float,
        *,
        order: str = "spatial_first",
        feed_forwards: str = "both",
        norm_keys: bool = False,
        modulation_dim: int | None = None,
    ):
        super().__init__()
        if feed_forwards not in ("both", "last"):
            raise ValueError(f"feed_forwards is {feed_forwards!r}, expected both or last")
        self.heads = heads
        self.gradient_checkpointing = False
        axes = AXES if order == "spatial_first" else AXES[::-1]
        self.layers = nn.ModuleList(
            STBlock(dim, heads, dim_head, ff_mult, axes=axes, feed_forwards=feed_forwards, norm_keys=norm_keys)
            for _ in range(blocks)
        )
        self.norm_out = BiaslessLayerNorm(dim)
        self.modulations = None
        if modulation_dim is not None:
            self.modulations = nn.ModuleList(nn.Linear(modulation_dim, 2 * dim) for _ in range(blocks))
            for layer in self.modulations:  # start as the identity
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, spatial_bias: Tensor, condition: Tensor | None = None, *, window: int | None = None
    ) -> Tensor:
        """x: (B, T, h, w, D); spatial_bias: (heads, h·w, h·w); condition: (B, T, modulation_dim).

        window: frames that attention over time reads, its own included; None for all.
        """
        temporal_bias = causal_alibi(x.shape[1], self.heads, x.device, window)
        biases = {"spatial": spatial_bias, "temporal": temporal_bias}
        run = self._checkpointed if self.gradient_checkpointing and torch.is_grad_enabled() else self._block
        for index in range(len(self.layers)):
            x = run(index, x, biases, condition)
        return self.norm_out(x)

    def start(
        self, batch: int, grid: tuple[int, int], spatial_bias: Tensor, *, window: int, max_new: int, max_rewind: int
    ) -> TransformerCache:
        """An empty cache for inputs (batch, …, *grid, D); the sizes are those of `TransformerCache`."""
        like = self.norm_out.gamma.new_zeros(batch, 1, *grid, len(self.norm_out.gamma))
        num_slots = TransformerCache.num_slots(window, max_new, max_rewind)
        blocks = [layer.start(like, *num_slots) for layer in self.layers]
        return TransformerCache(blocks, spatial_bias, window=window, max_new=max_new, max_rewind=max_rewind)

    def extend(self, x: Tensor, condition: Tensor | None, cache: TransformerCache, times: Tensor) -> Tensor:
        """The last n rows of `forward` of all frames so far, for the frames x (B, n, h, w, D) at `times` (n,).

        The frames become drafts of the cache: passes at the same time replace them until `cache.commit`. Asks the
        device for nothing, so that a graph can record it.
        """
        blocks, slots = cache.blocks, cache.slots_of(times)
        temporal_bias = ring_bias(times, blocks[0].keys.size, cache.window, self.heads)
        biases = {"spatial": cache.spatial_bias.to(product_dtype(x)), "temporal": temporal_bias.to(product_dtype(x))}
        for index, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            x = layer.extend(self._modulated(index, x, condition), biases, block, slots)
        return self.norm_out(x)

    def _checkpointed(self, *inputs) -> Tensor:
        # Blocks draw no random numbers, so there is no generator to wind back.
        return checkpoint(self._block, *inputs, use_reentrant=False, preserve_rng_state=False)

    def _block(self, index: int, x: Tensor, biases: dict[str, Tensor], condition: Tensor | None) -> Tensor:
        return self.layers[index](self._modulated(index, x, condition), biases)

    def _modulated(self, index: int, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.modulations is None:
            return x
        assert condition is not None, "a modulated transformer needs its condition"
        scale, shift = self.modulations[index](condition)[:, :, None, None].chunk(2, dim=-1)
        return torch.addcmul(x + shift, x, scale)
