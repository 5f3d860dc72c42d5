"""The latent action model: it finds the player's buttons in unlabelled video (Genie, section 2.1)."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.components.attention import WideLayerNorm
from models.components.patches import PatchEmbedding, PixelHead, check_image_size
from models.components.positions import ContinuousPositionBias
from models.components.quantizers import count_codes, perplexity
from models.components.st_transformer import STTransformer
from models.interfaces import StepOutput


class LatentActionModel(nn.Module):
    """A VQ-VAE over frame transitions.

    The encoder sees frames 0..t+1 and names action t; the decoder sees frames 0..t and that action and must draw frame
    t+1. What is new in frame t+1 can reach the decoder through the action code alone.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        channels: int,
        patch_size: int,
        dim: int,
        heads: int,
        dim_head: int,
        encoder_blocks: int,
        decoder_blocks: int,
        ff_mult: float,
        feed_forwards: str,
        norm_keys: bool,
        norm_pixels: bool,
        quantizer: Callable[..., nn.Module],
    ):
        super().__init__()
        self.image_size = check_image_size(image_size, patch_size)
        self.grid = (self.image_size[0] // patch_size, self.image_size[1] // patch_size)
        self.dim = dim
        self.patch_embedding = PatchEmbedding(channels, patch_size, dim, norm_pixels=norm_pixels)
        self.spatial_bias = ContinuousPositionBias(dim, heads)
        sizes = {"feed_forwards": feed_forwards, "norm_keys": norm_keys}
        self.encoder = STTransformer(dim, heads, dim_head, encoder_blocks, ff_mult, order="spatial_first", **sizes)
        self.to_action = nn.Sequential(nn.Linear(self.grid[0] * self.grid[1] * dim, dim), WideLayerNorm(dim))
        self.quantizer = quantizer(dim=dim)
        self.decoder = STTransformer(dim, heads, dim_head, decoder_blocks, ff_mult, order="temporal_first", **sizes)
        self.to_pixels = PixelHead(channels, patch_size, dim)
        self.num_actions = self.quantizer.codebook_size

    def forward(self, frames: Tensor) -> tuple[Tensor, StepOutput]:
        """frames (B, T, C, H, W) -> action vectors (B, T-1, D) and the loss: next-frame MSE + quantizer."""
        bias = self.spatial_bias(self.grid)
        patches = self.patch_embedding(frames)
        quantized = self.quantizer(self._vectors(patches, bias))
        predicted = self._draw(patches, quantized.vectors, bias)
        reconstruction = F.mse_loss(predicted.float(), frames[:, 1:])
        counts = count_codes(quantized.indices, self.num_actions)
        logs = {
            "lam_reconstruction": reconstruction.detach(),
            "lam_quantizer": quantized.loss.detach(),
            "actions_used": perplexity(counts),
        }
        return quantized.vectors, StepOutput(reconstruction + quantized.loss, logs)

    def vectors(self, frames: Tensor) -> Tensor:
        """Action vectors before quantisation, (B, T-1, D)."""
        return self._vectors(self.patch_embedding(frames), self.spatial_bias(self.grid))

    def indices(self, frames: Tensor) -> Tensor:
        """The latent action of every transition, (B, T-1)."""
        return self.quantizer.indices(self.vectors(frames))

    def embed(self, indices: Tensor) -> Tensor:
        """(…) -> (…, D), the vectors that `forward` returns for these codes."""
        return self.quantizer.project_out(F.embedding(indices, self.quantizer.codebook()))

    def predict(self, frames: Tensor) -> "NextFrames":
        """The decoder's next frames for the actions found in `frames`: what the action codes alone can explain."""
        bias = self.spatial_bias(self.grid)
        patches = self.patch_embedding(frames)
        quantized = self.quantizer(self._vectors(patches, bias))
        return NextFrames(self._draw(patches, quantized.vectors, bias), quantized.indices)

    def _vectors(self, patches: Tensor, bias: Tensor) -> Tensor:
        encoded = self.encoder(patches, bias)
        return self.to_action(encoded[:, 1:].flatten(2))

    def _draw(self, patches: Tensor, actions: Tensor, bias: Tensor) -> Tensor:
        return self.to_pixels(self.decoder(patches[:, :-1] + actions[:, :, None, None], bias))


class NextFrames(NamedTuple):
    frames: Tensor  # (B, T-1, C, H, W), predictions of frames 1..T-1
    indices: Tensor  # (B, T-1)
