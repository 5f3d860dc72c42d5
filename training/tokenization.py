"""`--mode=tokenize`: a dataset's clips encoded once and kept, so that worlds train without running the encoder.

Tokens are those of `tokenizer.encode` in fp32, as evaluation encodes its prompts. A training from frames encodes under
its own mixed precision: in bf16 a few tokens in a thousand lie so near a tie that they come out as another code.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from data import tokens
from data.clips import ClipDataset
from data.episodes import write_json
from data.locks import claim
from data.tokens import CachedClips, Piece, Recipe
from models import pretrained
from training import preparation
from training.logs import duration
from training.settings import TokenizeSettings, TrainSettings
from training.setup import build_model

NUM_COMPARED = 4  # clips that a training encodes itself before it believes a cache
# Of their tokens, the share that may differ: another device rounds otherwise, another tokenizer changes most of them.
MOST_DIFFERENT = 0.05


class Work(NamedTuple):
    """What a call encodes and where to."""

    recipe: Recipe
    folder: Path
    datasets: dict[str, ClipDataset]  # by split
    pieces: dict[str, list[Piece]]  # by split
    shape: tuple[int, int, int]  # (L, h, w), a clip's tokens
    dtype: np.dtype


def run(cfg: DictConfig) -> None:
    """Write what is missing of the tokens of `train.dataset_name` under the tokenizer at `tokenizer_fpath`.

    Clips are as `train` and `tokenize` say; the folder is `Recipe.folder`. The bytes do not depend on how many
    processes encode, nor on how often they were interrupted. Raises ValueError, FileNotFoundError or OSError with one
    line for a tokenizer or dataset that is missing or does not fit, a full disk, or a second writer.
    """
    state = preparation.processes()
    try:
        _run(cfg, TrainSettings.from_config(cfg.train), TokenizeSettings.from_config(cfg.tokenize), state)
    finally:
        state.destroy_process_group()


def _run(cfg: DictConfig, train: TrainSettings, settings: TokenizeSettings, state: PartialState) -> None:
    fpath = pretrained.resolve_fpath(cfg.tokenizer_fpath)
    recipe = recipe_of(train, settings, fpath, pretrained.content_hash(fpath))
    tokenizer = build_model(cfg.frozen_tokenizer).to(state.device)
    work = _plan(tokenizer, recipe, train, settings, state.device)
    with ExitStack() as held:
        # Only the main process looks and writes; what it found missing is the work of all.
        (missing,) = shared([tried(lambda: _look(work, held))] if state.is_main_process else [])
        if missing:
            _encode_all(tokenizer, work, missing, settings.batch_size, state)
        if state.is_main_process:
            _finish(work)


def recipe_of(train: TrainSettings, settings: TokenizeSettings, tokenizer_fpath: Path, tokenizer_hash: str) -> Recipe:
    """tokenizer_hash: the `content_hash` of that file."""
    config = json.loads(json.dumps(pretrained.read_header(tokenizer_fpath)["config"]))
    return Recipe(tokenizer_hash, config, train.num_frames, settings.seq_step, train.frame_skip)


def _plan(
    tokenizer: nn.Module, recipe: Recipe, train: TrainSettings, settings: TokenizeSettings, device: torch.device
) -> Work:
    root, name = train.dataset_root_dpath, train.dataset_name
    sizes = {"frame_skip": recipe.frame_skip, "seq_step": recipe.seq_step}
    datasets = {split: ClipDataset(root, name, split, recipe.num_frames, **sizes) for split in settings.splits}
    pieces = {split: tokens.pieces_of(dataset) for split, dataset in datasets.items()}
    shape = encode(tokenizer, datasets[settings.splits[0]], np.array([0]), device).shape[1:]
    return Work(recipe, recipe.folder(root, name), datasets, pieces, shape, tokens.dtype_of(tokenizer.codebook_size))


@torch.inference_mode()
def encode(tokenizer: nn.Module, dataset: ClipDataset, windows: np.ndarray, device: torch.device) -> np.ndarray:
    """Tokens (B, L, h, w) of the windows with these numbers, encoded on the device in fp32."""
    return tokenizer.encode(dataset.batch(windows).to(device).frames).cpu().numpy()


def tried(work: Callable[[], Any]) -> Any:
    """What a call returns, or the error that it ends in: something to tell the other processes."""
    try:
        return work()
    except (ValueError, OSError) as error:
        return error


def shared(own: list[Any]) -> list[Any]:
    """What all processes bring, in their order, on each of them; an error of one is a ValueError of all.

    Without it, one process would end with its line and the others with a traceback about a lost connection.
    """
    everything = gather_object(own)
    for item in everything:
        if isinstance(item, Exception):
            raise ValueError(str(item)) from item
    return everything


# ----------------------------------------------------------------------------------------------------- before the work


def _look(work: Work, held: ExitStack) -> list[tuple[str, Piece]]:
    """The shards to write, with their splits; what is no use any more is removed, what was made of the same is kept.

    held: keeps the folder's lock. Raises ValueError where another has it, and where the disk has no room.
    """
    held.enter_context(claim(work.folder, cure="wait until it has finished"))
    for split, pieces in work.pieces.items():
        useless = set(work.folder.glob(f"{split}-*.h5")) - {work.folder / piece.file for piece in pieces}
        for fpath in useless | set(work.folder.glob(".*.tmp")):
            fpath.unlink()
    pieces = [(split, piece) for split, pieces in work.pieces.items() for piece in pieces]
    missing = [
        (split, piece)
        for split, piece in pieces
        if not tokens.is_finished(work.folder / piece.file, tokens.made_of(work.recipe, piece))
    ]
    if 0 < len(missing) < len(pieces):
        print(f"{len(pieces) - len(missing)} of {len(pieces)} shards are there already", flush=True)
    if missing:
        _announce(work, sum(piece.count for _, piece in missing))
    return missing


def _announce(work: Work, num_clips: int) -> None:
    num_bytes = num_clips * int(np.prod(work.shape)) * work.dtype.itemsize
    free = shutil.disk_usage(work.folder).free
    print(
        f"tokens of {num_clips:,} clips of {work.recipe.num_frames} frames, {in_words(num_bytes)} "
        f"({in_words(free)} free), to {work.folder}; an interrupted run goes on with the same command",
        flush=True,
    )
    if num_bytes > free:
        raise ValueError(
            f"{work.folder} has {in_words(free)} free, but the tokens need {in_words(num_bytes)}; "
            "free some space, or set a larger --tokenize.seq_step"
        )


def in_words(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"


# ------------------------------------------------------------------------------------------------------------ the work


def _encode_all(
    tokenizer: nn.Module, work: Work, missing: list[tuple[str, Piece]], batch_size: int, state: PartialState
) -> None:
    num_frames = sum(piece.count for _, piece in missing) * work.recipe.num_frames
    with tqdm(
        total=num_frames, unit=" frames", unit_scale=True, desc="tokenizing", mininterval=0.5,
        disable=not state.is_main_process,
    ) as bar:  # fmt: skip
        for split, piece in missing:
            batches = _encoded(tokenizer, work.datasets[split], piece, batch_size, state, bar)
            try:
                _write(work, piece, batches, state)
            except OSError as error:
                shared([error])  # in place of what the others wait for; raises here too
            shared([])
        seconds = max(bar.format_dict["elapsed"], 1e-9)
    if state.is_main_process:
        print(f"encoded in {duration(seconds)}, {num_frames / seconds:,.0f} frames/s", flush=True)


def _write(work: Work, piece: Piece, batches: Iterator[np.ndarray], state: PartialState) -> None:
    if not state.is_main_process:
        for _ in batches:
            pass
        return
    origin, shape = tokens.made_of(work.recipe, piece), (piece.count, *work.shape)
    tokens.write_shard(work.folder / piece.file, batches, shape=shape, dtype=work.dtype, origin=origin)


def _encoded(
    tokenizer: nn.Module, dataset: ClipDataset, piece: Piece, batch_size: int, state: PartialState, bar: tqdm
) -> Iterator[np.ndarray]:
    """A shard's tokens in order: every process encodes one batch at a time, and gets those of the others.

    Batches are cut alike whatever the number of processes, so that rounding is alike too.
    """
    windows = np.arange(piece.first, piece.first + piece.count)
    batches = [windows[start : start + batch_size] for start in range(0, piece.count, batch_size)]
    for first in range(0, len(batches), state.num_processes):
        own = batches[first + state.process_index : first + state.process_index + 1]  # none at the very end
        for batch in shared([tried(lambda part=part: encode(tokenizer, dataset, part, state.device)) for part in own]):
            yield batch
            bar.update(len(batch) * dataset.num_frames)


def _finish(work: Work) -> None:
    """Write `info.json`; splits that an earlier call wrote stay listed."""
    info, before = tokens.describe(work.recipe, work.pieces, work.shape, work.dtype), tokens.read_info(work.folder)
    if before is not None and before | {"splits": None} == info | {"splits": None}:
        info["splits"] = before["splits"] | info["splits"]
    if info == before:
        print(f"the tokens in {work.folder} are complete")
        return
    write_json(work.folder / tokens.INFO, info)
    print(f"written to {work.folder}; to train on them, put --train.token_cache=true in place of --mode=tokenize")


# -------------------------------------------------------------------------------------------------------- for training


def cached_clips(
    world: nn.Module, train: TrainSettings, recipe: Recipe, device: torch.device, command: str
) -> CachedClips:
    """The clips of the training split with their tokens, and with frames where a world learns its actions from them.

    command: what writes the tokens, for errors. Raises ValueError with one line where they are missing or stale, or
    where they are not what `world.tokenizer` makes of a few of the clips.
    """
    dataset = CachedClips(train.dataset_root_dpath, train.dataset_name, "train", recipe, command=command)
    windows = np.linspace(0, len(dataset) - 1, NUM_COMPARED).astype(np.int64)
    own = encode(world.tokenizer, dataset, windows, device)
    share = (own != dataset.batch(windows).tokens.numpy()).mean()
    if share > MOST_DIFFERENT:
        raise ValueError(
            f"{share:.0%} of the tokens in {dataset.cache.folder} are not what the tokenizer makes of the same clips; "
            f"delete that folder and write them anew with: {command}"
        )
    dataset.with_frames = world.is_latent
    return dataset
