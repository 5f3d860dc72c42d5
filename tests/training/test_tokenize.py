"""Tokens written beside a dataset: equal to encode(clip), and a training from them to one from frames, or not used."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from data.clips import ClipDataset
from data.tokens import CachedClips
from models import pretrained
from tests.data.holding import another_process_holds
from tests.training.workers import tokenize as worker
from tests.training.workers.forked import Forked, run_two
from tests.training.workers.tokenize import configure, write_data
from training import main, tokenization
from training.settings import TokenizeSettings, TrainSettings
from training.setup import build_model
from training.trainer import Trainer, train

WORLDS = ("genie_redux_guided", "genie_redux")
TOKENIZERS = {
    "vq": {"quantizer": "vq"},
    "fsq": {"quantizer": "fsq", "tokenizer__norm_pixels": "false"},
    "lean": {"quantizer": "fsq", "tokenizer__feed_forwards": "last", "tokenizer__norm_keys": "true"},
}


def make_tokenizer(root: Path, seed: int = 0, **settings) -> Path:
    node = configure(root, "tokenizer", **settings).network
    torch.manual_seed(seed)
    fpath = root / f"tokenizer-{seed}-{'-'.join(settings.values())}" / "model.safetensors"
    pretrained.save_weights(build_model(node), fpath, config=OmegaConf.to_container(node, resolve=True))
    return fpath


def cached(cfg: DictConfig, split: str = "train") -> CachedClips:
    """The clips that a config's tokens are of, opened."""
    settings, fpath = TrainSettings.from_config(cfg.train), Path(cfg.tokenizer_fpath)
    recipe = tokenization.recipe_of(
        settings, TokenizeSettings.from_config(cfg.tokenize), fpath, pretrained.content_hash(fpath)
    )
    return CachedClips(settings.dataset_root_dpath, settings.dataset_name, split, recipe, command="")


def folder_of(root: Path) -> Path:
    (folder,) = (root / "data" / "noise" / "tokens").iterdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize(("kind", "sizes"), [("vq", (4, 1, 1)), ("fsq", (3, 2, 2)), ("lean", (4, 3, 1))], ids=str)
def test_cached_tokens_are_those_of_encode_for_every_window(tmp_path, kind, sizes):
    fpath = make_tokenizer(tmp_path, **TOKENIZERS[kind])
    num_frames, seq_step, frame_skip = sizes
    windows = {"train__num_frames": num_frames, "tokenize__seq_step": seq_step, "train__frame_skip": frame_skip}
    windows |= {"train__sample_num_frames": 2, "tokenize__splits": "[train,validation]", "tokenize__batch_size": 3}
    cfg = configure(tmp_path, tokenizer_fpath=fpath, **windows)
    tokenization.run(cfg)
    tokenizer = pretrained.load_frozen(fpath)
    for split in ("train", "validation"):
        dataset = cached(cfg, split)
        plain = ClipDataset(tmp_path / "data", "noise", split, num_frames, frame_skip=frame_skip, seq_step=seq_step)
        assert len(dataset) == len(plain) > 2
        for window in range(len(plain)):
            clip = plain.batch(np.array([window])).to("cpu")
            assert torch.equal(dataset.batch(np.array([window])).tokens, tokenizer.encode(clip.frames))
    assert len(cached(cfg).batch(np.arange(len(cached(cfg)))).tokens.unique()) > 5


def test_two_processes_write_the_bytes_of_one(tmp_path):
    tokenization.run(configure(tmp_path, tokenize__batch_size=2))
    alone = contents(folder_of(tmp_path))
    shutil.rmtree(folder_of(tmp_path))
    done = run_two(tmp_path, "tokenize__batch_size=2", module=worker.__name__)
    assert done.returncode == 0, done.stdout
    assert contents(folder_of(tmp_path)) == alone
    assert len([name for name in alone if name.endswith(".h5")]) == 4


def test_after_a_kill_the_same_command_goes_on_and_gives_the_same_bytes(tmp_path, capsys):
    cfg = configure(tmp_path, tokenize__batch_size=2)
    tokenization.run(cfg)
    unbroken = contents(folder_of(tmp_path))
    shutil.rmtree(folder_of(tmp_path))
    process = Forked(tmp_path, "slow=0.2", "tokenize__batch_size=2", module=worker.__name__)
    tokens_dpath = tmp_path / "data" / "noise" / "tokens"
    process.wait_until(lambda: list(tokens_dpath.glob("*/train-00000.h5")))
    process.kill()
    process.wait()
    folder = folder_of(tmp_path)
    kept = (folder / "train-00000.h5").stat().st_mtime_ns
    assert not (folder / "info.json").exists() and not (folder / "train-00003.h5").exists()
    with pytest.raises(ValueError, match="they are unfinished"):
        cached(cfg)
    capsys.readouterr()
    tokenization.run(cfg)
    assert "of 4 shards are there already" in capsys.readouterr().out
    assert (folder / "train-00000.h5").stat().st_mtime_ns == kept
    assert contents(folder) == unbroken


