"""The worlds that can be played: found below a few folders, loaded when somebody asks for one, a few kept in memory."""

import hashlib
import math
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from torch import nn

from models import graphs, pretrained
from models.recording import choose
from training import checkpoint
from training.settings import DreamSettings, PlaySettings

# What the published worlds were trained on, whose files do not say it: clips of so many frames, of this size.
UNKNOWN_WINDOW = 16
UNKNOWN_SIZE = (64, 64)


@dataclass(frozen=True)
class Entry:
    """A world on disk, as its weight file's header and its run folder describe it."""

    id: str  # names it towards players, who never see or send a path
    name: str  # the run folder or file, below the folder it was found in
    fpath: Path
    modified: float  # 0 for the worlds that come with Lamp: a checkout may write them after any training
    is_latent: bool
    num_actions: int
    recorded_names: tuple[str, ...]  # of the actions in the data it was trained on, empty where the file does not say
    image_size: tuple[int, int]
    trained_steps: int
    window: int  # frames of the clips it was trained on
    frame_skip: int  # of the data's frames, every how-manieth it was trained on
    dataset: tuple[str, str] | None  # root and name of the data it was tested on
    can_refine: bool  # takes more than one MaskGIT step per frame

    @property
    def folder(self) -> Path:
        """The run folder, or that of a single file."""
        return _run_folder(self.fpath)


class NoRoomError(ValueError):
    """All worlds that may be in memory are being played."""


class Loaded:
    """A world in memory, and how many play it."""

    def __init__(self, entry: Entry, world: nn.Module, device: torch.device):
        self.entry, self.world, self.device = entry, world, device
        self.num_players = 0


