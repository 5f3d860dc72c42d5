"""The spatiotemporal transformer that tokenizer, latent action model and dynamics share."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.components.attention import Attention, BiaslessLayerNorm, GatedFeedForward
from models.components.position_generator import PositionGenerator
from models.components.positions import causal_alibi
from models.components.recompute import add

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
        self.axes = axes
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
            feed_forward = getattr(self, f"{axis}_ff", None)
            if feed_forward is not None:
                x = add(x, feed_forward(x))
        return x


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

    def forward(self, x: Tensor, spatial_bias: Tensor, condition: Tensor | None = None) -> Tensor:
        """x: (B, T, h, w, D); spatial_bias: (heads, h·w, h·w); condition: (B, T, modulation_dim)."""
        temporal_bias = causal_alibi(x.shape[1], self.heads, x.device)
        biases = {"spatial": spatial_bias, "temporal": temporal_bias}
        run = self._checkpointed if self.gradient_checkpointing and torch.is_grad_enabled() else self._block
        for index in range(len(self.layers)):
            x = run(index, x, biases, condition)
        return self.norm_out(x)

    def _checkpointed(self, *inputs) -> Tensor:
        # Blocks draw no random numbers, so there is no generator to wind back.
        return checkpoint(self._block, *inputs, use_reentrant=False, preserve_rng_state=False)

    def _block(self, index: int, x: Tensor, biases: dict[str, Tensor], condition: Tensor | None) -> Tensor:
        if self.modulations is not None:
            assert condition is not None, "a modulated transformer needs its condition"
            scale, shift = self.modulations[index](condition)[:, :, None, None].chunk(2, dim=-1)
            x = torch.addcmul(x + shift, x, scale)
        return self.layers[index](x, biases)
