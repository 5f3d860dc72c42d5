"""Evaluation against oracles: games whose true future is known, seen by models that are perfect, blind or lazy."""

import json
from dataclasses import replace

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
from training.rollouts import dream, frames_before, precision, random_actions, replace_action, roll_out
from training.settings import EvalSettings
from training.setup import build_model

from .workers import evaluate as worker
from .workers import networks, tiny
from .workers.forked import run_two
from .workers.game import NUM_ACTIONS, SIZE, play, write_game

PROMPT, HORIZON = 2, 6


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


# ---- the game of workers/game.py, with noise for a picture


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
        self.encoded = 0  # batches of prompts that no tokens were given for

    def infer(self, clip):
        return clip.actions

    def future(self, prompt, actions, seeds):
        return play(prompt[:, -1], actions[:, prompt.shape[1] - 1 :])

    def rollout(self, prompt, actions, *, sampling, seeds, chunk=1, prompt_tokens=None):
        assert isinstance(sampling, Sampling)
        self.encoded += prompt_tokens is None
        frames = self.future(prompt, actions, seeds)
        self.asked.append(frames.shape[1])
        tokens = self.tokenizer.encode(frames)
        known = self.tokenizer.encode(prompt) if prompt_tokens is None else prompt_tokens
        return Rollout(self.tokenizer.decode(tokens), torch.cat([known, tokens], dim=1))