class Library:
    """All worlds below `play.roots`, newest first. Thread-safe."""

    def __init__(self, settings: PlaySettings | DreamSettings, device: torch.device):
        self._settings, self._device = settings, device
        self._graphs = choose(settings.session_graphs, device, settings.key("session_graphs"))
        self._loaded: dict[str, Loaded] = {}  # the least lately used first
        self._lock = threading.Lock()
        self.entries: dict[str, Entry] = {}

    def scan(self) -> list[Entry]:
        """Look for worlds again; the chosen one comes first, then the newest."""
        chosen = self._settings.model_fpath
        found = [] if chosen is None else [self._chosen(Path(chosen))]
        roots = [Path(root) for root in self._settings.roots]
        others = [self._read(fpath, root) for root in roots for fpath in candidates(root)]
        found += sorted((entry for entry in others if entry is not None), key=lambda entry: -entry.modified)
        self.entries = {entry.id: entry for entry in reversed(found)}  # of equal ids the first one counts
        return list(dict.fromkeys(self.entries[entry.id] for entry in found))

    def find(self, world_id: Any) -> Entry:
        """Raises ValueError for an id that is not in the list."""
        if not isinstance(world_id, str) or world_id not in self.entries:
            raise ValueError("this world is not in the list; reload the page")
        return self.entries[world_id]

    def take(self, entry: Entry) -> Loaded:
        """The world in memory, for one more player, who gives it back with `release`.

        Raises ValueError or OSError where it cannot be loaded, NoRoomError beside too many others.
        """
        with self._lock:
            loaded = self._loaded.pop(entry.id, None)
            if loaded is None or loaded.entry.fpath != entry.fpath:
                self._make_room()
                loaded = Loaded(entry, self.load(entry), self._device)
            self._loaded[entry.id] = loaded
            loaded.num_players += 1
            return loaded

    def release(self, loaded: Loaded) -> None:
        with self._lock:
            loaded.num_players -= 1

    def _make_room(self) -> None:
        while len(self._loaded) >= self._settings.worlds_in_memory:
            idle = next((key for key, loaded in self._loaded.items() if not loaded.num_players), None)
            if idle is None:
                names = " and ".join(loaded.entry.name for loaded in self._loaded.values())
                raise NoRoomError(f"{names} are being played, and no further world is loaded beside them; choose one")
            del self._loaded[idle]

    def choose(self) -> Entry:
        """The chosen world, else the newest one. Raises ValueError or FileNotFoundError where there is none."""
        settings = self._settings
        if settings.model_fpath is not None:
            return self._chosen(Path(settings.model_fpath))
        found = self.scan()
        if not found:
            raise ValueError(
                f"no world was found below {', '.join(settings.roots)}; train one (bash run.sh "
                f"--config=quickstart.yaml), or set {settings.key('model_fpath')} to a run folder"
            )
        return found[0]

    def load(self, entry: Entry) -> nn.Module:
        """A world for dreaming, outside the memory that players share. Raises ValueError or OSError."""
        world = pretrained.load(entry.fpath, tokenizer_fpath=self._tokenizer_of(entry.fpath))
        if world.image_size is None:
            fix_size(world, entry.image_size)
        world = world.to(self._device).eval().requires_grad_(False)
        world.use_graphs(graphs.of(world, self._graphs))
        return world

    def _chosen(self, path: Path) -> Entry:
        key = self._settings.key("model_fpath")
        try:
            fpath = pretrained.resolve_fpath(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{key}={path}: {error}") from None
        inside = next((Path(root) for root in self._settings.roots if fpath.is_relative_to(root)), None)
        try:
            entry = describe(fpath, inside or _run_folder(fpath).parent, self._tokenizer_of(fpath))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{key}={path}: {error}") from None
        if entry is None:
            raise ValueError(f"{key}={path} holds no world, which has dynamics; set it to the run of one")
        return entry

    def _read(self, fpath: Path, root: Path) -> Entry | None:
        """None for what is no world, or no whole one: a line on the terminal says which."""
        try:
            return describe(fpath, root, self._tokenizer_of(fpath))
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
        except (KeyError, TypeError) as error:  # parts of another kind than ours
            reason = f"its config cannot be understood ({error!r})"
        _warn_once(f"{fpath} is not offered: {reason}")
        return None

    def _tokenizer_of(self, fpath: Path) -> str | None:
        return self._settings.tokenizer_fpath if pretrained.is_published(fpath) else None


def fix_size(world: nn.Module, image_size: tuple[int, int]) -> None:
    """Let a published world take frames of one size only; its dynamics then knows how many fit its position table."""
    world.tokenizer.fix_image_size(image_size)
    world.image_size, world.dynamics.grid = image_size, world.tokenizer.grid


def candidates(root: Path) -> Iterator[Path]:
    """Weight files below a folder: of every run the latest step, and single files."""
    for folder, folders, files in os.walk(root):
        runs = sorted(name for name in folders if checkpoint.STEP_FOLDER.match(name))
        folders[:] = sorted(name for name in folders if name not in runs and not name.startswith("."))
        if runs:
            fpath = Path(folder) / runs[-1] / pretrained.WEIGHTS
            if fpath.is_file():
                yield fpath
        for name in sorted(files):
            is_weights = name.endswith((".safetensors", ".pt")) and name not in (pretrained.TOKENIZER, checkpoint.STATE)
            if is_weights and not name.startswith("."):
                yield Path(folder) / name


def describe(fpath: Path, root: Path, tokenizer_fpath: str | None) -> Entry | None:
    """The entry of a weight file; None where it holds no world. Raises ValueError or OSError for a damaged one."""
    header = _header_of(fpath)
    config = header["config"]
    if "dynamics" not in config or "tokenizer" not in config:
        return None
    trained_with = config["tokenizer"].get("path")
    tokenizer = _header_of(pretrained.find_tokenizer(fpath, trained_with, tokenizer_fpath))["config"]
    run = _run_config(_run_folder(fpath))
    size = config["tokenizer"].get("image_size") or tokenizer.get("image_size") or UNKNOWN_SIZE
    is_latent = "lam" in config["actions"]
    name = _run_folder(fpath) if checkpoint.STEP_FOLDER.match(fpath.parent.name) else fpath
    return Entry(
        id=hashlib.sha256(os.fsencode(name.resolve())).hexdigest()[:12],
        name=_short(name, root),
        fpath=fpath,
        modified=0.0 if header["metadata"].get("is_example") else fpath.stat().st_mtime,
        is_latent=is_latent,
        num_actions=_codes(config["actions"]["lam"]["quantizer"]) if is_latent else config["actions"]["num_actions"],
        recorded_names=tuple(header["metadata"].get("action_names") or ()),
        image_size=tuple(size),
        trained_steps=int(header["metadata"].get("step") or 0),
        window=int(OmegaConf.select(run, "train.num_frames") or UNKNOWN_WINDOW),
        frame_skip=int(OmegaConf.select(run, "train.frame_skip") or 1),
        dataset=_dataset(run),
        can_refine=config["dynamics"]["rule"] != "next",
    )


def _short(path: Path, root: Path) -> str:
    """`quickstart/checkpoints/genie_redux/genie_redux` is said once."""
    parts = list(path.resolve().relative_to(root.resolve()).parts)
    if len(parts) > 1 and parts[-1] == parts[-2]:
        del parts[-1]
    return "/".join(part for part in parts if part != "checkpoints") or path.name


def _codes(quantizer: dict[str, Any]) -> int:
    return quantizer["codebook_size"] if "codebook_size" in quantizer else math.prod(quantizer["levels"])


def _dataset(run: Any) -> tuple[str, str] | None:
    root, name = OmegaConf.select(run, "eval.dataset_root_dpath"), OmegaConf.select(run, "eval.dataset_name")
    return (root, name) if root and name else None


def _run_folder(fpath: Path) -> Path:
    return fpath.parent.parent if checkpoint.STEP_FOLDER.match(fpath.parent.name) else fpath.parent


def _run_config(folder: Path) -> Any:
    fpath = folder / "config.yaml"
    if not fpath.is_file():
        return OmegaConf.create({})
    try:
        return OmegaConf.load(fpath)
    except Exception as error:  # yaml's and OmegaConf's own kinds
        raise ValueError(f"{fpath} is not readable: {error}") from error


def _header_of(fpath: Path) -> dict[str, Any]:
    stat = fpath.stat()
    return _header(fpath, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _header(fpath: Path, modified: int, size: int) -> dict[str, Any]:
    """A weight file's header; its time and size say whether it is still the one that was read."""
    return pretrained.read_header(fpath) if _carries_a_model(fpath) else {"config": {}}


def _carries_a_model(fpath: Path) -> bool:
    """False for a whole file of other tensors, such as an agent's."""
    try:
        with safe_open(fpath, framework="pt") as file:
            return "lamp" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True  # damaged or of another kind: reading it as a model says what is wrong


@lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
