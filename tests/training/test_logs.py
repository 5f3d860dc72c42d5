"""What a training leaves for TensorBoard and Weights & Biases, read back by their own readers."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.workers.tiny import configure
from training.logs import MOST_BARS, RunLog, _bars
from training.trainer import Trainer, train
from training.usage import Usage


def events_of(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder / "logs" / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    return events.Reload()


@pytest.mark.parametrize(
    ("kind", "picture", "usage", "size"),
    [("tokenizer", "reconstruction", "codes", 1024), ("genie_redux", "dream", "actions", 7)],
)
def test_tensorboard_gets_moving_pictures_and_the_use_of_codes(tmp_path, kind, picture, usage, size):
    train(configure(kind, tmp_path, train__logger="tensorboard", train__validate_every=2))
    folder = tmp_path / "runs" / kind / kind
    events = events_of(folder)
    shown = events.Images(f"samples/{picture}")
    assert [image.step for image in shown] == [2, 4]
    with Image.open(io.BytesIO(shown[0].encoded_image_string)) as gif:
        assert gif.format == "GIF" and gif.n_frames == 4 and gif.size == (shown[0].width, shown[0].height)
    assert len(events.Images(f"samples/{picture}_strip")) == 2
    histogram = events.Histograms(f"validation/{usage}")[-1].histogram_value
    lines = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").open()]
    last = [line for line in lines if "validation/loss" in line][-1]
    assert histogram.max == size - 1
    assert histogram.num == {"codes": 3 * 4 * 4, "actions": 3 * 3}[usage]  # 3 clips of 4 frames of 2 x 2 tokens
    share = sum(count > 0 for count in histogram.bucket) / size
    assert last[f"validation/{usage}_share"] == pytest.approx(share) or size > MOST_BARS
    assert 1 <= last[f"validation/{usage}_used"] <= size
    scalars = {tag for tag in events.Tags()["scalars"] if not tag.startswith(("train/", "validation/"))}
    assert not scalars and f"train/{usage}_used" in events.Tags()["scalars"]


def test_usage_is_counted_over_all_clips_whatever_the_batch(tmp_path):
    scores = []
    for batch_size in (1, 3):
        run = Trainer(configure("tokenizer", tmp_path, name=str(batch_size), train__batch_size=batch_size))
        run.run()
        usage = Usage(run.state.model)
        clips = run.held_out.batch(torch.arange(3).numpy()).to("cpu")
        with usage.counting(), torch.no_grad():
            for start in range(0, 3, batch_size):
                rows = slice(start, start + batch_size)
                run.state.model(clips._replace(frames=clips.frames[rows]), 0)
        run.state.model(clips, 0)  # outside, nothing is counted
        tokens = run.state.model.encode(clips.frames)
        assert torch.equal(usage.counts["codes"], torch.bincount(tokens.flatten(), minlength=1024))
        scores.append(usage.scores())
        assert scores[-1]["validation/codes_share"] == pytest.approx(tokens.unique().numel() / 1024)


def test_bars_of_a_large_codebook_keep_every_choice():
    counts = torch.arange(1300)
    bars, edges = _bars(counts)
    assert len(bars) <= MOST_BARS and len(edges) == len(bars) + 1 and bars.sum() == counts.sum()
    assert edges[0] == -0.5 and edges[-1] == 1299.5


def test_wandb_offline_writes_its_files_and_a_resumed_run_keeps_its_id(tmp_path):
    pytest.importorskip("wandb")
    offline = {"train__logger": "wandb", "train__wandb_mode": "offline", "train__wandb_dpath": tmp_path / "wandb"}
    offline |= {"train__num_train_steps": 2, "train__validate_every": 2}
    first = Trainer(configure("tokenizer", tmp_path, **offline))
    first.run()
    longer = offline | {"train__num_train_steps": 4, "train__resume_ckpt": "auto"}
    second = Trainer(configure("tokenizer", tmp_path, **longer))
    second.run()
    run_id = first.state.log_run_id
    assert run_id is not None and second.state.log_run_id == run_id
    files = list((tmp_path / "wandb").glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    assert list((tmp_path / "wandb").rglob("reconstruction*.gif"))
    assert list((tmp_path / "wandb").rglob("reconstruction_strip*.png"))


def test_wandb_without_an_account_is_one_line_that_says_what_else_there_is(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    online = {"train__logger": "wandb", "train__wandb_mode": "online", "train__wandb_dpath": tmp_path / "wandb"}
    with pytest.raises(
        ValueError, match=r"^Weights & Biases does not start \(.*login.*\); .*wandb_mode=offline"
    ) as error:
        train(configure("noisy_line", tmp_path, **online))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without a disk that is always full")
def test_a_disk_that_is_full_while_logs_are_written_is_one_line(tmp_path):
    run = Trainer(configure("noisy_line", tmp_path))
    log = RunLog(tmp_path, run.settings, {}, step=0, run_id=None)
    log.fpath = Path("/dev/full")
    with pytest.raises(
        ValueError, match=r"^cannot write logs to .*/logs \(No space left on device\); free .*resume_ckpt"
    ):
        log.scalars(1, 0.5, {"train/loss": 1.0})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without a disk that is always full")
def test_a_disk_that_is_full_while_samples_are_written_is_one_line(tmp_path):
    run = Trainer(configure("tokenizer", tmp_path, train__num_train_steps=2))
    folder = run.run_dpath / "samples" / "step-00000002"
    folder.mkdir(parents=True)
    (folder / "reconstruction.gif").symlink_to("/dev/full")
    with pytest.raises(
        ValueError, match=r"^cannot write samples to \S*step-00000002 \(No space left on device\); free"
    ):
        run.run()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_its_curves_anew(tmp_path):
    settings = {"train__logger": "tensorboard", "train__resume_ckpt": "auto"}
    train(configure("noisy_line", tmp_path, **settings))
    folder = tmp_path / "runs" / "tokenizer" / "tokenizer"
    shutil.rmtree(folder / "step-00000004")
    train(configure("noisy_line", tmp_path, **settings))
    assert [event.step for event in events_of(folder).Scalars("train/loss")] == [1, 2, 3, 4]