def test_a_complete_cache_is_left_alone_and_a_damaged_shard_is_written_anew(tmp_path, capsys):
    cfg = configure(tmp_path)
    tokenization.run(cfg)
    folder = folder_of(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}
    capsys.readouterr()
    tokenization.run(cfg)
    assert "are complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*")} == before
    whole = contents(folder)
    shard = folder / "train-00001.h5"
    shard.write_bytes(shard.read_bytes()[:1000])
    tokenization.run(cfg)
    assert contents(folder) == whole


def test_another_split_joins_those_that_are_written(tmp_path):
    tokenization.run(configure(tmp_path))
    tokenization.run(configure(tmp_path, tokenize__splits="[validation]"))
    assert len(cached(configure(tmp_path), "train")) and len(cached(configure(tmp_path), "validation"))


def test_a_dataset_made_anew_gets_new_tokens_by_the_same_command(tmp_path):
    cfg = configure(tmp_path)
    tokenization.run(cfg)
    before = contents(folder_of(tmp_path))
    write_data(tmp_path, seed=1)
    with pytest.raises(ValueError, match=r"the dataset has changed since they were made \(train-00000.h5 and 3 more"):
        cached(cfg)
    tokenization.run(cfg)
    assert contents(folder_of(tmp_path))["train-00000.h5"] != before["train-00000.h5"]
    tokenization.cached_clips(Trainer(configure(tmp_path)).state.model, *parts_of(cfg))


def parts_of(cfg: DictConfig) -> tuple:
    return TrainSettings.from_config(cfg.train), cached(cfg).cache.recipe, torch.device("cpu"), ""


# ---------------------------------------------------------------------------------------------------------- refusals


def test_two_writers_in_one_folder_are_refused(tmp_path):
    cfg = configure(tmp_path)
    tokenization.run(cfg)
    with another_process_holds(folder_of(tmp_path)), pytest.raises(ValueError, match="is being written by another"):
        tokenization.run(cfg)


