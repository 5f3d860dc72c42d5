"""The spatiotemporal transformer that tokenizer, latent action model and dynamics share."""

import torch
from torch import Tensor, nn

from models.components.attention import Attention, BiaslessLayerNorm, GatedFeedForward, PositionGenerator
from models.components.positions import causal_alibi

AXES = ("spatial", "temporal")


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
        batch, num_frames, h, w, dim = x.shape
        for axis in self.axes:
            x = x + self.get_submodule(f"{axis}_peg")(x)
            attention = self.get_submodule(f"{axis}_attention")
            if axis == "spatial":
                x = x + attention(x.reshape(-1, h * w, dim), biases[axis]).view_as(x)
            else:
                rows = x.reshape(batch, num_frames, h * w, dim).transpose(1, 2).reshape(-1, num_frames, dim)
                out = attention(rows, biases[axis])
                x = x + out.view(batch, h * w, num_frames, dim).transpose(1, 2).reshape(x.shape)
            feed_forward = getattr(self, f"{axis}_ff", None)
            if feed_forward is not None:
                x = x + feed_forward(x)
        return x


class STTransformer(nn.Module):
    """A stack of blocks and a final norm. Causal in time: frame t never reads a later frame.

    order: "spatial_first" (encoders, dynamics) or "temporal_first" (decoders).
    modulation_dim: width of a per-frame condition that scales and shifts the stream before every block
    (FiLM, Perez et al., 2018); None for none, as published.
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
        for index, layer in enumerate(self.layers):
            if self.modulations is not None:
                assert condition is not None, "a modulated transformer needs its condition"
                scale, shift = self.modulations[index](condition)[:, :, None, None].chunk(2, dim=-1)
                x = torch.addcmul(x + shift, x, scale)
            x = layer(x, biases)
        return self.norm_out(x)
