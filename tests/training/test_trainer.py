"""One process: what training writes, how it ends, and that a resumed run is the run that was never stopped."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from models import pretrained
from models.interfaces import StepOutput
from tests.training.workers import tiny
from tests.training.workers.forked import Forked
from tests.training.workers.tiny import configure
from training import checkpoint
from training.trainer import Trainer, train
from training.validation import is_better

REPOSITORY = Path(__file__).resolve().parents[2]


def run_folder(root: Path, kind: str, name: str) -> Path:
    return root / "runs" / ("tokenizer" if kind == "noisy_line" else kind) / name


def weights(root: Path, kind: str, name: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_folder(root, kind, name) / checkpoint.step_name(step) / checkpoint.WEIGHTS)


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("kind", ["noisy_line", "genie_redux"])
def test_resume_equals_an_unbroken_run(tmp_path, kind):  # with a moving average and kills, every kind: test_resume.py
    common = {"train__grad_accum": 2, "train__num_train_steps": 5}
    common |= {"optimizer__kind": "cosine", "train__validate_every": 2}
    train(configure(kind, tmp_path, name="unbroken", **common))
    torch.manual_seed(99)  # what else the process does must not matter
    train(configure(kind, tmp_path, name="resumed", **common, train__save_model_every=3))
    folder = run_folder(tmp_path, kind, "resumed")
    for path in (folder / "step-00000005").iterdir():
        path.unlink()
    (folder / "step-00000005").rmdir()
    torch.manual_seed(7)
    train(configure(kind, tmp_path, name="resumed", **common, train__resume_ckpt="auto"))

    assert_same(weights(tmp_path, kind, "unbroken", 5), weights(tmp_path, kind, "resumed", 5))
    states = [
        checkpoint.load_state(run_folder(tmp_path, kind, name) / "step-00000005") for name in ("unbroken", "resumed")
    ]
    moments = [state["optimizers"]["model"]["state"] for state in states]
    for number, moment in moments[0].items():
        assert_same(moment, moments[1][number])
    assert states[0]["best"] == states[1]["best"]
    losses = [
        [line for line in map(json.loads, (run_folder(tmp_path, kind, name) / "logs/metrics.jsonl").open())]
        for name in ("unbroken", "resumed")
    ]
    key = "train/loss"
    assert [(x["step"], x[key]) for x in losses[0] if key in x] == [(x["step"], x[key]) for x in losses[1] if key in x]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGUSR1, 0)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, exit_code):
    configure("noisy_line", tmp_path)
    process = Forked(tmp_path, "noisy_line", "train__num_train_steps=1000", "train__save_model_every=3", "slow=0.05")
    folder = run_folder(tmp_path, "noisy_line", "tokenizer")
    process.wait_until(lambda: checkpoint.list_steps(folder))
    process.kill(number)
    assert process.wait(seconds=30) == exit_code, process.output
    assert "Traceback" not in process.output
    last = process.output.strip().splitlines()[-1]
    assert "--train.resume_ckpt=auto" in last and str(checkpoint.list_steps(folder)[-1]) in last


def test_accumulated_micro_batches_are_one_big_batch(tmp_path):
    common = {"linear": True, "optimizer__max_grad_norm": 0.1}
    train(configure("tokenizer", tmp_path, name="big", **common, train__batch_size=6))
    train(configure("tokenizer", tmp_path, name="accumulated", **common, train__batch_size=2, train__grad_accum=3))
    big, accumulated = (weights(tmp_path, "tokenizer", name, 4) for name in ("big", "accumulated"))
    for name, value in big.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["loss", "token_accuracy"])
def test_the_best_step_by_a_validation_score_stays(tmp_path, metric):
    tiny.tiny_tokenizer(tmp_path)
    settings = {"train__num_train_steps": 6, "train__validate_every": 1, "train__keep_last": 1}
    train(configure("genie_redux_guided", tmp_path, **settings, train__keep_best=metric, optimizer__lr=1.0))
    folder = run_folder(tmp_path, "genie_redux_guided", "genie_redux_guided")
    lines = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line[f"validation/{metric}"] for line in lines if f"validation/{metric}" in line}
    best = (min if metric == "loss" else max)(scores, key=scores.get)
    assert len(scores) == 6 and best != 6  # at this rate it gets worse
    assert (folder / "best").read_text().strip() == checkpoint.step_name(best)
    assert [checkpoint.step_of(path) for path in checkpoint.list_steps(folder)] == [best, 6]


@pytest.mark.parametrize(
    "kind, known", [("noisy_line", "loss, squared$"), ("tokenizer", "loss, .*codes_used, codes_share$")]
)
def test_an_unknown_validation_score_is_named_before_anything_is_written(tmp_path, kind, known):
    with pytest.raises(ValueError, match=rf"^train.keep_best=psnr is not among the validation scores: {known}"):
        train(configure(kind, tmp_path, train__validate_every=2, train__keep_best="psnr"))
    assert not (tmp_path / "runs").exists()


def test_looking_which_validation_scores_there_are_changes_no_weight(tmp_path):
    for name, best in (("plain", None), ("best", "reconstruction")):
        train(configure("tokenizer", tmp_path, name=name, train__keep_best=best, train__num_train_steps=2))
    assert_same(*(weights(tmp_path, "tokenizer", name, 2) for name in ("plain", "best")))


def test_a_training_writes_what_the_design_says(tmp_path, capsys):
    tokenizer = tiny.tiny_tokenizer(tmp_path)
    train(configure("genie_redux_guided", tmp_path, train__validate_every=2, train__logger="tensorboard"))
    folder = run_folder(tmp_path, "genie_redux_guided", "genie_redux_guided")
    step = folder / (folder / "latest").read_text().strip()
    assert sorted(path.name for path in step.iterdir()) == ["model.safetensors", "trainer.pt"]
    assert (folder / "tokenizer.safetensors").read_bytes() == tokenizer.read_bytes()
    assert not [name for name in load_file(step / "model.safetensors") if name.startswith("tokenizer.")]
    (started,) = json.loads((folder / "record.json").read_text())["starts"]
    assert started["step"] == 0 and started["dataset"] == "noise" and len(started["dataset_sha256"]) == 64
    assert (folder / "config.yaml").exists() and list((folder / "logs" / "tensorboard").iterdir())
    with Image.open(folder / "samples" / "step-00000002" / "dream.gif") as gif:
        assert gif.n_frames == 4
    lines = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").open()]
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    assert {"seconds", "train/lr", "train/grad_norm", "train/frames_per_second", "train/data_wait_share"} <= set(
        trained[0]
    )
    assert [line["step"] for line in lines if "validation/loss" in line] == [2, 4]
    output = capsys.readouterr().out
    assert "parameters" in output and "2 clips x 1 accumulated x 1 process(es) = 2 clips a step" in output
    assert output.strip().splitlines()[-1].startswith("best validation loss")
    assert f"--mode=eval --eval.model_fpath={step}" in output


def test_with_a_moving_average_the_weight_file_holds_it_and_the_state_the_weights(tmp_path):
    run = Trainer(configure("noisy_line", tmp_path, train__ema_decay=0.9))
    run.run()
    saved = weights(tmp_path, "noisy_line", "tokenizer", 4)
    state = checkpoint.load_state(run_folder(tmp_path, "noisy_line", "tokenizer") / "step-00000004")
    for name, value in run.state.weights.items():
        assert torch.equal(saved[name], run.state.ema.average[name])
        assert torch.equal(state["weights"][name], value)
        assert not torch.equal(saved[name], value)


def test_the_time_budget_ends_a_training_and_its_schedule(tmp_path):
    run = Trainer(configure("noisy_line", tmp_path, train__num_train_steps=10**9, train__max_train_seconds=0.5))
    run.run()
    assert 0.5 <= run.state.elapsed < 5 and run.progress == 1
    lr = run.state.parts["model"].schedule
    lr.apply(run.state.step, run.progress)
    assert lr.lr == pytest.approx(0.01 * 0.5)


def test_a_finished_run_says_so_and_writes_nothing(tmp_path, capsys):
    train(configure("noisy_line", tmp_path))
    folder = run_folder(tmp_path, "noisy_line", "tokenizer")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    train(configure("noisy_line", tmp_path, train__resume_ckpt="auto"))
    assert "is finished at step 4, nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_finished_run_goes_on_when_it_is_extended_on_the_longer_schedule(tmp_path):
    train(configure("noisy_line", tmp_path))
    train(configure("noisy_line", tmp_path, train__resume_ckpt="auto", train__num_train_steps=6))
    folder = run_folder(tmp_path, "noisy_line", "tokenizer")
    assert [checkpoint.step_of(path) for path in checkpoint.list_steps(folder)] == [4, 6]
    train(configure("noisy_line", tmp_path, name="long", train__num_train_steps=6))
    rates = [
        {
            line["step"]: line["train/lr"]
            for line in map(json.loads, (run / "logs/metrics.jsonl").open())
            if "train/lr" in line
        }
        for run in (folder, run_folder(tmp_path, "noisy_line", "long"))
    ]
    assert list(rates[0]) == [1, 2, 3, 4, 5, 6]
    assert [rates[0][step] for step in (5, 6)] == [rates[1][step] for step in (5, 6)]


def test_a_fresh_run_never_overwrites_one(tmp_path):
    train(configure("noisy_line", tmp_path))
    with pytest.raises(ValueError, match="already holds a run"):
        train(configure("noisy_line", tmp_path))


def test_a_run_that_failed_at_once_does_not_stand_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_loop", lambda *_: 1 / 0)  # after the folder was made: memory that ran out, say
    with pytest.raises(ZeroDivisionError):
        train(configure("noisy_line", tmp_path))
    monkeypatch.undo()
    assert (run_folder(tmp_path, "noisy_line", "tokenizer") / "config.yaml").exists()
    train(configure("noisy_line", tmp_path))
    folder = run_folder(tmp_path, "noisy_line", "tokenizer")
    assert [checkpoint.step_of(path) for path in checkpoint.list_steps(folder)] == [4]


@pytest.mark.parametrize(
    "resume_ckpt, message", [(None, "already holds a run"), ("auto", r"another training has saved to .* meanwhile")]
)
def test_a_training_that_saved_while_another_was_being_built_is_not_overwritten(tmp_path, resume_ckpt, message):
    """Both saw an empty folder; with keep_last the second would have removed what the first one saved."""
    late = Trainer(configure("noisy_line", tmp_path, train__resume_ckpt=resume_ckpt))
    train(configure("noisy_line", tmp_path))
    folder = run_folder(tmp_path, "noisy_line", "tokenizer")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        late.run()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_with_files_of_others_is_not_taken_for_a_failed_start(tmp_path):
    folder = run_folder(tmp_path, "noisy_line", "tokenizer")
    (folder / "logs").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="already holds a run"):
        train(configure("noisy_line", tmp_path))


def test_steps_that_were_logged_are_not_lost_to_a_fresh_run(tmp_path):
    """Killed before its first checkpoint: the curves are all that there is of it."""
    train(configure("noisy_line", tmp_path))
    folder = run_folder(tmp_path, "noisy_line", "tokenizer")
    for step_dpath in checkpoint.list_steps(folder):
        shutil.rmtree(step_dpath)
    with pytest.raises(ValueError, match="already holds a run"):
        train(configure("noisy_line", tmp_path))


class Exploding(nn.Module):
    """Its loss is infinite from the third step on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, clip, step):
        return StepOutput(self.weight * (torch.inf if step >= 2 else 1.0), {})


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    cfg = configure("noisy_line", tmp_path, train__save_model_every=1)
    cfg.network = {"_target_": f"{__name__}.Exploding"}
    run = Trainer(cfg)
    with pytest.raises(ValueError, match="not finite at step 2"):
        run.run()
    assert torch.isfinite(run.state.model.weight) and run.state.step == 2
    assert checkpoint.step_of(checkpoint.list_steps(run.run_dpath)[-1]) == 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_clip_can_be_learned(tmp_path, optimizer):
    cfg = configure("tokenizer", tmp_path, optimizer=optimizer, train__num_train_steps=40, train__batch_size=1)
    run = Trainer(cfg)
    clip = run.dataset[0]._replace(seeds=torch.tensor(0))
    clip = type(clip)(*(None if part is None else part[None] for part in clip)).to("cpu")
    before = run.state.model(clip, 0).loss.item()
    run.objective = lambda parts, _, step: iter([("model", parts["model"].module(clip, step))])
    run.run()
    assert run.state.model(clip, 0).loss.item() < 0.7 * before


