"""The file format of the published GenieRedux weights: their names and ours, both ways.

A file is `torch.save({"step", "model", "optim", "scaler"})`. `model` is a state dict: flat for a tokenizer,
`{"dynamics": …}` for a world with recorded actions, `{"dynamics": …, "latent_action_model": …}` for latent ones. A
world's file holds no tokenizer and no file holds a size; all sizes are read from shapes. Two things leave no trace:

- Square frames are assumed for the latent action model, whose one large layer tells the number of tokens per frame.
- Nothing in a tokenizer depends on the size of the frames, so a published one takes any that its patches divide
  (`image_size` null); beside a latent action model it takes the size of that.

Some entries exist in the format alone: `DEAD` ones never enter a computation. They are dropped on the way in and
written with inert values on the way out.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.actions import LatentActions
from models.components.attention import Attention
from models.components.patches import PatchEmbedding
from models.components.quantizers import VectorQuantizer
from models.components.st_transformer import AXES, STBlock
from models.dynamics import MaskGIT, NextFrameRule

DEAD = None
CODEBOOK = "vq._codebook.embed"  # (1, K, 32) in the format, (K, 32) in ours
COMMITMENT = 0.25
LISTED = 20  # names in an error
LAYER = ("weight", "bias")

# What one half of a block holds, after "spatial_" or "temporal_": published -> ours.
HALF = {
    **{name: name for name in ("peg.dsconv.weight", "peg.dsconv.bias")},
    **{f"attention.{name}": f"attention.{name}" for name in ("norm.gamma", "norm.beta", "q_scale", "k_scale")},
    **{f"attention.{name}.weight": f"attention.{name}.weight" for name in ("to_q", "to_kv", "to_out")},
    **{f"attention.context_norm.{name}": DEAD for name in ("gamma", "beta")},  # a norm for cross-attention only
    **{f"ff.0.{name}": f"ff.norm.{name}" for name in LAYER},
    "ff.1.weight": "ff.expand.weight",
    "ff.4.weight": "ff.contract.weight",
}

Names = dict[str, str | None]
State = dict[str, Tensor]


# --------------------------------------------------------------------------------------------------------------- names


def tokenizer_names(encoder_blocks: int, decoder_blocks: int) -> Names:
    """Published name -> our name, or DEAD, for everything that a tokenizer's file may hold."""
    names = _stack("encoder", "encoder", encoder_blocks) | _stack("decoder", "decoder", decoder_blocks)
    names |= _position_bias("spatial_rel_pos_bias", "spatial_bias")
    for theirs, ours in (("_first_frame", "first"), ("", "rest")):
        for index in range(3):  # theirs has a reshape in front
            names |= _layer(f"to_patch_emb{theirs}.{index + 1}", f"patch_embedding.{ours}.{index}")
        names |= _layer(f"to_pixels{theirs}.0", f"to_pixels.{ours}")
    names |= _layer("vq.project_in", "quantizer.project_in") | _layer("vq.project_out", "quantizer.project_out")
    names[CODEBOOK] = "quantizer.embed"
    # Statistics of a codebook that follows a moving average; the published one is trained by gradients.
    return names | {f"vq._codebook.{name}": DEAD for name in ("embed_avg", "cluster_size", "initted")}


def lam_names(encoder_blocks: int, decoder_blocks: int) -> Names:
    """As `tokenizer_names`, for a latent action model."""
    names = tokenizer_names(encoder_blocks, decoder_blocks)
    return names | _layer("to_action_emb.1", "to_action.0") | _layer("to_action_emb.2", "to_action.1")


def dynamics_names(blocks: int) -> Names:
    """As `tokenizer_names`, for the dynamics."""
    names = _stack("maskgit.transformer", "transformer", blocks)
    names |= _position_bias("maskgit.continuous_pos_bias", "spatial_bias")
    names |= {f"maskgit.{name}.weight": f"{name}.weight" for name in ("token_emb", "pos_emb")}
    return names | _layer("maskgit.to_logits", "to_logits")


def _stack(theirs: str, ours: str, blocks: int) -> Names:
    names = {f"{theirs}.norm_out.{name}": f"{ours}.norm_out.{name}" for name in ("gamma", "beta")}
    for index in range(blocks):
        for axis in AXES:
            for name, renamed in HALF.items():
                target = DEAD if renamed is DEAD else f"{ours}.layers.{index}.{axis}_{renamed}"
                names[f"{theirs}.layers.{index}.0.{axis}_{name}"] = target
    return names


def _position_bias(theirs: str, ours: str) -> Names:
    return {f"{theirs}.net.{i}.{name}": f"{ours}.net.{i}.{name}" for i in ("0.0", "1.0", "2") for name in LAYER}


