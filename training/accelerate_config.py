"""A user's own Accelerate config (`--accelerate_config=FILE`): it starts the processes, our keys say what they do.

Where both say something, they must say the same: what Accelerate reads from such a file it would put silently in the
place of ours, or the other way round.
"""

import os
from typing import Any, NoReturn

from omegaconf import OmegaConf

from training.settings import TrainSettings

VARIABLE = "LAMP_ACCELERATE_CONFIG"  # run.sh sets it to the file
STARTERS = ("NO", "MULTI_GPU", "MULTI_CPU", "DEEPSPEED")


def read() -> tuple[str, dict[str, Any]]:
    """The file that was given and what it says; ("", {}) without one. Raises ValueError where it holds no mapping."""
    fpath = os.environ.get(VARIABLE, "")
    if not fpath:
        return "", {}
    try:
        values = OmegaConf.to_container(OmegaConf.load(fpath))
    except Exception as error:  # the reader of yaml has a dozen kinds
        raise ValueError(f"--accelerate_config={fpath} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--accelerate_config={fpath} is no mapping of keys; accelerate config writes one that is")
    return fpath, values


def check(settings: TrainSettings) -> None:
    """Raise ValueError, naming the key, where the file and `train` contradict each other or it asks for other means."""
    fpath, values = read()
    kind = str(values.get("distributed_type", "NO")).upper()
    if kind == "FSDP":
        refuse(fpath, "distributed_type: FSDP", "write MULTI_GPU there and set --train.sharding=fsdp")
    if kind not in STARTERS:
        refuse(fpath, f"distributed_type: {kind}", f"Lamp trains and saves under {', '.join(STARTERS)}")
    dynamo = values.get("dynamo_config") or {}
    backend = values.get("dynamo_backend") or dynamo.get("dynamo_backend") or "no"
    if str(backend).upper() != "NO":
        refuse(fpath, f"dynamo_backend: {backend}", "leave it out and set --train.compile=true")
    precision = mixed_precision()
    if precision not in (None, "no", "bf16", "fp16"):
        refuse(fpath, f"mixed_precision: {precision}", "known are no, bf16 and fp16")
    if None not in (precision, settings.mixed_precision) and precision != settings.mixed_precision:
        refuse(fpath, f"mixed_precision: {precision}", f"train.mixed_precision is {settings.mixed_precision}")
    if precision == "fp16" and settings.sharding is not None:
        refuse(fpath, "mixed_precision: fp16", "train.sharding takes bf16 or no")
    accumulation = values.get("gradient_accumulation_steps", settings.grad_accum)
    if accumulation != settings.grad_accum:
        refuse(fpath, f"gradient_accumulation_steps: {accumulation}", f"train.grad_accum is {settings.grad_accum}")


def mixed_precision() -> str | None:
    """What the file says; it counts where `train.mixed_precision` is null."""
    value = read()[1].get("mixed_precision")
    return "no" if value is False else value  # yaml reads a bare no as false


def num_processes() -> int | None:
    """How many processes the file asks for, over all machines."""
    value = read()[1].get("num_processes")
    return None if value in (None, -1) else int(value)


def refuse(fpath: str, found: str, cure: str) -> NoReturn:
    raise ValueError(f"--accelerate_config={fpath} says {found}, which does not go together with this run: {cure}")