def test_tokens_that_cannot_fit_on_the_disk_are_refused_before_the_first_is_made(tmp_path, monkeypatch):
    cfg = configure(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(ValueError, match=r"0.00 MB free, but the tokens need .* MB; .*--tokenize.seq_step"):
        tokenization.run(cfg)
    assert not list(folder_of(tmp_path).glob("*.h5"))


def test_frames_of_another_size_than_the_tokenizer_takes_are_refused(tmp_path):
    fpath = make_tokenizer(tmp_path, data__image_size="[32,32]")
    with pytest.raises(ValueError, match="frames are 16x16, the tokenizer expects 32x32"):
        tokenization.run(configure(tmp_path, tokenizer_fpath=fpath))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=tokenizer.yaml"], "mode=tokenize needs the config of a world"),
        (["--tokenize.seq_step=0"], "tokenize.seq_step is 0, expected a value of at least 1"),
        (["--tokenize.splits=[dev]"], "tokenize.splits is ['dev'], expected some of train, validation, test"),
        (["--tokenize.splits=[]"], "tokenize.splits is [], expected some of train, validation, test"),
        (["--train.token_cache=yes", "--mode=train"], "train.token_cache is 'yes', expected true or false"),
    ],
)
def test_impossible_values_end_in_a_line_that_names_the_key(words, message, capsys):
    assert main.main(["--config=genie_redux_guided.yaml", "--mode=tokenize", *words, "--check"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("config", WORLDS)
def test_the_command_passes_its_checks(config):
    assert main.main([f"--config={config}.yaml", "--mode=tokenize", "--check"]) == 0


# ---------------------------------------------------------------------------------------------------------- training


def losses(root: Path, kind: str, name: str) -> list[tuple]:
    lines = map(json.loads, (root / "runs" / kind / name / "logs" / "metrics.jsonl").open())
    return [(line["step"], line.get("train/loss"), line.get("validation/loss")) for line in lines]


def weights(root: Path, kind: str, name: str) -> dict[str, torch.Tensor]:
    return load_file(root / "runs" / kind / name / "step-00000005" / "model.safetensors")


@pytest.mark.parametrize("kind", WORLDS)
def test_a_training_from_tokens_is_the_training_from_frames_also_when_resumed(tmp_path, kind):
    common = {"train__num_train_steps": 5, "train__validate_every": 2, "train__grad_accum": 2}
    tokenization.run(configure(tmp_path, kind))
    train(configure(tmp_path, kind, name="frames", **common))
    common |= {"train__token_cache": "true", "train__save_model_every": 3}
    train(configure(tmp_path, kind, name="tokens", **common))
    folder = tmp_path / "runs" / kind / "tokens"
    shutil.copytree(folder, folder.with_name("resumed"), ignore=shutil.ignore_patterns("step-00000005"))
    train(configure(tmp_path, kind, name="resumed", **common, train__resume_ckpt="auto"))
    expected = weights(tmp_path, kind, "frames")
    for name in ("tokens", "resumed"):
        assert losses(tmp_path, kind, name) == losses(tmp_path, kind, "frames")
        for key, value in weights(tmp_path, kind, name).items():
            assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("kind", WORLDS)
def test_training_from_tokens_never_encodes_and_reads_frames_only_for_latent_actions(tmp_path, kind, capsys):
    tokenization.run(configure(tmp_path, kind))
    run = Trainer(configure(tmp_path, kind, train__token_cache="true"))
    encode, seen = run.state.model.tokenizer.encode, []

    def forbidden(frames):
        raise AssertionError("a training step encodes")

    def objective(parts, clip, step):
        seen.append(clip)
        run.state.model.tokenizer.encode = forbidden
        yield "model", parts["model"].module(clip, step)
        run.state.model.tokenizer.encode = encode

    run.objective = objective
    run.run()
    assert f"tokens from {run.dataset.cache.folder}" in capsys.readouterr().out
    assert len(seen) == 4
    for clip in seen:
        assert clip.tokens.shape == (2, 4, 2, 2) and (clip.frames is None) == (kind == "genie_redux_guided")


def test_a_coarser_grid_is_what_training_then_starts_on(tmp_path):
    coarse = {"tokenize__seq_step": 3, "train__token_cache": "true"}
    tokenization.run(configure(tmp_path, **coarse))
    run = Trainer(configure(tmp_path, **coarse))
    assert {run.dataset.locate(window)[1] % 3 for window in range(len(run.dataset))} == {0}
    assert len(run.dataset) == len(ClipDataset(tmp_path / "data", "noise", "train", 4, seq_step=3))
    run.run()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train__num_frames": 3, "train__sample_num_frames": 2}, r"num_frames 4 \(here 3\)"),
        ({"tokenize__seq_step": 2}, r"seq_step 1 \(here 2\)"),
        ({"tokenizer": {"seed": 1}}, r"tokenizer [0-9a-f]{12} \(here [0-9a-f]{12}\)"),
        (
            {"tokenizer": {"quantizer__normalize_codes": "true"}},
            r"tokenizer_config.quantizer.normalize_codes False \(here True\)",
        ),
    ],
    ids=["num_frames", "seq_step", "weights", "wiring"],
)
def test_stale_tokens_are_never_trained_on_and_the_line_says_what_differs_and_the_cure(tmp_path, change, reason):
    first = make_tokenizer(tmp_path, quantizer__normalize_codes="false")
    tokenization.run(configure(tmp_path, tokenizer_fpath=first))
    other = change.pop("tokenizer", None)
    fpath = first if other is None else make_tokenizer(tmp_path, **{"quantizer__normalize_codes": "false"} | other)
    with pytest.raises(ValueError, match=rf"{reason}; write them with: bash run.sh --config=.* --mode=tokenize$"):
        Trainer(configure(tmp_path, tokenizer_fpath=fpath, train__token_cache="true", **change))
    assert not (tmp_path / "runs").exists()


def test_tokens_that_the_tokenizer_would_not_make_are_noticed_whatever_their_labels_say(tmp_path):
    tokenization.run(configure(tmp_path))
    for fpath in folder_of(tmp_path).glob("*.h5"):
        with h5py.File(fpath, "r+") as file:
            file["tokens"][...] = (file["tokens"][...] + 1) % 1024
    with pytest.raises(ValueError, match=r"100% of the tokens in .* are not what the tokenizer makes of"):
        Trainer(configure(tmp_path, train__token_cache="true"))


def test_a_tokenizer_trains_on_frames_only(tmp_path):
    with pytest.raises(ValueError, match=r"train.token_cache is true, but a tokenizer trains on frames"):
        Trainer(configure(tmp_path, "tokenizer", train__token_cache="true"))