def _layer(theirs: str, ours: str) -> Names:
    return {f"{theirs}.{name}": f"{ours}.{name}" for name in LAYER}


# ------------------------------------------------------------------------------------------------------------- reading


def from_published(file: Any) -> tuple[dict, State]:
    """What a published file holds: the config from which our model is built, and that model's state.

    file: as `torch.load` gives it. A world's config names no tokenizer (`tokenizer.path` is null). Raises ValueError
    that lists the names where an entry is missing or unexpected.
    """
    if not isinstance(file, Mapping) or not isinstance(file.get("model"), Mapping):
        raise ValueError("it has no entry 'model' with weights; expected {step, model, optim, scaler}")
    parts = _parts(file["model"])
    if set(parts) == {"tokenizer"}:
        return _read_tokenizer(parts["tokenizer"])
    if "dynamics" not in parts or not set(parts) <= {"dynamics", "latent_action_model"}:
        raise ValueError(
            f"its model has the parts {', '.join(sorted(parts))}; expected a tokenizer's weights, dynamics, "
            "or dynamics and latent_action_model"
        )
    return _read_world(parts["dynamics"], parts.get("latent_action_model"))


def _parts(model: Mapping[str, Any]) -> dict[str, State]:
    """A file's state dicts by part, whether they were nested or flat."""
    is_nested = any(isinstance(value, Mapping) for value in model.values())
    if is_nested:
        parts = {str(name): value for name, value in model.items()}
    elif any(str(name).startswith("dynamics.") for name in model):
        parts = {}
        for name, value in model.items():
            part, _, rest = str(name).partition(".")
            parts.setdefault(part, {})[rest] = value
    else:
        is_dynamics = any(str(name).startswith("maskgit.") for name in model)
        parts = {"dynamics" if is_dynamics else "tokenizer": dict(model)}
    for part, state in parts.items():
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(f"its part {part} holds something other than named tensors")
    return parts


def _read_tokenizer(state: State) -> tuple[dict, State]:
    encoder_blocks, decoder_blocks = _blocks(state, "encoder.layers"), _blocks(state, "decoder.layers")
    renamed = _rename(state, tokenizer_names(encoder_blocks, decoder_blocks), "")
    sizes = _video_sizes(state) | {"encoder_blocks": encoder_blocks, "decoder_blocks": decoder_blocks}
    config = {"_target_": "models.tokenizer.STViViT", "image_size": None, "reconstruction_loss": "mse", **sizes}
    return config, renamed


def _read_world(dynamics: State, lam: State | None) -> tuple[dict, State]:
    blocks = _blocks(dynamics, "maskgit.transformer.layers")
    state = _rename(dynamics, dynamics_names(blocks), "dynamics.")
    renamed = {f"dynamics.{name}": value for name, value in state.items()}
    _, dim = _shape(dynamics, "maskgit.token_emb.weight", 2)
    (width,) = _shape(dynamics, "maskgit.transformer.norm_out.gamma", 1)
    num_actions = width - dim
    if (num_actions > 0) == (lam is not None) or num_actions < 0:
        raise ValueError(
            f"its dynamics is {width} wide over embeddings of {dim}, which {'fits no' if lam else 'needs a'} "
            "latent_action_model; expected that part only where both widths are equal"
        )
    if num_actions == dim:
        raise ValueError(
            f"its dynamics adds {num_actions} numbers per action to embeddings of {dim}: a GenieRedux v2 file, which "
            "lacks the table of its actions; expected a v1 file"
        )
    tokenizer = {"_target_": "models.pretrained.load_frozen", "path": None}
    if lam is None:
        actions = {"_target_": "models.actions.RecordedActions", "num_actions": num_actions}
    else:
        lam_config, lam_state = _read_lam(lam)
        actions = {"_target_": "models.actions.LatentActions", "lam": lam_config, "detach": False}
        renamed |= {f"actions.lam.{name}": value for name, value in lam_state.items()}
        tokenizer["image_size"] = lam_config["image_size"]
    config = {
        "_target_": "models.genie_redux.WorldModel",
        "tokenizer": tokenizer,
        "actions": actions,
        "dynamics": _dynamics_config(dynamics, blocks, dim, "concat" if lam is None else "add"),
    }
    return config, renamed


def _read_lam(state: State) -> tuple[dict, State]:
    encoder_blocks, decoder_blocks = _blocks(state, "encoder.layers"), _blocks(state, "decoder.layers")
    renamed = _rename(state, lam_names(encoder_blocks, decoder_blocks), "latent_action_model.")
    sizes = _video_sizes(state)
    num_tokens = _shape(state, "to_action_emb.1.weight", 2)[1] // sizes["dim"]
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ValueError(f"its latent_action_model sees {num_tokens} patches per frame; expected a square number")
    config = {
        "_target_": "models.lam.LatentActionModel",
        "image_size": [side * sizes["patch_size"]] * 2,
        "encoder_blocks": encoder_blocks,
        "decoder_blocks": decoder_blocks,
        **sizes,
    }
    return config, renamed


