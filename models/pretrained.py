"""Weight files that explain themselves: tensors in safetensors, the resolved model config in the header.

A world's file does not repeat its frozen tokenizer; it names it by content hash. The run folder keeps one copy as
`tokenizer.safetensors`. Every function that reads takes a file in the published GenieRedux format (`models.published`)
as well; only a world of that kind does not say which tokenizer is its own.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from hydra.utils import get_object, instantiate
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.published import from_published

FORMAT = 1
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.safetensors"
PUBLISHED = re.compile(r"model(?:-(\d+))?\.pt")  # as GenieRedux names its files, with the step or without


def save_weights(module: nn.Module, fpath: Path, *, config: dict, metadata: dict | None = None) -> None:
    """Write a module's state and how to build it, atomically.

    config: the resolved `network` node. metadata: JSON-able facts that go into the header (step, seconds, hashes, …).
    A frozen tokenizer inside a world is left out; put its `content_hash` into metadata as "tokenizer_hash".
    """
    write_state(trainable_state(module), fpath, config=config, metadata=metadata)


def write_state(state: dict[str, Tensor], fpath: Path, *, config: dict, metadata: dict | None = None) -> None:
    """Write tensors that were collected before as `save_weights` writes a module's."""
    fpath = Path(fpath)
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    header = {"format": FORMAT, "config": config, "metadata": metadata or {}}
    fpath.parent.mkdir(parents=True, exist_ok=True)
    partial = fpath.with_name(f".{fpath.name}.{os.getpid()}.partial")
    save_file(state, partial, metadata={"lamp": json.dumps(header)})
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, fpath)


def trainable_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without a world's frozen tokenizer."""
    frozen = "tokenizer." if hasattr(module, "dynamics") else None
    return {k: v for k, v in module.state_dict().items() if frozen is None or not k.startswith(frozen)}


def resolve_fpath(path: str | Path) -> Path:
    """The weight file meant by a run folder (its latest step), a step folder or a file.

    A folder of GenieRedux counts too: of its `model-<step>.pt` the latest, or its `model.pt`. Raises FileNotFoundError
    that names what was looked for.
    """
    path = Path(path)
    if path.is_dir():
        path = _weights_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: expected a run folder, a step folder or a weight file")
    return path


def _weights_in(folder: Path) -> Path:
    # The newest step folder, not what `latest` names: a process may be killed between writing the two.
    steps = sorted(folder.glob("step-*"))
    own = (steps[-1] if steps else folder) / WEIGHTS
    published = [
        (int(name[1] or 0), fpath) for fpath in folder.glob("*.pt") if (name := PUBLISHED.fullmatch(fpath.name))
    ]
    return max(published)[1] if published and not own.is_file() else own


def read_header(path: str | Path) -> dict:
    """{"format", "config", "metadata"} of a weight file. Raises ValueError if it is damaged or no weight file.

    A published file has format 0, the config that its shapes tell, and its step as metadata.
    """
    fpath = resolve_fpath(path)
    if is_published(fpath):
        config, _, step = _read_published(fpath)
        return {"format": 0, "config": config, "metadata": {"step": step}}
    with _opened(fpath) as file:
        text = (file.metadata() or {}).get("lamp")
    if text is None:
        raise ValueError(f"{fpath} carries no model config; expected a file that Lamp wrote")
    header = json.loads(text)
    if header["format"] > FORMAT:
        raise ValueError(f"{fpath} has format {header['format']}, this version reads up to {FORMAT}; update Lamp")
    return header


def load(path: str | Path, *, tokenizer_fpath: str | Path | None = None) -> nn.Module:
    """Rebuild a trained model, in eval mode on the CPU; no other setting is needed.

    tokenizer_fpath: use this tokenizer for a world instead of the one it was trained with. It must have the same
    content, since tokens mean nothing without the codebook that made them.
    """
    fpath = resolve_fpath(path)
    header = read_header(fpath)
    config = header["config"]
    if "tokenizer" in config:
        found = find_tokenizer(fpath, config["tokenizer"]["path"], tokenizer_fpath)
        expected = header["metadata"].get("tokenizer_hash")
        if expected is not None and content_hash(found) != expected:
            raise ValueError(
                f"{found} is not the tokenizer that {fpath} was trained with; set tokenizer_fpath to that one"
            )
        config = config | {"tokenizer": config["tokenizer"] | {"path": str(found)}}
    module = build(config)
    load_state(module, fpath)
    return module.eval()


def load_state(module: nn.Module, fpath: Path) -> None:
    """Copy a file's tensors into a module. Raises ValueError that lists missing, unknown and misshapen names."""
    found = _read_state(resolve_fpath(fpath))
    wanted, counters = trainable_state(module), _counters(module)
    problems = [f"missing {name}" for name in wanted if name not in found and name not in counters]
    problems += [f"unexpected {name}" for name in found if name not in wanted and name not in counters]
    problems += [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"{fpath} does not fit this model: {'; '.join(problems[:4])}{more}")
    module.load_state_dict(found, strict=False)


