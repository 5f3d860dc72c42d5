"""Frames to patch embeddings and back; the first frame has layers of its own, as published."""

import torch
from einops import rearrange
from torch import Tensor, nn

from models.components.attention import WideLayerNorm


def check_image_size(image_size, patch_size: int) -> tuple[int, int]:
    """(H, W) as ints. Raises ValueError unless the patch size divides both."""
    h, w = (int(size) for size in image_size)
    if h % patch_size or w % patch_size:
        raise ValueError(
            f"image_size {h}x{w} is not a multiple of patch_size {patch_size}; set patch_size to a divisor of both"
        )
    return h, w


def to_patches(frames: Tensor, patch_size: int) -> Tensor:
    """(B, T, C, H, W) -> (B, T, h, w, C·p·p)."""
    return rearrange(frames, "b t c (h p) (w q) -> b t h w (c p q)", p=patch_size, q=patch_size)


def from_patches(patches: Tensor, patch_size: int) -> Tensor:
    """(B, T, h, w, C·p·p) -> (B, T, C, H, W)."""
    return rearrange(patches, "b t h w (c p q) -> b t c (h p) (w q)", p=patch_size, q=patch_size)


class PatchEmbedding(nn.Module):
    """LayerNorm, Linear, LayerNorm on flattened patches, with separate weights for frame 0.

    norm_pixels: the first LayerNorm, as published. It takes a patch's brightness and contrast away; without it small
    models learn faster.
    """

    def __init__(self, channels: int, patch_size: int, dim: int, *, norm_pixels: bool):
        super().__init__()
        self.patch_size = patch_size
        width = channels * patch_size**2
        self.first, self.rest = (
            nn.Sequential(
                WideLayerNorm(width) if norm_pixels else nn.Identity(), nn.Linear(width, dim), WideLayerNorm(dim)
            )
            for _ in range(2)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, T, h, w, D)."""
        patches = to_patches(frames, self.patch_size)
        return torch.cat([self.first(patches[:, :1]), self.rest(patches[:, 1:])], dim=1)


class PixelHead(nn.Module):
    """Linear back to pixels, no activation, with separate weights for the first frame drawn."""

    def __init__(self, channels: int, patch_size: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.first, self.rest = (nn.Linear(dim, channels * patch_size**2) for _ in range(2))

    def forward(self, x: Tensor, *, is_start: bool = True) -> Tensor:
        """(B, T, h, w, D) -> (B, T, C, H, W). is_start: whether the first of these frames is its clip's first."""
        num_first = 1 if is_start else 0
        patches = self.rest(x[:, num_first:])
        if is_start:
            patches = torch.cat([self.first(x[:, :1]), patches], dim=1)
        return from_patches(patches, self.patch_size)
