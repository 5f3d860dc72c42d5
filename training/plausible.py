"""Values of models and optimizers that no constructor could take, found before anything is built.

Models and optimizers are open sets, built from the yaml; what torch says of a wrong number ("math domain error") names
neither its key nor what was expected. Only keys that mean the same everywhere are looked at.
"""

from collections.abc import Iterator
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from training.command_line import all_keys

GROUPS = ("data", "quantizer", "tokenizer", "lam", "dynamics")
SIZES = ("patch_size", "dim", "heads", "dim_head", "encoder_blocks", "decoder_blocks", "blocks", "num_actions")
SIZES += ("codebook_size", "codebook_dim", "max_seq_len", "dead_code_steps")
MAY_BE_NULL = ("max_seq_len", "dead_code_steps")
NOT_NEGATIVE = ("lr", "adamw_lr", "weight_decay", "eps")


def check_model(cfg: DictConfig) -> None:
    """Raise ValueError, naming the key, for sizes of a model or its data that cannot be."""
    for key, value in _own_values(cfg):
        name = key.rpartition(".")[2]
        if name in SIZES and not (_is_whole(value) or (value is None and name in MAY_BE_NULL)):
            _fail(key, value, "a whole number of at least 1" + " or null" * (name in MAY_BE_NULL))
        if name == "image_size" and not (_is_list(value, 2) and all(map(_is_whole, value))):
            _fail(key, value, "height and width, such as [64,64]")
        if key == "data.channels" and value != 3:
            _fail(key, value, "3: the loader gives red, green and blue, grey videos too")


def check_optimizer(node: DictConfig) -> None:
    """Raise ValueError, naming the key, for numbers that no optimizer takes."""
    for name, value in OmegaConf.to_container(node, resolve=True).items():
        key = f"optimizer.{name}"
        if name in NOT_NEGATIVE and not _is_number(value):
            _fail(key, value, "a number of at least 0")
        if name == "betas" and not (_is_list(value, 2) and all(_is_number(share) and share < 1 for share in value)):
            _fail(key, value, "two numbers from 0 up to below 1, such as [0.9,0.99]")


def _own_values(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Keys of the groups that describe models and data, with their values; what refers to another key is left out."""
    for key in all_keys(cfg):
        group, _, name = key.rpartition(".")
        if group.partition(".")[0] in GROUPS and not OmegaConf.is_interpolation(OmegaConf.select(cfg, group), name):
            value = OmegaConf.select(cfg, key)
            yield key, OmegaConf.to_container(value) if OmegaConf.is_list(value) else value


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _fail(key: str, value: Any, expected: str) -> NoReturn:
    raise ValueError(f"{key} is {value!r}, expected {expected}")