def test_a_dataset_of_another_frame_size_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"frames 16x16, but the model expects 32x32; .*data.image_size"):
        train(configure("tokenizer", tmp_path, data__image_size="[32,32]"))
    assert not (tmp_path / "runs").exists()


def test_more_actions_than_the_model_knows_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has 3 actions, but the model 2; set data.num_actions=3"):
        train(configure("genie_redux_guided", tmp_path, data__num_actions=2))


@pytest.mark.parametrize(
    "kind, losses",
    [
        ("tokenizer", {"loss", "reconstruction", "quantizer"}),
        ("genie_redux", {"loss", "cross_entropy", "lam_reconstruction", "lam_quantizer"}),
    ],
)
def test_of_every_validation_score_is_known_whether_more_is_better(tmp_path, kind, losses):
    train(configure(kind, tmp_path))
    lines = map(json.loads, (run_folder(tmp_path, kind, kind) / "logs" / "metrics.jsonl").open())
    (scores,) = [line for line in lines if "validation/loss" in line]
    names = {name.removeprefix("validation/") for name in scores if name.startswith("validation/")}
    assert {name for name in names if is_better(name, 1.0, 2.0)} == losses


def test_a_run_that_branches_off_another_has_its_tokenizer_too(tmp_path):
    tokenizer = tiny.tiny_tokenizer(tmp_path)
    train(configure("genie_redux_guided", tmp_path, name="first"))
    first, branch = (run_folder(tmp_path, "genie_redux_guided", name) for name in ("first", "branch"))
    longer = {"train__num_train_steps": 5, "train__resume_ckpt": first}
    train(configure("genie_redux_guided", tmp_path, name="branch", **longer))
    assert (branch / "tokenizer.safetensors").read_bytes() == tokenizer.read_bytes()
    tokenizer.unlink()
    assert pretrained.load(branch).tokenizer.codebook_size == 1024


