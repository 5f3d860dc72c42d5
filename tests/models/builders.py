"""Tiny models of every kind, for tests: 16x16 frames, a 4x4 token grid."""

from functools import partial

import torch

from data.clips import Clip
from models.actions import LatentActions, RecordedActions
from models.components.quantizers import FiniteScalarQuantizer, VectorQuantizer
from models.dynamics import MaskGIT
from models.genie_redux import WorldModel
from models.lam import LatentActionModel
from models.tokenizer import STViViT

NUM_ACTIONS = 7
SIZES = {"image_size": (16, 16), "channels": 3, "patch_size": 4, "dim": 32, "heads": 2, "dim_head": 16, "ff_mult": 4}
PUBLISHED = {"feed_forwards": "both", "norm_keys": False}
LEAN = {"feed_forwards": "last", "norm_keys": True}
LAYOUTS = {"published": PUBLISHED, "lean": LEAN}
QUANTIZERS = {
    "vq": partial(
        VectorQuantizer,
        codebook_size=12,
        codebook_dim=8,
        commitment=0.25,
        dead_code_steps=None,
        normalize_codes=False,
    ),
    "vq-revived": partial(
        VectorQuantizer, codebook_size=12, codebook_dim=8, commitment=0.25, dead_code_steps=2, normalize_codes=True
    ),
    "fsq": partial(FiniteScalarQuantizer, levels=[3, 4]),
}


def tokenizer(quantizer="vq", layout="published") -> STViViT:
    return STViViT(
        **SIZES,
        **LAYOUTS[layout],
        encoder_blocks=1,
        decoder_blocks=1,
        norm_pixels=layout == "published",
        reconstruction_loss="mse",
        quantizer=QUANTIZERS[quantizer],
    )


def lam(layout="published") -> LatentActionModel:
    quantizer = partial(
        VectorQuantizer,
        codebook_size=NUM_ACTIONS,
        codebook_dim=8,
        commitment=0.25,
        dead_code_steps=None,
        normalize_codes=False,
    )
    return LatentActionModel(
        **SIZES,
        **LAYOUTS[layout],
        encoder_blocks=1,
        decoder_blocks=1,
        norm_pixels=layout == "published",
        quantizer=quantizer,
    )


def actions(kind="recorded", layout="published"):
    return (
        RecordedActions(num_actions=NUM_ACTIONS) if kind == "recorded" else LatentActions(lam=lam(layout), detach=False)
    )


def dynamics(conditioning="concat", rule="next", layout="published", **changes) -> partial:
    settings = {
        "max_seq_len": 16 * 8 if layout == "published" else None,
        "mask_rate": (0.5, 1.0) if layout == "published" else (0.0, 0.2),
        "loss_on": "masked" if layout == "published" or rule == "in_place" else "all",
        "loss_reduction": "clip",
        "token_input": "learned" if layout == "published" else "both",
        "token_output": "linear" if layout == "published" else "tied",
        "embedding_gradient": 0.1 if layout == "published" else 1.0,
    }
    if rule == "in_place":
        settings["mask_rate"] = (0.5, 1.0)
    return partial(
        MaskGIT,
        dim=32,
        heads=2,
        dim_head=16,
        blocks=2,
        ff_mult=4,
        conditioning=conditioning,
        rule=rule,
        **LAYOUTS[layout],
        **settings | changes,
    )


WORLDS = {
    "guided-published": ("recorded", "concat", "next", "published"),
    "latent-published": ("latent", "add", "next", "published"),
    "guided-film": ("recorded", "film", "next", "lean"),
    "latent-film": ("latent", "film", "next", "lean"),
    "guided-in-place": ("recorded", "film", "in_place", "lean"),
    "latent-in-place": ("latent", "add", "in_place", "published"),
}


def world(name="guided-published", quantizer="vq") -> WorldModel:
    kind, conditioning, rule, layout = WORLDS[name]
    return WorldModel(
        tokenizer=tokenizer(quantizer, layout),
        actions=actions(kind, layout),
        dynamics=dynamics(conditioning, rule, layout),
    )


def clip(batch=2, num_frames=5, seed=0) -> Clip:
    """Float frames and actions that look like nothing, but differ everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return Clip(
        frames=torch.rand(batch, num_frames, 3, 16, 16, generator=generator),
        actions=torch.randint(NUM_ACTIONS, (batch, num_frames - 1), generator=generator),
        seeds=torch.arange(batch) + 100 * seed,
    )


def settle(module: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter off its start value, so that no path is hidden behind a zero, and switch to eval mode."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()
