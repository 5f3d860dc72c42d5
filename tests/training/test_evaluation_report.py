"""What an evaluation leaves for people to see: its report, and the best, median and worst clips drawn once more."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from training import dreams, preparation
from training.evaluation import measure, run
from training.settings import EvalSettings

from .test_evaluation import KINDS, configure
from .test_report import Page
from .workers import evaluate as worker
from .workers.forked import run_two

CHOSEN = ("best", "median", "worst")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


def test_best_median_and_worst_are_chosen_by_psnr_over_all_frames():
    quality = np.array([[20.0, 22.0], [30.0, 10.0], [15.0, 15.0], [40.0, 0.0], [25.0, 25.0]])
    assert dreams.choose(quality) == {"best": 4, "median": 1, "worst": 2}
    assert dreams.choose(quality[:1]) == {"best": 0, "median": 0, "worst": 0}
    assert dreams.choose(quality[:2]) == {"best": 0, "median": 0, "worst": 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"eval__sample_temperature": 1.0, "eval__inference_method": "one_go"}])
def test_a_clip_that_is_drawn_again_is_the_one_that_was_scored(root, kind, changes):
    cfg = configure(kind, root, eval__num_samples=7, **changes)
    settings, state = EvalSettings.from_config(cfg.eval), preparation.processes()
    network = preparation.load_model(kind, settings, None)
    dataset = preparation.open_dataset(settings, frame_skip=1)
    scored = measure(network, dataset, settings, state)
    assert [sample.number for sample in scored.samples] == list(range(7))
    for sample in scored.samples:
        drawn, quality = dreams.redraw(network, dataset, settings, sample.number, torch.device("cpu"))
        names = dreams.names_of_actions(network, dataset)
        (again,) = dreams.samples_of(drawn, [sample.number], {sample.number}, names)
        assert np.array_equal(again.real, sample.real)
        assert np.abs(again.dream.astype(int) - sample.dream).max() <= 1  # a byte's rounding: other batch, other sums
        assert again.actions == sample.actions
        assert quality == pytest.approx(scored.by_clip["psnr"][sample.number].mean(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_leaves_a_report_with_its_chosen_clips(root, kind):
    run(configure(kind, root))
    folder = root / "out" / kind / "noise" / kind
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    title = f"{'Reconstructions' if kind == 'tokenizer' else 'Dreams'}: {kind}"
    assert {"Results", title, "How it was measured", "The same again"} <= set(page.titles)
    assert f"{json.loads((folder / 'metrics.json').read_text())[kind]['psnr']:.2f}" in text
    assert "FID is missing" in text and "download_models.py --models --fid" in text
    assert f"bash run.sh --config={kind}.yaml --name={kind} --mode=eval" in text
    for name in CHOSEN:
        with Image.open(folder / "samples" / f"{name}.gif") as image:
            assert image.n_frames == 4
        assert f"{name.capitalize()} clip" in text


def test_without_samples_there_is_a_report_without_pictures(root):
    cfg = configure("genie_redux_guided", root, eval__num_samples=0, eval__save_root_dpath=root / "none")
    run(cfg)
    folder = root / "none" / "genie_redux_guided" / "noise" / "genie_redux_guided"
    assert "<img" not in (folder / "report.html").read_text()
    assert not (folder / "samples").exists()


def test_two_processes_write_one_report_with_the_pictures_of_one(root):
    kind = "genie_redux_guided"
    run(configure(kind, root, eval__save_root_dpath=root / "one"))
    OmegaConf.save(configure(kind, root, eval__save_root_dpath=root / "two"), root / "two.yaml")
    process = run_two(root, module=worker.__name__)
    assert process.returncode == 0, process.stdout
    assert process.stdout.count("written to") == 1
    one, two = (root / name / kind / "noise" / kind for name in ("one", "two"))
    assert [path.name for path in (root / "two").rglob("report.html")] == ["report.html"]
    for name in CHOSEN:
        assert (two / "samples" / f"{name}.gif").read_bytes() == (one / "samples" / f"{name}.gif").read_bytes()
    text = (two / "report.html").read_text()
    Page(text)
    assert "--num_processes=2 --mode=eval" in text