def test_the_tokenizer_that_a_failed_start_left_is_replaced(tmp_path):
    tokenizer = tiny.tiny_tokenizer(tmp_path)
    folder = run_folder(tmp_path, "genie_redux_guided", "genie_redux_guided")
    (folder / "logs").mkdir(parents=True)
    (folder / "tokenizer.safetensors").write_text("another one")
    train(configure("genie_redux_guided", tmp_path))
    assert (folder / "tokenizer.safetensors").read_bytes() == tokenizer.read_bytes()
    assert pretrained.read_header(folder)["metadata"]["action_names"] == ["left", "stay", "right"]


def test_going_on_with_other_settings_is_said_at_the_start(tmp_path, capsys):
    train(configure("noisy_line", tmp_path, train__num_train_steps=2))
    again = {"train__num_train_steps": 4, "train__resume_ckpt": "auto", "train__batch_size": 1}
    capsys.readouterr()
    train(configure("noisy_line", tmp_path, **again))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "going on" in line]
    assert line.endswith("; changed: train.batch_size=1 (was 2), train.num_train_steps=4 (was 2)")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_going_on_takes_the_optimizers_numbers_of_now(tmp_path, optimizer):
    common = {"optimizer": optimizer, "train__num_train_steps": 2}
    train(configure("noisy_line", tmp_path, **common))
    other = {"optimizer__weight_decay": 0.25, "optimizer__betas": "[0.5,0.75]", "train__resume_ckpt": "auto"}
    part = Trainer(configure("noisy_line", tmp_path, **common | other)).state.parts["model"]
    groups = part.optimizer.param_groups
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}
    assert {tuple(group["betas"]) for group in groups if "betas" in group} == {(0.5, 0.75)}
    states = [part.optimizer.state_dict(), *part.optimizer.state_dict().values()]
    assert any(state["state"] for state in states if isinstance(state, dict) and "state" in state)
    assert part.schedule.lr == pytest.approx(0.0075)  # that of the last step, until the next one


@pytest.mark.parametrize("first, then", [("adamw", "muon"), ("muon", "adamw")])
def test_going_on_with_another_kind_of_optimizer_is_refused_in_one_line(tmp_path, first, then):
    train(configure("tokenizer", tmp_path, optimizer=first, train__num_train_steps=1))
    with pytest.raises(
        ValueError, match=r"^train.resume_ckpt=\S*step-00000001 holds .* optimizer; .*--train.init_fpath="
    ) as error:
        Trainer(configure("tokenizer", tmp_path, optimizer=then, train__resume_ckpt="auto"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("before, after", [(None, 2), (2, None)])
def test_reviving_dead_codes_can_be_switched_on_and_off_when_a_run_goes_on(tmp_path, before, after):
    train(configure("genie_redux", tmp_path, quantizer__dead_code_steps=before, train__num_train_steps=2))
    again = {"quantizer__dead_code_steps": after, "train__num_train_steps": 4, "train__resume_ckpt": "auto"}
    train(configure("genie_redux", tmp_path, **again))
    saved = weights(tmp_path, "genie_redux", "genie_redux", 4)
    assert ("actions.lam.quantizer.idle_steps" in saved) == (after is not None)