def _counters(module: nn.Module) -> set[str]:
    """Names of what counts for the training alone: it begins anew where a file lacks it, and a file may have it."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, owner in module.named_modules()
        for name in getattr(owner, "counters", ())
    }


def load_frozen(path: str | Path | None, image_size: tuple[int, int] | None = None) -> nn.Module:
    """A trained tokenizer that will not train further. Raises ValueError where `path` is null or no tokenizer.

    image_size: (H, W) of the frames, for a published tokenizer, which takes any.
    """
    if path is None:
        raise ValueError(
            "tokenizer_fpath is null; set --tokenizer_fpath=<run folder> "
            "(bash run.sh --config=tokenizer.yaml trains one)"
        )
    tokenizer = load(path)
    if not hasattr(tokenizer, "decode"):
        raise ValueError(f"tokenizer_fpath {path} holds a {type(tokenizer).__name__}, expected a tokenizer")
    if image_size is not None:
        tokenizer.fix_image_size(image_size)
    return tokenizer.requires_grad_(False).eval()


def build(config: dict) -> nn.Module:
    """Instantiate a model config; refuses any `_target_` outside `models.`, since files come from strangers."""
    _check_targets(config)
    return instantiate(config, _convert_="all")


def content_hash(path: str | Path) -> str:
    """SHA-256 over the tensors' names and bytes: equal for equal weights, whatever the header says."""
    digest = hashlib.sha256()
    for name, value in sorted(_read_state(resolve_fpath(path)).items()):
        digest.update(name.encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def copy_weights(source: str | Path, target: Path) -> None:
    """Copy a tokenizer's weight file atomically; a published one becomes a file in our own format."""
    fpath = resolve_fpath(source)
    if is_published(fpath):
        header = read_header(fpath)
        save_weights(load(fpath), target, config=header["config"], metadata=header["metadata"])
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.copyfile(fpath, partial)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, target)


def is_published(fpath: Path) -> bool:
    """Whether a file is one of `torch.save` (a zip archive, once a pickle), as published weights are."""
    with open(fpath, "rb") as file:
        start = file.read(9)
    # A safetensors file begins with a length of eight bytes, of which the first may be any, and a JSON object.
    return start.startswith(b"PK\x03\x04") or (start.startswith(b"\x80") and start[8:] != b"{")


def _read_published(fpath: Path) -> tuple[dict, dict[str, Tensor], int]:
    """Config, state and step of a published file. Code in the file is not run."""
    with open(fpath, "rb") as file:
        is_archive = file.read(2) == b"PK"
    try:
        # Mapped: a header is read without the tensors, and an optimizer's state never.
        file = torch.load(fpath, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # torch raises half a dozen kinds
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{fpath} is truncated or holds more than weights ({reason}); use another checkpoint"
        ) from error
    try:
        config, state = from_published(file)
    except ValueError as error:
        raise ValueError(f"{fpath} is no published checkpoint: {error}") from None
    step = file.get("step")
    return config, state, int(step) if step is not None else 0


def _read_state(fpath: Path) -> dict[str, Tensor]:
    if is_published(fpath):
        return _read_published(fpath)[1]
    with _opened(fpath) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


@contextmanager
def _opened(fpath: Path) -> Iterator[safe_open]:
    try:
        with safe_open(fpath, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{fpath} is truncated or not a weight file ({error}); use another checkpoint") from error


def find_tokenizer(world_fpath: Path, trained_with: str | None, chosen: str | Path | None) -> Path:
    """A world's tokenizer: the chosen one, else the copy in its run folder, else where it lay when it was trained."""
    if chosen is not None:
        return resolve_fpath(chosen)
    for folder in (world_fpath.parent, world_fpath.parent.parent):
        if (folder / TOKENIZER).is_file():
            return folder / TOKENIZER
    if trained_with is None:
        raise ValueError(f"{world_fpath} is a published world, which does not hold its tokenizer; set tokenizer_fpath")
    try:
        return resolve_fpath(trained_with)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the tokenizer of {world_fpath} is neither beside it ({TOKENIZER}) nor at {trained_with}; "
            "set tokenizer_fpath"
        ) from None


def _is_ours(target: str) -> bool:
    """Whether a dotted name is a module class that a file below models/ defines, or `load_frozen`."""
    if not target.startswith("models."):
        return False
    thing = get_object(target)  # may lead out again, as models.pretrained.torch.load would
    if thing is load_frozen:
        return True
    return isinstance(thing, type) and issubclass(thing, nn.Module) and thing.__module__.startswith("models.")


def _check_targets(node) -> None:
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not _is_ours(target):
            raise ValueError(f"a model config may only build things below models., got _target_ {target!r}")
        for value in node.values():
            _check_targets(value)
    elif isinstance(node, list):
        for value in node:
            _check_targets(value)