def _video_sizes(state: State) -> dict:
    """The constructor arguments that tokenizer and latent action model share, less blocks and picture size."""
    (dim,) = _shape(state, "encoder.norm_out.gamma", 1)
    (pixels,) = _shape(state, "to_patch_emb.1.weight", 1)
    channels = next((c for c in (3, 1) if math.isqrt(pixels // c) ** 2 * c == pixels), None)
    if channels is None:
        raise ValueError(f"its patches have {pixels} values; expected p·p of one channel or 3·p·p of three")
    _, codebook_size, codebook_dim = _shape(state, CODEBOOK, 3)
    return {
        "channels": channels,
        "patch_size": math.isqrt(pixels // channels),
        "dim": dim,
        **_attention_sizes(state, "encoder.layers.0.0", "spatial_rel_pos_bias", dim),
        "norm_pixels": True,
        "quantizer": {
            "_target_": "models.components.quantizers.VectorQuantizer",
            "_partial_": True,
            "codebook_size": codebook_size,
            "codebook_dim": codebook_dim,
            "commitment": COMMITMENT,
            "dead_code_steps": None,
            "normalize_codes": False,
        },
    }


def _dynamics_config(state: State, blocks: int, dim: int, conditioning: str) -> dict:
    (width,) = _shape(state, "maskgit.transformer.norm_out.gamma", 1)
    return {
        "_target_": "models.dynamics.MaskGIT",
        "_partial_": True,
        "dim": dim,
        "blocks": blocks,
        **_attention_sizes(state, "maskgit.transformer.layers.0.0", "maskgit.continuous_pos_bias", width),
        "max_seq_len": _shape(state, "maskgit.pos_emb.weight", 2)[0],
        "conditioning": conditioning,
        "rule": "next",
        "mask_rate": [0.5, 1.0],
        "loss_on": "masked",
        "loss_reduction": "pooled",
        "token_input": "learned",
        "token_output": "linear",
        "embedding_gradient": 0.1,
    }


def _attention_sizes(state: State, block: str, bias: str, width: int) -> dict:
    """Heads, their width and the feed-forward's, from the first block of a stack."""
    inner = _shape(state, f"{block}.spatial_ff.4.weight", 2)[1]
    return {
        "heads": _shape(state, f"{bias}.net.2.bias", 1)[0],
        "dim_head": _shape(state, f"{block}.spatial_attention.q_scale", 1)[0],
        "ff_mult": _ff_mult(inner, width),
        "feed_forwards": "both",
        "norm_keys": False,
    }


def _ff_mult(inner: int, width: int) -> float:
    """The shortest decimal number for which `GatedFeedForward` has this inner width."""
    middle = (inner + 0.5) * 1.5 / width
    for digits in range(12):
        mult = round(middle, digits)
        if int(mult * 2 / 3 * width) == inner:
            return mult
    raise ValueError(f"its feed-forward is {inner} wide inside {width}, which no multiplier gives")


def _blocks(state: State, prefix: str) -> int:
    """The highest block number of a stack, plus one; at least 1, so that a stack that is not there is missed."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, state) if match), default=0)


def _shape(state: State, name: str, num_axes: int) -> tuple[int, ...]:
    shape = tuple(state[name].shape)
    if len(shape) != num_axes or 0 in shape:
        raise ValueError(f"its {name} is {shape}, expected {num_axes} axes")
    return shape


def _rename(state: State, names: Names, part: str) -> State:
    missing = [name for name, ours in names.items() if ours is not DEAD and name not in state]
    unexpected = [name for name in state if name not in names]
    if missing or unexpected:
        found = [f"missing {part}{name}" for name in missing] + [f"unexpected {part}{name}" for name in unexpected]
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        raise ValueError(f"its entries are not those of the published format: {', '.join(found[:LISTED])}{more}")
    renamed = {names[name]: value for name, value in state.items() if names[name] is not DEAD}
    if CODEBOOK in state:
        renamed["quantizer.embed"] = renamed["quantizer.embed"].flatten(0, -2)
    return renamed


# ------------------------------------------------------------------------------------------------------------- writing


def to_published(model: nn.Module, *, step: int = 0) -> dict:
    """A model of the published architecture as a published file, for `torch.save`.

    step: training steps done. The optimizer entry is that of an AdamW that has made no step. A world's tokenizer is a
    file of its own. Raises ValueError that lists what the format cannot hold.
    """
    problems = sorted(set(_unpublishable(model)))
    if problems:
        raise ValueError(f"the published format cannot hold this model: {'; '.join(problems)}")
    if hasattr(model, "dynamics"):
        dynamics = model.dynamics
        parts = {"dynamics": _published_state(dynamics, dynamics_names(len(dynamics.transformer.layers)))}
        if isinstance(model.actions, LatentActions):
            lam = model.actions.lam
            names = lam_names(len(lam.encoder.layers), len(lam.decoder.layers))
            parts["latent_action_model"] = _published_state(lam, names)
        states = list(parts.values())
    else:
        names = tokenizer_names(len(model.encoder.layers), len(model.decoder.layers))
        parts = _published_state(model, names)
        states = [parts]
    return {"step": step, "model": parts, "optim": _unused_optimizer(states), "scaler": None}


def _published_state(module: nn.Module, names: Names) -> State:
    ours = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    for name in ("idle_steps", "num_passes"):  # what training counts
        ours.pop(f"quantizer.{name}", None)
    live = {theirs: ours[name] for theirs, name in names.items() if name is not DEAD}
    left = set(ours) - set(names.values())
    assert not left, f"parameters without a published name: {sorted(left)}"
    if CODEBOOK in live:
        live[CODEBOOK] = live[CODEBOOK][None]
    return {name: live[name].clone() if name in live else _inert(name, live) for name in names}


def _inert(name: str, live: State) -> Tensor:
    """The value that a dead entry had when its model was made."""
    if name.endswith("context_norm.gamma"):
        return torch.ones_like(live[name.replace("context_norm", "norm")])
    if name.endswith("context_norm.beta"):
        return torch.zeros_like(live[name.replace("context_norm", "norm")])
    codebook = live[CODEBOOK]
    return {
        "embed_avg": codebook.clone(),
        "cluster_size": codebook.new_zeros(codebook.shape[:2]),
        "initted": codebook.new_ones(1),
    }[name.rpartition(".")[2]]


def _is_trainable(name: str) -> bool:
    """Whether an entry is a parameter of the published code, dead ones included, or a buffer."""
    return not name.endswith((".beta", "embed_avg", "cluster_size", "initted"))


def _unused_optimizer(states: list[State]) -> dict:
    """State of a fresh AdamW over matrices (with weight decay) and all other parameters, as the trainer groups them."""
    values = [value for state in states for name, value in state.items() if _is_trainable(name)]
    groups = [[value for value in values if value.ndim >= 2], [value for value in values if value.ndim < 2]]
    optimizer = torch.optim.AdamW(
        [
            {"params": [nn.Parameter(value.to("meta")) for value in group], "weight_decay": decay}
            for group, decay in zip(groups, (1e-4, 0.0), strict=True)
        ],
        lr=1e-4,
        betas=(0.9, 0.99),
    )
    return optimizer.state_dict()


def _unpublishable(model: nn.Module) -> list[str]:
    """Every setting of a model that the published architecture does not have."""
    problems = []
    for module in model.modules():
        if isinstance(module, STBlock) and not all(hasattr(module, f"{axis}_ff") for axis in AXES):
            problems.append("feed_forwards is last (published: both)")
        elif isinstance(module, Attention) and module.norm_keys:
            problems.append("norm_keys is true (published: false)")
        elif isinstance(module, PatchEmbedding) and isinstance(module.first[0], nn.Identity):
            problems.append("norm_pixels is false (published: true)")
        elif isinstance(module, MaskGIT):
            problems += _unpublishable_dynamics(module, is_latent=model.is_latent)
    for owner in (model, getattr(model, "tokenizer", None), getattr(getattr(model, "actions", None), "lam", None)):
        quantizer = getattr(owner, "quantizer", None)
        if quantizer is not None and not isinstance(quantizer, VectorQuantizer):
            problems.append(f"the quantizer is a {type(quantizer).__name__} (published: VectorQuantizer)")
        elif quantizer is not None and quantizer.normalize_codes:
            problems.append("normalize_codes is true (published: false)")
    return problems


def _unpublishable_dynamics(dynamics: MaskGIT, *, is_latent: bool) -> list[str]:
    conditioning = "add" if is_latent else "concat"
    problems = []
    if dynamics.conditioning != conditioning:
        problems.append(f"dynamics.conditioning is {dynamics.conditioning} (published here: {conditioning})")
    elif dynamics.action_projection is not None:
        problems.append("lam.dim differs from dynamics.dim (published: equal)")
    if not isinstance(dynamics.rule, NextFrameRule):
        problems.append("dynamics.rule is in_place (published: next)")
    if dynamics.code_projection is not None:
        problems.append("dynamics.token_input reads codes (published: learned)")
    if dynamics.token_output != "linear":
        problems.append("dynamics.token_output is tied (published: linear)")
    if dynamics.pos_emb is None:
        problems.append("dynamics.max_seq_len is null (published: a table)")
    return problems
