"""Closed sets of settings: frozen dataclasses filled from the yaml groups, checked before any device is touched.

The yaml is the only home of values, so no field has a default. Every error is one `ValueError` line that names the
key, the value that came and what was expected.
"""

import math
import types
import typing
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

SAMPLE_SCHEDULES = ("cosine", "linear", "arccos", "published")
SAMPLE_ORDERS = ("confidence", "halton")
INFERENCE_METHODS = ("one_go", "autoregressive")
SESSION_GRAPHS = ("auto", "true", "compiled", "false")
COSTLY_METRICS = ("fid", "fvd", "lpips", "action_following")  # each has a network of its own
SCHEDULE_KINDS = ("cosine", "wsd", "constant")
LARGEST_SEED = 4_294_900_000  # numpy's, less room for the numbers of processes that are added to it


@dataclass(frozen=True)
class Settings:
    """One checked group of the configuration; `group` is its key in the config, and the prefix in error messages."""

    group: ClassVar[str]

    @classmethod
    def from_config(cls, node: DictConfig | dict) -> typing.Self:
        """Fill the fields from a config node such as `cfg.train`; unknown, missing and ill-typed keys raise."""
        values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
        known = {field.name for field in fields(cls)}
        for name in values.keys() - known:
            raise ValueError(f"{cls.group}.{name} is not a setting; known are {', '.join(sorted(known))}")
        for name in known - values.keys():
            raise ValueError(f"{cls.group}.{name} is missing from the configuration")
        return cls(**cls.normalise(values))

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values as the fields hold them; subclasses translate the spellings that people may use."""
        return values

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            if not _has_type(value, hints[field.name]):
                self.fail(field.name, _in_words(hints[field.name]))
            if isinstance(value, int) and hints[field.name] in (float, float | None):
                object.__setattr__(self, field.name, float(value))
        self.check()

    def check(self) -> None:
        """Raise `ValueError` when a value is out of range."""

    def key(self, name: str) -> str:
        """What error messages call a setting."""
        return f"{self.group}.{name}"

    def fail(self, name: str, expected: str) -> typing.NoReturn:
        value = getattr(self, name)
        raise ValueError(f"{self.key(name)} is {value!r}, expected {expected}")

    def at_least(self, smallest: float, *names: str) -> None:
        """Fail for each of the named settings that is set and is below `smallest`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= smallest:
                self.fail(name, f"a value of at least {smallest}")

    def at_most(self, largest: float, *names: str) -> None:
        """Fail for each of the named settings that is set and is above `largest`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value <= largest:
                self.fail(name, f"a value of at most {largest}")

    def above_zero(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not value > 0:
                self.fail(name, "a value above 0")

    def one_of(self, name: str, *choices: str | None) -> None:
        if getattr(self, name) not in choices:
            self.fail(name, "one of " + ", ".join("null" if choice is None else choice for choice in choices))


@dataclass(frozen=True)
class TrainSettings(Settings):
    """What `configs/train/default.yaml` holds; the comments there say what each key means."""

    group: ClassVar[str] = "train"

    dataset_root_dpath: str
    dataset_name: str
    num_frames: int
    frame_skip: int
    seq_step: int
    batch_size: int
    grad_accum: int
    num_workers: int
    token_cache: bool
    num_train_steps: int
    max_train_seconds: float | None
    mixed_precision: str | None
    sharding: str | None
    compile: bool
    gradient_checkpointing: bool
    on_nonfinite: str
    ema_decay: float | None
    seed: int
    log_every: int
    collapse_alarm_steps: int
    validate_every: int
    num_validation_clips: int
    sample_num_frames: int
    save_model_every: int
    async_save: bool
    keep_last: int | None
    keep_every: int | None
    keep_best: str | None
    save_root_dpath: str
    resume_ckpt: str | None
    init_fpath: str | None
    logger: str
    wandb_dpath: str
    wandb_mode: str
    wandb_project: str
    wandb_name: str

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = dict(values)
        if values["resume_ckpt"] in (
            "no",
            "none",
            "",
            False,
        ):  # "no": the reference; yaml reads it as false
            values["resume_ckpt"] = None
        if values["mixed_precision"] is False:
            values["mixed_precision"] = "no"
        if values["sample_num_frames"] is None and isinstance(values["num_frames"], int):
            values["sample_num_frames"] = values["num_frames"] - 1
        return values

    def check(self) -> None:
        self.at_least(2, "num_frames")
        self.at_least(1, "frame_skip", "seq_step", "batch_size", "grad_accum", "num_train_steps", "log_every")
        self.at_least(1, "validate_every", "num_validation_clips", "sample_num_frames", "save_model_every")
        self.at_least(1, "keep_last", "keep_every")
        self.at_least(0, "num_workers", "seed", "collapse_alarm_steps")
        self.at_most(LARGEST_SEED, "seed")
        self.above_zero("max_train_seconds")
        if self.sample_num_frames >= self.num_frames:
            self.fail("sample_num_frames", f"at most train.num_frames - 1 = {self.num_frames - 1} (one frame is given)")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            self.fail("ema_decay", "null or a value between 0 and 1, such as 0.999")
        self.one_of("mixed_precision", None, "no", "bf16", "fp16")
        self.one_of("on_nonfinite", "stop", "skip")
        self.one_of("sharding", None, "fsdp")
        if self.sharding is not None and self.mixed_precision == "fp16":
            self.fail("mixed_precision", "bf16, no or null with train.sharding (fp16's loss scale is not shared)")
        self.one_of("logger", "tensorboard", "wandb", "none")
        self.one_of("wandb_mode", "online", "offline", "disabled")
        if self.resume_ckpt is not None and self.init_fpath is not None:
            self.fail("init_fpath", "null when train.resume_ckpt is set (a run either goes on or starts from weights)")


@dataclass(frozen=True)
class EvalSettings(Settings):
    """What `configs/eval/default.yaml` holds; the comments there say what each key means."""

    group: ClassVar[str] = "eval"

    dataset_root_dpath: str
    dataset_name: str
    split: str | None
    allow_train: bool
    model_fpath: str
    model_name: str
    batch_size: int
    num_clips: int | None
    num_frames: int
    seq_step: int
    seed: int
    num_first_frames: int
    sample_num_frames: int
    mixed_precision: str | None
    session_graphs: str
    inference_method: str
    dream_length: int
    inference_steps: int
    sample_schedule: str
    sample_temperature: float
    sample_top_k: int | None
    sample_noise: float
    sample_order: str
    action_to_take: int
    delta_psnr_horizon: int
    num_random_actions: int
    require: list[str]
    leave_out: list[str]
    weights_dir: str
    reader_dataset_name: str | None
    reader_steps: int
    num_samples: int
    save_root_dpath: str

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values["mixed_precision"] is False:  # yaml reads no as false
            values = values | {"mixed_precision": "no"}
        names = {key: values[key] for key in ("require", "leave_out") if isinstance(values[key], str)}
        values = values | {key: words.split(",") for key, words in names.items()}
        return _with_words(values, "session_graphs")

    def check(self) -> None:
        self.at_least(1, "batch_size", "num_clips", "seq_step", "num_first_frames", "sample_num_frames", "reader_steps")
        self.at_least(1, "dream_length", "inference_steps", "sample_top_k", "delta_psnr_horizon", "num_random_actions")
        self.at_least(0, "seed", "sample_temperature", "sample_noise", "num_samples")
        self.at_most(LARGEST_SEED, "seed")
        self.at_least(-1, "action_to_take")
        self.one_of("split", None, "train", "validation", "test")
        self.one_of("inference_method", *INFERENCE_METHODS)
        self.one_of("sample_schedule", *SAMPLE_SCHEDULES)
        self.one_of("sample_order", *SAMPLE_ORDERS)
        self.one_of("mixed_precision", None, "no", "bf16")
        self.one_of("session_graphs", *SESSION_GRAPHS)
        if not set(self.leave_out) <= set(COSTLY_METRICS):
            self.fail("leave_out", f"some of {', '.join(COSTLY_METRICS)}")
        if self.split == "train" and not self.allow_train:
            self.fail("split", "validation or test, or eval.allow_train=true to measure on training levels knowingly")
        if self.num_first_frames + self.sample_num_frames > self.num_frames:
            self.fail(
                "num_frames",
                f"at least eval.num_first_frames + eval.sample_num_frames = "
                f"{self.num_first_frames} + {self.sample_num_frames}",
            )
        if self.delta_psnr_horizon > self.sample_num_frames:
            self.fail("delta_psnr_horizon", f"at most eval.sample_num_frames = {self.sample_num_frames}")


@dataclass(frozen=True)
class TokenizeSettings(Settings):
    """What `configs/tokenize/default.yaml` holds; the comments there say what each key means."""

    group: ClassVar[str] = "tokenize"

    splits: list[str]
    seq_step: int
    batch_size: int

    def check(self) -> None:
        self.at_least(1, "seq_step", "batch_size")
        if not self.splits or not set(self.splits) <= {"train", "validation", "test"}:
            self.fail("splits", "some of train, validation, test, such as [train]")


@dataclass(frozen=True)
class CompareSettings(Settings):
    """What `configs/compare/default.yaml` holds; the comments there say what each key means."""

    group: ClassVar[str] = "compare"

    inputs: list[str]
    out: str

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        inputs = values["inputs"]
        return values | {"inputs": inputs.split(",") if isinstance(inputs, str) else inputs}

    def check(self) -> None:
        if not self.inputs:
            self.fail("inputs", "at least one metrics.json, folder or pattern")


@dataclass(frozen=True)
class PlaySettings(Settings):
    """What `configs/play/default.yaml` holds; the comments there say what each key means."""

    group: ClassVar[str] = "play"

    roots: list[str]
    model_fpath: str | None
    tokenizer_fpath: str | None
    dataset_root_dpath: str
    dataset_name: str | None
    device: str | None
    num_threads: int | None
    session_graphs: str
    worlds_in_memory: int
    host: str
    port: int
    allowed_hosts: list[str]
    open_browser: bool
    max_sessions: int
    idle_seconds: float
    vanish_seconds: float
    inference_steps: int
    max_inference_steps: int
    temperature: float
    fps: float
    max_fps: float
    seed: int
    window: int | None
    max_rewind: int
    reality: bool
    record_seconds: float
    upload_bytes: int
    upload_pixels: int

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        return _with_words(values, "session_graphs")

    def check(self) -> None:
        self.one_of("session_graphs", *SESSION_GRAPHS)
        self.at_least(1, "num_threads", "worlds_in_memory", "max_sessions", "inference_steps", "max_inference_steps")
        self.at_least(1, "window", "upload_bytes", "upload_pixels", "max_fps")
        self.at_least(0, "temperature", "seed", "max_rewind", "port")
        self.above_zero("idle_seconds", "vanish_seconds", "record_seconds", "fps")
        if self.port > 65535:
            self.fail("port", "a port number up to 65535")
        if self.fps > self.max_fps:
            self.fail("fps", f"at most play.max_fps = {self.max_fps:g}")
        if self.inference_steps > self.max_inference_steps:
            self.fail("inference_steps", f"at most play.max_inference_steps = {self.max_inference_steps}")
        if not self.host:
            self.fail("host", "an address such as 127.0.0.1, or 0.0.0.0 for all of this machine's")


@dataclass(frozen=True)
class DreamSettings(Settings):
    """What `configs/dream/default.yaml` holds; the comments there say what each key means."""

    group: ClassVar[str] = "dream"
    FILMS: ClassVar[tuple[str, ...]] = (".gif", ".mp4")
    DATASET: ClassVar[str] = "dataset:"

    roots: list[str]
    model_fpath: str | None
    tokenizer_fpath: str | None
    dataset_root_dpath: str
    dataset_name: str | None
    device: str | None
    num_threads: int | None
    session_graphs: str
    prompt: str
    num_first_frames: int
    actions: str | None
    actions_from: str | None
    num_frames: int
    seed: int
    inference_steps: int
    temperature: float
    top_k: int | None
    window: int | None
    fps: float
    out: list[str] | None

    @classmethod
    def normalise(cls, values: dict[str, Any]) -> dict[str, Any]:
        actions, out = values["actions"], values["out"]
        if isinstance(actions, int) and not isinstance(actions, bool):
            actions = str(actions)
        elif isinstance(actions, list):
            actions = ",".join(str(action) for action in actions)
        values = values | {"actions": actions, "out": out.split(",") if isinstance(out, str) else out}
        return _with_words(values, "session_graphs")

    def check(self) -> None:
        self.one_of("session_graphs", *SESSION_GRAPHS)
        self.at_least(1, "num_threads", "num_first_frames", "num_frames", "inference_steps", "top_k", "window")
        self.at_least(0, "seed", "temperature")
        self.above_zero("fps")
        for name in ("prompt", "actions_from"):
            value = getattr(self, name)
            if value is not None and value.startswith(self.DATASET) and not value[len(self.DATASET) :].isdecimal():
                self.fail(name, "the number of an episode behind dataset:, such as dataset:3")
        if self.actions_from is not None and self.actions not in (None, "inferred"):
            self.fail("actions", "inferred or null where dream.actions_from says where they come from")
        if self.out is not None and not (self.out and all(name.lower().endswith(self.FILMS) for name in self.out)):
            self.fail("out", "names of films that end in .gif or .mp4, such as dream.gif or [dream.gif,dream.mp4]")


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """The keys of the `optimizer` group that drive the learning rate and the clipping, not the optimizer itself."""

    group: ClassVar[str] = "optimizer"

    max_grad_norm: float | None
    warmup_steps: int
    min_lr_ratio: float
    kind: str

    @classmethod
    def from_optimizer(cls, node: DictConfig) -> tuple[typing.Self, DictConfig]:
        """Split `cfg.optimizer` into the schedule and the node that `hydra.utils.instantiate` makes an optimizer of."""
        names = {field.name for field in fields(cls)}
        values = OmegaConf.to_container(node, resolve=True)
        schedule = cls.from_config({name: value for name, value in values.items() if name in names})
        return schedule, OmegaConf.create({name: value for name, value in values.items() if name not in names})

    def check(self) -> None:
        self.above_zero("max_grad_norm")
        self.at_least(0, "warmup_steps")
        if not 0 <= self.min_lr_ratio <= 1:
            self.fail("min_lr_ratio", "a value between 0 and 1")
        self.one_of("kind", *SCHEDULE_KINDS)


def _with_words(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Settings in which a switch that has more than two positions is a word also where yaml read true or false."""
    return values | {name: str(values[name]).lower()} if isinstance(values[name], bool) else values


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a yaml value is of the field's type; whole numbers count as floats, booleans do not count as numbers."""
    if isinstance(hint, types.UnionType):
        return any(_has_type(value, option) for option in typing.get_args(hint))
    if hint is types.NoneType:
        return value is None
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_has_type(item, typing.get_args(hint)[0]) for item in value)
    if hint in (int, float):
        allowed = (int,) if hint is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(names.get(option, "a list of texts such as [fid]") for option in options)