class Blind(Oracle):
    """Dreams of noise that follows from the clip's seed: actions change nothing."""

    def future(self, prompt, actions, seeds):
        noise = [torch.rand(16, *prompt.shape[2:], generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        return torch.stack(noise)[:, prompt.shape[1] : actions.shape[1] + 1]


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

    def quality(actions, place=place):
        frames = world.rollout(clip.frames[:, :PROMPT], actions, sampling=Sampling(), seeds=clip.seeds).frames
        error = (frames[:, place - PROMPT] - clip.frames[:, place]).square().mean((1, 2, 3))
        return -10 * np.log10(error.numpy())

    true = quality(clip.actions)
    random = [quality(random_actions(clip.actions, clip.seeds, PROMPT, NUM_ACTIONS, n)) for n in range(4)]
    assert results["delta_psnr"] == pytest.approx((true - np.mean(random, axis=0)).mean(), abs=1e-4)
    random = [random_actions(clip.actions, clip.seeds, PROMPT, NUM_ACTIONS, n) for n in range(4)]
    for horizon, value in enumerate(results["delta_psnr_by_horizon"]):
        of_random = np.mean([quality(actions, PROMPT + horizon) for actions in random], axis=0)
        assert value == pytest.approx((quality(clip.actions, PROMPT + horizon) - of_random).mean(), abs=1e-4)
    assert len(results["delta_psnr_by_horizon"]) == settings.delta_psnr_horizon
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
    assert guided.asked == [HORIZON, 4, 4, 4, 4, 1]  # what lies before the replaced action is at hand
    assert latent.asked == [HORIZON, HORIZON, 4, 4, 4, 1]
    assert guided.encoded == latent.encoded == 0  # the true frames are encoded once, for the ceiling


@pytest.mark.parametrize(("method", "chunk", "last"), [("one_go", 1, 4), ("autoregressive", 3, 1)])
def test_a_round_that_the_replaced_action_lies_in_is_dreamt_again(settings, method, chunk, last):
    chosen = replace(settings, inference_method=method, dream_length=chunk)
    world = Oracle(levels=8)
    results = evaluate(world, batches(make_clips(), 7), chosen)
    assert world.asked[-1] == last
    assert results["delta_psnr_last"] == pytest.approx(results_of(Oracle(levels=8), settings)["delta_psnr_last"])


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
    elif isinstance(first, float) or (isinstance(first, list) and not all(isinstance(x, str) for x in first)):
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
def test_a_dream_that_goes_on_from_its_first_rounds_is_the_whole_dream(settings, kind, method, steps):
    changes = {"inference_method": method, "inference_steps": steps, "dream_length": 2}
    chosen = replace(settings, **changes, sample_temperature=1.0, sample_noise=1.0)
    world = builders.settle(builders.world(kind))
    clip = builders.clip(batch=3, num_frames=PROMPT + HORIZON)
    actions = world.infer(clip)
    tokens = world.tokenizer.encode(clip.frames)
    whole = dream(world, clip, actions, chosen)
    assert torch.equal(whole.tokens, dream(world, clip, actions, chosen, tokens=tokens).tokens)
    done = frames_before(chosen, 4)
    assert done == (0 if method == "one_go" else 2)
    known = clip._replace(frames=torch.cat([clip.frames[:, :PROMPT], whole.frames[:, :done]], 1))
    rest = dream(world, known, actions, chosen, num_needed=4, tokens=whole.tokens, num_done=done)
    assert torch.allclose(rest.frames[:, : 4 - done], whole.frames[:, done:4], atol=1e-5)


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


def configure(kind, root, weights=None, **changes):
    """A saved model of random weights and the configuration that evaluates it on 7 held-out clips."""
    fpath = root / f"{weights or kind}.safetensors"
    common = {
        "eval__dataset_name": "noise",
        "eval__seq_step": 1,
        "eval__num_clips": 7,
        "eval__batch_size": 2,
        "eval__num_samples": 2,
        "eval__model_name": kind,
        "eval__save_root_dpath": root / "out",
        "eval__weights_dir": root / "weights",
        "eval__reader_steps": 2,
        "eval__inference_method": "autoregressive",
        "eval__dream_length": 1,
        "eval__model_fpath": fpath,
        "mode": "eval",
    }
    cfg = tiny.configure(kind, root, **(common | changes))
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
    assert results["lpips"] is None and "at least 32x32" in results["lpips_missing"]
    assert results["fvd"] is None and "at least 10 frames" in results["fvd_missing"]
    is_world = kind != "tokenizer"
    for key in (
        "delta_psnr",
        "delta_psnr_last",
        "copy_last_psnr",
        "ceiling_psnr",
        "psnr_gain_h2_10",
        "action_usage",
        "action_following",
    ):
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


def test_a_world_that_knows_more_actions_than_the_data_is_drawn_under_all_of_them(root):
    cfg = configure("genie_redux_guided", root, weights="guided_of_five", data__num_actions=5, eval__model_name="five")
    results = run(cfg)["five"]
    assert results["protocol"]["num_actions"] == 5 and len(results["protocol"]["action_names"]) == 3
    assert (root / "out" / "five" / "noise" / "genie_redux_guided" / "samples" / "every_action.gif").is_file()


def in_the_game(kind, root, **changes):
    """7 clips of the game with ten predicted frames, and every network that a metric needs, with random weights."""
    if not (root / "data" / "squares").exists():
        configure(kind, root)
        write_game(root / "data", "squares", size=32, train=(20, 14, 0), validation=(7, 14, 1000))
        write_game(root / "data", "overlapping", size=32, test=(4, 14, 17))
        networks.write_all(root / "weights_of_all")
    common = {
        "data__image_size": "[32,32]",
        "train__dataset_name": "squares",
        "eval__dataset_name": "squares",
        "eval__num_frames": 11,
        "eval__sample_num_frames": 10,
        "eval__reader_steps": 20,
        "eval__weights_dir": root / "weights_of_all",
    }
    if kind != "tokenizer":
        in_the_game("tokenizer", root)
        common |= {"data__num_actions": NUM_ACTIONS, "dynamics__max_seq_len": None}
        common["tokenizer_fpath"] = root / "tokenizer_of_game.safetensors"
    return configure(kind, root, weights=f"{kind}_of_game", **(common | changes))


MEASURED = {
    "genie_redux": (
        "action_error_ratio_ci95",
        "latent_actions",
        "random_actions_lpips",
        "copy_last_fvd",
        "real_fid_nearest",
    ),
    "tokenizer": ("codebook_counts",),
}


@pytest.mark.parametrize("kind", ["genie_redux", "tokenizer"])
def test_two_processes_write_the_metrics_of_one(root, kind, monkeypatch):
    networks.use_stand_ins(monkeypatch)
    one = in_the_game(kind, root, eval__save_root_dpath=root / "one")
    two = in_the_game(kind, root, eval__save_root_dpath=root / "two")
    expected = run(one)[kind]
    for key in ("lpips", "lpips_by_horizon", "fid", "fid_ci95", "fid_nearest", "fvd", "fvd_ci95", *MEASURED[kind]):
        assert (expected[key] is not None) or (kind == "tokenizer" and key == "lpips_by_horizon"), key
    assert expected["num_clips"] == 7
    OmegaConf.save(two, root / "two.yaml")
    done = run_two(root, module=worker.__name__)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("written to") == 1
    assert "pooled features are those of the whole" in done.stdout and "without clips takes part" in done.stdout
    folders = [root / name / kind / "squares" / kind for name in ("one", "two")]
    results = json.loads((folders[1] / "metrics.json").read_text())[kind]
    for key in set(SCHEMA) - {"eval_seconds", "clips_per_second"}:
        assert_close(results[key], expected[key], key)
    pictures = [sorted(path.name for path in (folder / "samples").iterdir()) for folder in folders]
    assert pictures[0] == pictures[1]
    if kind == "genie_redux":
        first, second = (np.load(folder / "latents.npz") for folder in folders)
        assert first["vectors"].shape == (70, 32)
        for name in ("vectors", "codes", "actions"):
            assert np.allclose(first[name], second[name], atol=1e-5), name
        maps = [json.loads((folder / "latent_actions.json").read_text()) for folder in folders]
        assert maps[0] == maps[1] and maps[0]["counts"] == expected["latent_actions"]["counts"]


def test_levels_that_the_model_was_trained_on_are_refused(root):
    def with_training_set(name):
        fpath = root / f"trained_on_{name}.safetensors"
        cheap = {"eval__leave_out": "[lpips,fid,fvd]", "eval__num_samples": 0}
        cfg = in_the_game("tokenizer", root, eval__dataset_name="overlapping", eval__model_fpath=fpath, **cheap)
        node = OmegaConf.to_container(cfg.network, resolve=True)
        save_weights(build_model(cfg.network), fpath, config=node, metadata={"dataset_name": name})
        return cfg

    with pytest.raises(
        ValueError, match=r"overlapping \(test\) has 3 levels, such as 17, .* set eval.allow_train=true"
    ):
        run(with_training_set("squares"))
    for name in ("noise", "not at hand", "overlapping"):  # other game, gone, without a training split
        assert run(with_training_set(name))["tokenizer"]["psnr"] is not None
    allowed = with_training_set("squares")
    allowed.eval.allow_train = True
    results = run(allowed)["tokenizer"]
    assert results["psnr"] is not None and results["protocol"]["levels_trained_on"] == 3
    held_out = with_training_set("squares")
    held_out.eval.dataset_name = "squares"
    facts = run(held_out)["tokenizer"]["protocol"]
    assert facts["split"] == "validation" and facts["levels_trained_on"] == 0


def test_metrics_can_be_left_out(root):
    cfg = configure("genie_redux", root, eval__leave_out="[action_following,fid]")
    results = run(cfg)["genie_redux"]
    assert results["action_following"] is None
    assert results["action_following_missing"] == "left out by eval.leave_out=action_following"
    assert results["fid_missing"] == "left out by eval.leave_out=fid"


def test_in_mixed_precision_the_model_computes_in_bf16_and_pixels_stay_fp32(settings):
    world = builders.settle(builders.world("latent-in-place"))
    clip = builders.clip(batch=2, num_frames=PROMPT + HORIZON)
    seen = []

    def note(module, inputs, output):
        seen.append(output.dtype)

    for part in (world.tokenizer.patch_embedding.first[1], world.dynamics.to_logits, world.tokenizer.to_pixels):
        part.register_forward_hook(note)
    mixed = replace(settings, mixed_precision="bf16")
    frames = dream(world, clip, world.infer(clip), mixed).frames
    assert frames.dtype == torch.float32 and seen[-1] == torch.float32
    assert set(seen[:-1]) == {torch.bfloat16}
    rounded = frames.bfloat16().float()
    assert (frames != rounded).float().mean() > 0.9
    assert evaluate(world, batches(clip, 2), mixed)["psnr"] == pytest.approx(
        evaluate(world, batches(clip, 2), settings)["psnr"], abs=0.5
    )
    assert precision(settings, torch.device("cpu")) == "no" and precision(mixed, torch.device("cpu")) == "bf16"


# ---- bad input: one line each


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("genie_redux", {"eval__model_fpath": "{root}/genie_redux_guided.safetensors"}, "holds a world with recorded"),
        ("tokenizer", {"eval__model_fpath": "{root}/genie_redux.safetensors"}, "expected a tokenizer"),
        ("tokenizer", {"eval__model_fpath": "{root}/nothing"}, "eval.model_fpath=.*no weights at"),
        ("tokenizer", {"eval__dataset_name": "nois"}, "nearest existing: noise"),
        ("tokenizer", {"eval__num_frames": 90}, "longest episode"),
        ("tokenizer", {"eval__split": "test"}, "split=test"),
        ("tokenizer", {"eval__split": "train"}, "allow_train"),
        ("tokenizer", {"eval__action_to_take": 0}, "needs a world model"),
        ("genie_redux_guided", {"eval__action_to_take": 3}, r"0 to 2"),
        ("tokenizer", {"eval__require": "[fid]"}, "eval.require=fid"),
        ("tokenizer", {"eval__require": "[fidd]"}, "'fidd'"),
        ("tokenizer", {"eval__require": "[delta_psnr]"}, "eval.require=delta_psnr"),
        ("genie_redux", {"eval__require": "[fvd]"}, "eval.require=fvd, but eval.sample_num_frames is 3"),
        (
            "tokenizer",
            {"eval__require": "[lpips]"},
            "eval.require=lpips, but frames are 16x16, LPIPS needs at least 32x32",
        ),
        ("genie_redux", {"eval__require": "[fid_nearest]"}, "eval.require=fid_nearest, but no weights-inception"),
        ("genie_redux", {"eval__require": "[lpips]", "eval__leave_out": "[lpips]"}, "take it out of one of them"),
        ("genie_redux", {"eval__leave_out": "[psnr]"}, "eval.leave_out is .*, expected some of fid, fvd"),
        ("genie_redux_guided", {"eval__require": "fid", "eval__action_to_take": 1}, "eval.require names fid, but"),
        ("genie_redux", {"eval__mixed_precision": "fp16"}, "eval.mixed_precision is 'fp16'"),
        (
            "genie_redux",
            {"eval__require": "[action_following]", "eval__reader_dataset_name": "other"},
            "eval.require=action_following, but eval.reader_dataset_name=other cannot be read",
        ),
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
