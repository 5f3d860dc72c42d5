"""A user's DeepSpeed settings (`distributed_type: DEEPSPEED` in an Accelerate config): what of them Lamp takes.

DeepSpeed splits optimizer state (ZeRO 1) and gradients (ZeRO 2) among the processes and says how they are exchanged.
What is computed stays with our keys: where a file says something about that, too, it must say the same.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training import accelerate_config
from training.accelerate_config import refuse
from training.settings import ScheduleSettings, TrainSettings

ASKED = "distributed_type: DEEPSPEED"
REQUIREMENTS = "requirements-deepspeed.txt"
# Updates that treat each number by itself: ZeRO gives an optimizer flat shares of all weights, without their shapes.
ELEMENTWISE = (
    "training.optimizers.adamw",
    *(f"torch.optim.{name}" for name in ("AdamW", "Adam", "NAdam", "RAdam", "SGD")),
)
NUMBERS = ("gradient_accumulation_steps", "gradient_clipping")  # also in a DeepSpeed file
BATCHES = ("train_micro_batch_size_per_gpu", "train_batch_size")
STARTING = ("deepspeed_config_file", "deepspeed_multinode_launcher", "deepspeed_hostfile")
FOR_STAGE_3 = ("zero3_init_flag", "zero3_save_16bit_model", "sub_group_size")
# How gradients and weights are exchanged; DeepSpeed gets these keys of `zero_optimization` as they are.
EXCHANGE = ("overlap_comm", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size")
EXCHANGE += ("allgather_partitions", "allgather_bucket_size")
OFFLOAD = ("offload_optimizer", "offload_param")
OURS = ("zero_allow_untested_optimizer", "steps_per_print", "wall_clock_breakdown")  # set here, whatever a file says


def is_asked_for() -> bool:
    return str(accelerate_config.read()[1].get("distributed_type", "NO")).upper() == "DEEPSPEED"


def overrule_launcher() -> None:
    """Drop what Accelerate's launcher tells Accelerate: it has a way of its own to use DeepSpeed, ours is `zero`."""
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        os.environ.pop(name, None)


def check(mode: str, train: TrainSettings, schedule: ScheduleSettings, optimizer: str) -> None:
    """Raise ValueError, naming file and key, for what DeepSpeed cannot do here or what contradicts our keys.

    optimizer: the `_target_` of the optimizer's node. Does nothing where the file does not ask for DeepSpeed.
    """
    if not is_asked_for():
        return
    fpath, values = accelerate_config.read()
    if mode != "train":
        refuse(fpath, ASKED, f"it splits what training needs; for mode={mode} leave --accelerate_config out")
    _check_stage(fpath, zero_options()["stage"])
    _check_start(fpath, values)
    _check_precision(fpath, train)
    if train.sharding is not None:
        refuse(fpath, ASKED, "it splits by itself; set --train.sharding=null")
    if optimizer not in ELEMENTWISE:
        cure = f"the optimizer {optimizer} may need whole matrices, and ZeRO keeps flat shares"
        refuse(fpath, ASKED, f"{cure}; set --optimizer=adamw or --train.sharding=fsdp")
    _check_same("gradient_accumulation_steps", train.grad_accum, "train.grad_accum")
    _check_same("gradient_clipping", schedule.max_grad_norm or 0.0, "optimizer.max_grad_norm")
    _check_same("train_micro_batch_size_per_gpu", train.batch_size, "train.batch_size")
    if (asked := _num_processes()) is not None:
        per_step = train.batch_size * train.grad_accum * asked
        _check_same("train_batch_size", per_step, "train.batch_size x train.grad_accum x processes")
    if find_spec("deepspeed") is None:
        cure = f"install it with {sys.executable} -m pip install -r {REQUIREMENTS}"
        refuse(fpath, ASKED, f"deepspeed is not installed; {cure}")


def zero_options() -> dict[str, Any]:
    """DeepSpeed's `zero_optimization` as the files have it, without what is "auto". ValueError for unknown keys."""
    fpath, values = accelerate_config.read()
    node = values.get("deepspeed_config") or {}
    for name, value in node.items():
        if name.startswith("offload_"):
            _check_not_offloaded(fpath, name, value)
        elif name not in ("zero_stage", *NUMBERS, *STARTING, *FOR_STAGE_3):
            refuse(fpath, f"deepspeed_config.{name}", "Lamp does not know it; leave it out")
    source, contents = _deepspeed_file()
    if source is None:
        return {"stage": node.get("zero_stage", 2)}
    options = {}
    for name, value in contents["zero_optimization"].items():
        if name in OFFLOAD:
            _check_not_offloaded(source, name, (value or {}).get("device"))
        elif name == "stage" or (name in EXCHANGE and value != "auto"):
            options[name] = value
        elif name not in (*EXCHANGE, *FOR_STAGE_3) and not name.startswith("stage3_"):
            refuse(source, f"zero_optimization.{name}", "Lamp does not know it; leave it out")
    return {"stage": 0} | options


