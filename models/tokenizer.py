"""ST-ViViT: a video tokenizer that is causal in time (Genie, Bruce et al., 2024, section 2.1)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components.cache import TransformerCache
from models.components.patches import PatchEmbedding, PixelHead, check_image_size
from models.components.positions import ContinuousPositionBias
from models.components.quantizers import count_codes, perplexity
from models.components.st_transformer import STTransformer
from models.interfaces import Clip, StepOutput

LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}


class STViViT(nn.Module):
    """Frames (B, T, C, H, W) to tokens (B, T, h, w) and back; token frame t depends on frames 0..t.

    quantizer: a constructor that takes the width; the others are sizes. Loss: reconstruction + quantizer.
    image_size: (H, W), or None for any that the patches divide, since no weight depends on it (`image_size` and `grid`
        are None then). Published files do not tell it.
    """

    stride = 1

    def __init__(
        self,
        *,
        image_size: tuple[int, int] | None,
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
        reconstruction_loss: str,
        quantizer: Callable[..., nn.Module],
    ):
        super().__init__()
        if reconstruction_loss not in LOSSES:
            raise ValueError(
                f"tokenizer.reconstruction_loss is {reconstruction_loss!r}, expected {' or '.join(LOSSES)}"
            )
        self.patch_size = patch_size
        self.image_size = None if image_size is None else check_image_size(image_size, patch_size)
        self.reconstruction_loss = LOSSES[reconstruction_loss]
        self.patch_embedding = PatchEmbedding(channels, patch_size, dim, norm_pixels=norm_pixels)
        self.spatial_bias = ContinuousPositionBias(dim, heads)
        sizes = {"feed_forwards": feed_forwards, "norm_keys": norm_keys}
        self.encoder = STTransformer(dim, heads, dim_head, encoder_blocks, ff_mult, order="spatial_first", **sizes)
        self.quantizer = quantizer(dim=dim)
        self.decoder = STTransformer(dim, heads, dim_head, decoder_blocks, ff_mult, order="temporal_first", **sizes)
        self.to_pixels = PixelHead(channels, patch_size, dim)
        self.codebook_size = self.quantizer.codebook_size
        self.code_dim = self.quantizer.code_dim

    def fix_image_size(self, image_size: tuple[int, int]) -> None:
        """Take frames of this (H, W) only. Raises ValueError where the tokenizer has another size."""
        if self.image_size is not None and tuple(image_size) != self.image_size:
            raise ValueError(f"the tokenizer takes frames of {self.image_size}, but {tuple(image_size)} are needed")
        self.image_size = check_image_size(image_size, self.patch_size)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Tokens per frame, (h, w); None where frames may have any size."""
        return None if self.image_size is None else self._grid_of(self.image_size)

    def forward(self, clip: Clip, step: int) -> StepOutput:
        bias = self.spatial_bias(self._grid_of(clip.frames.shape[-2:]))
        quantized = self.quantizer(self._features(clip.frames, bias))
        frames = self._draw(quantized.vectors, bias)
        reconstruction = self.reconstruction_loss(frames.float(), clip.frames)
        loss = reconstruction + quantized.loss
        counts = count_codes(quantized.indices, self.codebook_size)
        logs = {
            "reconstruction": reconstruction.detach(),
            "quantizer": quantized.loss.detach(),
            "codes_used": perplexity(counts),
        }
        return StepOutput(loss, logs)

    def encode(self, frames: Tensor) -> Tensor:
        bias = self.spatial_bias(self._grid_of(frames.shape[-2:]))
        return self.quantizer.indices(self._features(frames, bias))

    def codebook(self) -> Tensor:
        return self.quantizer.codebook()

    def decode(self, tokens: Tensor, *, window: int | None = None) -> Tensor:
        """(B, T, h, w) -> (B, T, C, H, W), unclamped: metrics, pictures and players clamp.

        window: frames that attention over time reads; None for all.
        """
        return self._draw(self._vectors(tokens), self.spatial_bias(tuple(tokens.shape[2:])), window=window)

    def start_decoding(
        self, batch: int, grid: tuple[int, int], *, window: int, max_new: int, max_rewind: int
    ) -> TransformerCache:
        """A cache without frames for `decode_next`; the sizes are those of `TransformerCache`."""
        sizes = {"window": window, "max_new": max_new, "max_rewind": max_rewind}
        return self.decoder.start(batch, tuple(grid), self.spatial_bias(tuple(grid)), **sizes)

    def decode_next(self, tokens: Tensor, cache: TransformerCache) -> Tensor:
        """The last frames of `decode`, for the last tokens (B, n, h, w) alone; they are in the cache afterwards."""
        pictures = []
        for part in tokens.split(cache.max_new, dim=1):
            cache.draft(part.shape[1])
            pictures.append(self.draw_next(part, cache, cache.now(), is_start=cache.length == 0))
            cache.commit(part.shape[1])
        return torch.cat(pictures, dim=1)

    def draw_next(self, tokens: Tensor, cache: TransformerCache, now: Tensor, *, is_start: bool) -> Tensor:
        """What `decode_next` does with as many tokens as the cache takes at a time, from the time `now` () on.

        is_start: whether that is time 0. Reads nothing but tensors, so that a graph can record it.
        """
        features = self.decoder.extend(self._vectors(tokens), None, cache, cache.times(now, tokens.shape[1]))
        return self.to_pixels(features, is_start=is_start)

    def _vectors(self, tokens: Tensor) -> Tensor:
        return self.quantizer.project_out(F.embedding(tokens, self.codebook()))

    def _features(self, frames: Tensor, bias: Tensor) -> Tensor:
        assert frames.is_floating_point(), f"frames must be float in [0, 1], got {frames.dtype}"
        return self.encoder(self.patch_embedding(frames), bias)

    def _grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """The token grid of frames of this (H, W). Raises ValueError unless the tokenizer takes them."""
        if self.image_size is not None and tuple(size) != self.image_size:
            h, w = self.image_size
            raise ValueError(
                f"frames are {size[0]}x{size[1]}, the tokenizer expects {h}x{w}: "
                "choose another train.dataset_name (eval.dataset_name) or a tokenizer trained at that size"
            )
        h, w = check_image_size(size, self.patch_size)
        return h // self.patch_size, w // self.patch_size

    def _draw(self, vectors: Tensor, bias: Tensor, *, window: int | None = None) -> Tensor:
        return self.to_pixels(self.decoder(vectors, bias, window=window))
