"""Evaluation against oracles: games whose true future is known, seen by models that are perfect, blind or lazy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from data.clips import Clip
from models.interfaces import Rollout, Sampling
from models.pretrained import save_weights
from tests.models import builders
from training import evaluation, scorers
from training.command_line import compose, parse
from training.evaluation import SCHEMA, evaluate, run, score
from training.scorers import random_actions, replace_action, roll_out
from training.settings import EvalSettings
from training.setup import build_model

from .workers import tiny
from .workers.launch import launch

SIZE, NUM_ACTIONS, PROMPT, HORIZON = 16, 5, 2, 6


@pytest.fixture(scope="module")
def settings() -> EvalSettings:
    cfg = compose(parse(["--config=genie_redux.yaml"]))
    changes = {
        "num_first_frames": PROMPT,
        "sample_num_frames": HORIZON,
        "num_frames": 16,
        "delta_psnr_horizon": 4,
        "num_samples": 2,
        "inference_method": "autoregressive",
        "dream_length": 1,
    }
    return replace(EvalSettings.from_config(cfg.eval), **changes)


# ---- a game: a picture that every action pushes by so many pixels


def play(start, actions):
    """start (B, C, H, W), actions (B, K) -> the K frames that follow, (B, K, C, H, W)."""
    places = actions.cumsum(1)
    rows = [torch.stack([frame.roll(int(n), dims=-1) for n in row]) for frame, row in zip(start, places, strict=True)]
    return torch.stack(rows)


def make_clips(count=7, num_frames=16) -> Clip:
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(256, (count, 3, SIZE, SIZE), generator=generator) / 255
    actions = torch.randint(NUM_ACTIONS, (count, num_frames - 1), generator=generator)
    return Clip(torch.cat([start[:, None], play(start, actions)], 1), actions, seeds=torch.arange(count) * 7919 + 5)


def batches(clip, *sizes):
    start = 0
    for size in sizes:
        yield Clip(*(None if part is None else part[start : start + size] for part in clip))
        start += size


class Codec(nn.Module):
    """A tokenizer that keeps so many levels of each colour; 256 keep everything."""

    codebook_size = 256**3

    def __init__(self, levels=256):
        super().__init__()
        self.levels = levels - 1

    def encode(self, frames):
        red, green, blue = (frames * self.levels).round().long().unbind(2)
        return (red * 256 + green) * 256 + blue

    def decode(self, tokens):
        return torch.stack([tokens // 256**2, tokens // 256 % 256, tokens % 256], 2) / self.levels


class Oracle(nn.Module):
    """Knows the rules; what it dreams passes through its tokenizer."""

    num_actions = NUM_ACTIONS

    def __init__(self, *, is_latent=False, levels=256):
        super().__init__()
        self.is_latent = is_latent
        self.tokenizer = Codec(levels)
        self.asked = []  # frames of every rollout

    def infer(self, clip):
        return clip.actions

    def future(self, prompt, actions, seeds):
        return play(prompt[:, -1], actions[:, prompt.shape[1] - 1 :])

    def rollout(self, prompt, actions, *, sampling, seeds, chunk=1):
        assert isinstance(sampling, Sampling)
        frames = self.future(prompt, actions, seeds)
        self.asked.append(frames.shape[1])
        return Rollout(self.tokenizer.decode(self.tokenizer.encode(frames)), None)


class Blind(Oracle):
    """Dreams of noise that follows from the clip's seed: actions change nothing."""

    def future(self, prompt, actions, seeds):
        length = actions.shape[1] - prompt.shape[1] + 1
        noise = [torch.rand(16, *prompt.shape[2:], generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        return torch.stack(noise)[:, :length]


class Lazy(Oracle):
    def future(self, prompt, actions, seeds):
        return prompt[:, -1:].repeat(1, actions.shape[1] - prompt.shape[1] + 1, 1, 1, 1)


class Shuffled(Oracle):
    """Obeys, but its buttons do other things than the real ones: it must do worse than the truth, yet not be blind."""

    def future(self, prompt, actions, seeds):
        return super().future(prompt, (actions + 1) % NUM_ACTIONS, seeds)


def results_of(world, settings, sizes=(4, 3)):
    return evaluate(world, batches(make_clips(), *sizes), settings)


# ---- oracles


def test_a_model_that_returns_the_truth_hits_the_ceiling(settings):
    exact = results_of(Oracle(), settings)
    assert exact["psnr"] == exact["ceiling_psnr"] == pytest.approx(100)
    assert exact["psnr_floored_frames"] == 7 * HORIZON
    assert exact["ssim"] == pytest.approx(1, abs=1e-5)
    coarse = results_of(Oracle(levels=8), settings)
    assert 20 < coarse["psnr"] < 40
    assert coarse["psnr_by_horizon"] == pytest.approx(coarse["ceiling_psnr_by_horizon"])
    assert coarse["ssim"] == pytest.approx(coarse["ceiling_ssim"])


def test_the_copy_model_equals_the_copy_row(settings):
    results = results_of(Lazy(), settings)
    for key in ("psnr", "psnr_ci95", "psnr_by_horizon", "ssim"):
        assert results[key] == results[f"copy_last_{key}"]
    assert results["psnr_gain_h2_10"] == 0
    assert results["psnr_gain_h2_10_ci95"] == [0, 0]


def test_gain_is_the_mean_difference_to_copying_from_the_second_predicted_frame_on(settings):
    results = results_of(Oracle(levels=8), settings)
    difference = np.subtract(results["psnr_by_horizon"], results["copy_last_psnr_by_horizon"])
    assert results["psnr_gain_h2_10"] == pytest.approx(difference[1:].mean())
    low, high = results["psnr_gain_h2_10_ci95"]
    assert low < results["psnr_gain_h2_10"] < high


def test_an_action_blind_model_has_no_delta_psnr(settings):
    results = results_of(Blind(), settings)
    assert results["delta_psnr"] == results["delta_psnr_last"] == 0
    assert results["delta_psnr_ci95"] == [0, 0]


def test_a_model_that_obeys_has_delta_psnr_above_zero_and_shuffled_buttons_have_less(settings):
    obeys = results_of(Oracle(levels=8), settings)
    assert obeys["delta_psnr_ci95"][0] > 0
    assert obeys["delta_psnr_last_ci95"][0] > 0
    shuffled = results_of(Shuffled(levels=8), settings)
    assert shuffled["delta_psnr"] < obeys["delta_psnr"] / 2


def test_delta_psnr_is_what_its_definition_says(settings):
    clip, world = make_clips(), Oracle(levels=8)
    results = evaluate(world, batches(clip, 7), settings)
    clip = scorers.first_frames(clip, PROMPT + HORIZON)
    place = PROMPT + settings.delta_psnr_horizon - 1

    def quality(actions):
        frames = world.rollout(clip.frames[:, :PROMPT], actions, sampling=Sampling(), seeds=clip.seeds).frames
        error = (frames[:, place - PROMPT] - clip.frames[:, place]).square().mean((1, 2, 3))
        return -10 * np.log10(error.numpy())

    true = quality(clip.actions)
    random = [quality(random_actions(clip.actions, clip.seeds, PROMPT, NUM_ACTIONS, n)) for n in range(4)]
    assert results["delta_psnr"] == pytest.approx((true - np.mean(random, axis=0)).mean(), abs=1e-4)
    last = quality(replace_action(clip.actions, clip.seeds, place - 1, NUM_ACTIONS))
    assert results["delta_psnr_last"] == pytest.approx((true - last).mean(), abs=1e-4)


def test_random_actions_spare_the_prompt_and_belong_to_clip_and_sequence():
    actions, seeds = torch.zeros(400, 9, dtype=torch.long), torch.arange(400)
    drawn = random_actions(actions, seeds, 3, NUM_ACTIONS, 0)
    assert (drawn[:, :2] == 0).all()
    assert (torch.bincount(drawn[:, 2:].flatten()) / (400 * 7)).tolist() == pytest.approx([0.2] * 5, abs=0.03)
    assert not torch.equal(drawn, random_actions(actions, seeds, 3, NUM_ACTIONS, 1))
    assert torch.equal(drawn[17:19], random_actions(actions[17:19], seeds[17:19], 3, NUM_ACTIONS, 0))


def test_the_replaced_action_is_another_one_and_all_others_are_drawn_alike():
    actions, seeds = torch.full((400, 9), 3), torch.arange(400)
    drawn = replace_action(actions, seeds, 5, NUM_ACTIONS)
    assert (drawn[:, [0, 1, 2, 3, 4, 6, 7, 8]] == 3).all()
    assert (torch.bincount(drawn[:, 5], minlength=5) / 400).tolist() == pytest.approx([0.25] * 3 + [0, 0.25], abs=0.07)


def test_only_as_many_frames_are_dreamt_as_are_looked_at(settings):
    guided, latent = Oracle(), Oracle(is_latent=True)
    results_of(guided, settings, sizes=(7,))
    results_of(latent, settings, sizes=(7,))
    assert guided.asked == [HORIZON, 4, 4, 4, 4, 4]
    assert latent.asked == [HORIZON, HORIZON, 4, 4, 4, 4]


def test_random_actions_are_a_row_of_latent_worlds(settings):
    latent = results_of(Oracle(is_latent=True, levels=8), settings)
    assert latent["copy_last_psnr"] is not None
    assert latent["random_actions_psnr"] < latent["psnr"]
    assert len(latent["random_actions_psnr_by_horizon"]) == HORIZON
    assert results_of(Oracle(), settings)["random_actions_psnr"] is None


def test_actions_in_use_are_counted(settings):
    clip = make_clips()
    usage = evaluate(Oracle(), batches(clip, 7), settings)["action_usage"]
    seen = clip.actions[:, : PROMPT + HORIZON - 1]
    assert usage["counts"] == torch.bincount(seen.flatten(), minlength=NUM_ACTIONS).tolist()
    assert 4 < usage["perplexity"] <= 5


@pytest.mark.parametrize("world", [Oracle(is_latent=True, levels=8), Blind()])
def test_ragged_batches_equal_one_batch(settings, world):
    whole, ragged = (results_of(world, settings, sizes) for sizes in ((7,), (3, 3, 1)))
    for key in set(SCHEMA) - {"eval_seconds", "clips_per_second"}:
        assert_close(whole[key], ragged[key], key)


def assert_close(first, second, name):
    if isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            assert_close(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, (float, list)):
        assert np.allclose(first, second, rtol=1e-6, atol=1e-6), name
    else:
        assert first == second, name


def test_a_tokenizer_is_measured_on_whole_clips_and_its_codes_are_counted(settings):
    class Coarse(Codec):
        """Three codes: how bright a frame's pixel is."""

        codebook_size = 4

        def encode(self, frames):
            return (frames.mean(2) * 2).round().long()

        def decode(self, tokens):
            return (tokens / 2)[:, :, None].expand(-1, -1, 3, -1, -1)

    clip = make_clips()
    results = evaluate(Coarse(), batches(clip, 7), settings)
    expected = -10 * torch.log10((Coarse().decode(Coarse().encode(clip.frames)) - clip.frames).square().mean((2, 3, 4)))
    assert results["psnr"] == pytest.approx(float(expected.mean()), abs=1e-4)
    assert results["codebook_usage"] == 0.75
    assert 1 < results["codebook_perplexity"] < 3
    for key in ("delta_psnr", "delta_psnr_last", "copy_last_psnr", "ceiling_psnr", "psnr_by_horizon"):
        assert results[key] is None


def test_frames_that_are_not_finite_stop_the_evaluation(settings):
    class Broken(Oracle):
        def future(self, prompt, actions, seeds):
            return super().future(prompt, actions, seeds) * float("nan")

        def rollout(self, prompt, actions, **_):
            return Rollout(self.future(prompt, actions, None), None)

    with pytest.raises(ValueError, match="not finite"):
        results_of(Broken(), settings)


@pytest.mark.parametrize("kind", ["guided-published", "latent-in-place", "guided-in-place"])
@pytest.mark.parametrize(("method", "steps"), [("one_go", 1), ("one_go", 3), ("autoregressive", 1)])
def test_a_shortened_rollout_is_the_beginning_of_the_whole_one(settings, kind, method, steps):
    changes = {"inference_method": method, "inference_steps": steps, "dream_length": 2}
    chosen = replace(settings, **changes, sample_temperature=1.0, sample_noise=1.0)
    world = builders.settle(builders.world(kind))
    clip = builders.clip(batch=3, num_frames=PROMPT + HORIZON)
    actions = world.infer(clip)
    whole, short = (roll_out(world, clip, actions, chosen, needed) for needed in (None, 3))
    assert torch.allclose(short[:, :3], whole[:, :3], atol=1e-5)


def test_samples_are_spread_over_the_set_and_show_the_given_frames(settings):
    clip = make_clips()
    names = [f"push {n}" for n in range(NUM_ACTIONS)]
    samples = score(Blind(), batches(clip, 4, 3), settings, num_clips=7, action_names=names).samples
    assert [sample.number for sample in samples] == [0, 3]
    for sample in samples:
        assert sample.real.shape == sample.dream.shape == (PROMPT + HORIZON, SIZE, SIZE, 3)
        assert np.array_equal(sample.real[:PROMPT], sample.dream[:PROMPT])
        assert not np.array_equal(sample.real[PROMPT], sample.dream[PROMPT])
        assert sample.actions == [names[i] for i in clip.actions[sample.number, : PROMPT + HORIZON - 1]]


# ---- the whole job from a configuration


def configure(kind, root, **changes):
    """A saved model of random weights and the configuration that evaluates it on 7 held-out clips."""
    common = {
        "eval__dataset_name": "noise",
        "eval__seq_step": 1,
        "eval__num_clips": 7,
        "eval__batch_size": 2,
        "eval__num_samples": 2,
        "eval__model_name": kind,
        "eval__save_root_dpath": root / "out",
        "eval__weights_dir": root / "weights",
        "eval__inference_method": "autoregressive",
        "eval__dream_length": 1,
        "eval__model_fpath": root / f"{kind}.safetensors",
        "mode": "eval",
    }
    cfg = tiny.configure(kind, root, **(common | changes))
    fpath = root / f"{kind}.safetensors"
    if not fpath.exists():
        torch.manual_seed(0)
        model = builders.settle(build_model(cfg.network))
        save_weights(model, fpath, config=OmegaConf.to_container(cfg.network, resolve=True), metadata=METADATA)
    return cfg


METADATA = {"train_seconds": 12.5, "step": 300}
KINDS = ("tokenizer", "genie_redux", "genie_redux_guided")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_json_has_the_schema_and_pictures_lie_beside_it(root, kind, capsys):
    returned = run(configure(kind, root))
    folder = root / "out" / kind / "noise" / kind
    written = json.loads((folder / "metrics.json").read_text())
    assert written == json.loads(json.dumps(returned))
    results = written[kind]
    assert list(results) == list(SCHEMA)
    assert results["num_clips"] == 7
    assert results["train_seconds"] == 12.5
    assert results["clips_per_second"] > 0
    assert results["protocol"]["split"] == "validation"
    assert results["protocol"]["train_steps"] == 300
    low, high = results["psnr_ci95"]
    assert low <= results["psnr"] <= high
    assert results["fid"] is None and "download_models.py --models --fid" in results["fid_missing"]
    is_world = kind != "tokenizer"
    for key in ("delta_psnr", "delta_psnr_last", "copy_last_psnr", "ceiling_psnr", "psnr_gain_h2_10", "action_usage"):
        assert (results[key] is not None) == is_world
    assert (results["random_actions_psnr"] is not None) == (kind == "genie_redux")
    assert (results["codebook_perplexity"] is not None) == (not is_world)
    assert (results["protocol"].get("method") == "autoregressive") == is_world
    pictures = {path.name for path in (folder / "samples").iterdir()}
    expected = {"clip-0000.gif", "clip-0003.png", "dream_vs_real.gif", "dream_vs_real.png"}
    assert expected | ({"every_action.gif"} if is_world else set()) <= pictures
    assert np.load(folder / "by_clip.npz")["psnr"].shape == (7, 3 if is_world else 4)
    assert "psnr" in capsys.readouterr().out.lower()


def test_control_draws_pictures_and_measures_nothing(root):
    cfg = configure("genie_redux_guided", root, eval__action_to_take=2, eval__save_root_dpath=root / "control")
    results = run(cfg)["genie_redux_guided"]
    assert all(results[key] is None for key in SCHEMA if key != "protocol")
    written = {path.name for path in (root / "control").rglob("*") if path.is_file()}
    assert {"dream_vs_real.gif", "dream_vs_real.png", "clip-0000.gif"} <= written
    assert "metrics.json" not in written


def evaluate_in(num_processes: int, cfg_fpath: Path) -> str:
    process = launch(num_processes, "tests.training.workers.evaluate", str(cfg_fpath))
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.mark.parametrize("kind", ["genie_redux", "tokenizer"])
def test_two_processes_write_the_metrics_of_one(root, kind):
    one = configure(kind, root, eval__save_root_dpath=root / "one")
    two = configure(kind, root, eval__save_root_dpath=root / "two")
    expected = run(one)[kind]
    OmegaConf.save(two, root / "two.yaml")
    output = evaluate_in(2, root / "two.yaml")
    assert output.count("written to") == 1
    assert "pooled features are those of the whole" in output
    folder = root / "two" / kind / "noise" / kind
    results = json.loads((folder / "metrics.json").read_text())[kind]
    for key in set(SCHEMA) - {"eval_seconds", "clips_per_second"}:
        assert_close(results[key], expected[key], key)
    pictures = sorted((folder / "samples").iterdir())
    assert [path.name for path in pictures] == [
        path.name for path in sorted((root / "one" / kind / "noise" / kind / "samples").iterdir())
    ]


# ---- bad input: one line each


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("genie_redux", {"eval__model_fpath": "{root}/genie_redux_guided.safetensors"}, "holds a world with recorded"),
        ("tokenizer", {"eval__model_fpath": "{root}/genie_redux.safetensors"}, "expected a tokenizer"),
        ("tokenizer", {"eval__model_fpath": "{root}/nothing"}, "no weights at"),
        ("tokenizer", {"eval__dataset_name": "nois"}, "nearest existing: noise"),
        ("tokenizer", {"eval__num_frames": 90}, "longest episode"),
        ("tokenizer", {"eval__split": "test"}, "split=test"),
        ("tokenizer", {"eval__split": "train"}, "allow_train"),
        ("tokenizer", {"eval__action_to_take": 0}, "needs a world model"),
        ("genie_redux_guided", {"eval__action_to_take": 3}, r"0 to 2"),
        ("tokenizer", {"eval__require": "[fid]"}, "eval.require=fid"),
        ("tokenizer", {"eval__require": "[fidd]"}, "'fidd'"),
        ("tokenizer", {"eval__require": "[delta_psnr]"}, "eval.require=delta_psnr"),
        ("tokenizer", {"eval__save_root_dpath": "{root}/noise.txt/below"}, "eval.save_root_dpath"),
    ],
)
def test_a_mistake_is_one_line(root, kind, changes, message):
    for other in KINDS:
        configure(other, root)
    (root / "noise.txt").write_text("a file where a folder should be")
    changes = {k: v.format(root=root) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        run(configure(kind, root, **changes))
    assert "\n" not in str(error.value)


def test_a_dataset_with_other_frames_or_actions_is_one_line(root):
    cfg = configure("genie_redux_guided", root)
    settings = EvalSettings.from_config(cfg.eval)
    dataset = evaluation.preparation.open_dataset(settings, frame_skip=1)
    model = build_model(cfg.network)
    model.num_actions = 2
    with pytest.raises(ValueError, match=r"has 3 recorded actions, .* expects 2"):
        evaluation.preparation.check_fit(model, dataset, settings)
    model.image_size = (64, 64)
    with pytest.raises(ValueError, match=r"are 16x16, .* expects 64x64"):
        evaluation.preparation.check_fit(model, dataset, settings)


def test_training_levels_are_never_taken_by_default(root, tmp_path):
    info = json.loads((root / "data" / "noise" / "info.json").read_text())
    del info["splits"]["validation"]
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "info.json").write_text(json.dumps(info))
    settings = EvalSettings.from_config(configure("tokenizer", root, eval__dataset_root_dpath=tmp_path).eval)
    with pytest.raises(ValueError, match="no held-out levels"):
        evaluation.preparation.open_dataset(settings, frame_skip=1)