def mixed_precision() -> str | None:
    """What a DeepSpeed file says by `bf16` and `fp16`; None where it leaves that open."""
    contents = _deepspeed_file()[1]
    return next((name for name in ("bf16", "fp16") if contents.get(name, {}).get("enabled") is True), None)


def _deepspeed_file() -> tuple[str | None, dict[str, Any]]:
    """The file that `deepspeed_config_file` names, looked for beside the Accelerate config first, and its contents."""
    fpath, values = accelerate_config.read()
    name = (values.get("deepspeed_config") or {}).get("deepspeed_config_file")
    if name is None:
        return None, {}
    source = next((path for path in (Path(fpath).parent / name, Path(name)) if path.is_file()), None)
    if source is None:
        refuse(fpath, f"deepspeed_config_file: {name}", "there is no such file; write its whole path")
    try:
        contents = json.loads(source.read_text())
    except ValueError as error:
        raise ValueError(f"{source} cannot be read as JSON: {error}") from error
    if not isinstance(contents, dict) or not isinstance(contents.get("zero_optimization"), dict):
        raise ValueError(f"{source} has no zero_optimization; expected a DeepSpeed config with its stage, 1 or 2")
    for key in contents.keys() - {"zero_optimization", "bf16", "fp16", *NUMBERS, *BATCHES, *OURS}:
        refuse(str(source), key, "optimizer, schedule and all else are keys of Lamp; leave it out")
    return str(source), contents


def _num_processes() -> int | None:
    asked = os.environ.get("LAMP_NUM_PROCESSES") or accelerate_config.num_processes()
    return None if asked is None else int(asked)


def _check_stage(fpath: str, stage: Any) -> None:
    if stage == 3:
        cure = "write MULTI_GPU there and set --train.sharding=fsdp, which splits weights, too, or write stage 2"
        refuse(fpath, "ZeRO stage 3", cure)
    if stage not in (1, 2):
        refuse(fpath, f"ZeRO stage {stage}", "Lamp trains under stages 1 and 2; MULTI_GPU splits nothing")


def _check_start(fpath: str, values: dict[str, Any]) -> None:
    if _num_processes() == 1:
        refuse(fpath, ASKED, "it splits optimizer state among processes, but there is one; set --num_processes=N")
    launcher = (values.get("deepspeed_config") or {}).get("deepspeed_multinode_launcher", "pdsh")
    if int(values.get("num_machines") or 1) > 1 and launcher != "standard":
        cure = "write standard, and start the same command on every machine"
        refuse(fpath, f"deepspeed_multinode_launcher: {launcher}", cure)


def _check_precision(fpath: str, train: TrainSettings) -> None:
    """bf16 means autocast, as without DeepSpeed: weights, norms and codebooks stay in fp32."""
    theirs, ours = mixed_precision(), train.mixed_precision or accelerate_config.mixed_precision()
    if "fp16" in (theirs, ours):
        refuse(fpath, ASKED, "Lamp trains under it in bf16 or fp32, not in fp16; set mixed_precision")
    if None not in (theirs, ours) and theirs != ours:
        refuse(fpath, f"{theirs}.enabled: true", f"mixed_precision is {ours}")


def _check_same(name: str, ours: float, key: str) -> None:
    fpath, values = accelerate_config.read()
    source, contents = _deepspeed_file()
    for place, node in ((fpath, values.get("deepspeed_config") or {}), (source, contents)):
        value = node.get(name, "auto")
        if value != "auto" and float(value) != ours:
            refuse(place, f"{name}: {value}", f"{key} is {ours}; make them equal or leave it out there")


def _check_not_offloaded(fpath: str, name: str, device: str | None) -> None:
    if str(device or "none").lower() != "none" and not name.endswith("nvme_path"):
        refuse(fpath, f"{name}: {device}", "Lamp keeps optimizer state and weights on the devices; write none")
