"""The report: one file that says everything, and pictures that show what they claim."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from training import report, video
from training.charts import learning_curves, psnr_over_horizon
from training.evaluation import SCHEMA
from training.video import Sample, animation, strip, write_dream_vs_real, write_gif


def world(**changes):
    results = dict.fromkeys(SCHEMA)
    for prefix, values in {"": [24.0, 18.25], "copy_last_": [22.0, 11.5], "ceiling_": [29.0, 28.5]}.items():
        results[f"{prefix}psnr"] = sum(values) / 2
        results[f"{prefix}psnr_ci95"] = [sum(values) / 2 - 1, sum(values) / 2 + 1]
        results[f"{prefix}psnr_by_horizon"] = values
        results[f"{prefix}psnr_by_horizon_ci95"] = [[value - 1, value + 1] for value in values]
    results |= {"psnr_gain_h2_10": 3.1, "delta_psnr": 1.23, "delta_psnr_ci95": [0.95, 1.51], "num_clips": 200}
    results |= {"eval_seconds": 20.0, "clips_per_second": 10.0, "train_seconds": 240.0}
    results |= {"fid_missing": "no weights; get it with: curl -o x", "protocol": {"split": "test", "prompt": 1}}
    return results | changes


def tokenizer():
    return dict.fromkeys(SCHEMA) | {"psnr": 29.1, "ssim": 0.95, "num_clips": 200, "protocol": {"split": "test"}}


def frames(length=4, height=8, width=12):
    """Frame t has the brightness 40·t."""
    return np.broadcast_to((40 * np.arange(length, dtype=np.uint8))[:, None, None, None], (length, height, width, 3))


@pytest.fixture
def samples():
    return [Sample(n, frames(), frames()[::-1], 1, ["left", "stay", "right"]) for n in range(3)]


class Page(HTMLParser):
    """Checks that elements close in order, and keeps what they refer to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        if tag not in ("meta", "img", "use", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("use", "path"):
            assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path, samples):
    write_dream_vs_real(tmp_path / "samples", samples)
    curve = tmp_path / "metrics.jsonl"
    curve.write_text("".join(json.dumps({"step": n, "train/loss": 1 / (n + 1)}) + "\n" for n in range(50)))
    results = {"tokenizer": tokenizer(), "a<b": world()}
    fpath = report.write_report(
        tmp_path / "report",
        results,
        {"a<b": curve},
        {"a<b": tmp_path / "samples"},
        commands={"train": "bash run.sh --config=genie_redux.yaml"},
        remarks=["One frame is given."],
    )
    return fpath.read_text()


def test_the_page_needs_nothing_but_itself(page):
    sources = Page(page).sources
    assert any(source.startswith("data:image/gif") for source in sources)
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.search(r"@import|url\((?!#)|<script", page)


def test_the_page_holds_numbers_floor_ceiling_notes_and_commands(page):
    for text in (
        "21.12", "[20.12, 22.12]", "1.23", "[0.95, 1.51]", "copy last frame (floor)", "16.75", "tokenizer (ceiling)",
        "28.75", "FID is missing: no weights; get it with: curl -o x", "bash run.sh --config=genie_redux.yaml",
        "One frame is given.", "200 clips", "240 s",
    ):  # fmt: skip
        assert text in page, text
    assert page.count("<svg") == 2
    assert "a&lt;b" in page and "<b>a<b" not in page


def test_metrics_and_pictures_lie_beside_the_page(page, tmp_path):
    names = {path.name for path in (tmp_path / "report").iterdir()}
    expected = {"report.html", "metrics.json", "a<b_dream_vs_real.gif", "a<b_dream_vs_real.png"}
    assert names == expected
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["a<b"] == world()


def test_a_report_of_a_tokenizer_alone_has_no_charts(tmp_path):
    text = report.write_report(tmp_path, {"tokenizer": tokenizer()}).read_text()
    Page(text)
    assert "29.10" in text and "<svg" not in text


def test_charts_take_their_colour_from_the_page(tmp_path):
    svg = psnr_over_horizon({"world": world()})
    assert svg.startswith("<svg") and "currentColor" in svg and "#010203" not in svg
    assert "copy last frame" in svg and "random actions" not in svg
    assert psnr_over_horizon({"tokenizer": tokenizer()}) == ""
    assert learning_curves({"nothing": tmp_path / "missing.jsonl"}) == ""


def test_the_last_line_of_a_killed_run_does_not_matter(tmp_path):
    curve = tmp_path / "metrics.jsonl"
    curve.write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 1.0}\n{"step": 3, "tra')
    assert learning_curves({"stage": curve}).startswith("<svg")


def test_the_table_shows_intervals_and_leaves_out_what_nobody_has():
    text = report.table({"tokenizer": tokenizer(), "guided": world()})
    assert "1.23 [0.95, 1.51]" in text
    assert "copy last frame (floor)  16.75 [15.75, 17.75]" in text
    assert "ΔPSNR last" not in text
    assert "FID is missing" in text
    present = report.table({"guided": world(fid=12.34, fid_missing=None)})
    assert "12.3" in present and "missing" not in present


# ---- pictures


def test_a_gif_shows_every_frame_of_every_clip(tmp_path, samples):
    gif, png = write_dream_vs_real(tmp_path, samples)
    with Image.open(gif) as image:
        assert image.n_frames == 4
        assert image.info["loop"] == 0
    with Image.open(png) as image:
        assert image.width > 4 * 12


def test_truth_lies_above_the_dream(samples):
    image = np.asarray(animation(samples)[3])
    scale = 16
    top, left = video.LINE + 4, video.LABELS
    real = image[top : top + 8 * scale, left : left + 12 * scale]
    below = top + 8 * scale + video.GAP
    dream = image[below : below + 8 * scale, left : left + 12 * scale]
    assert (real == 120).all()
    assert (dream == 0).all()


def test_a_strip_runs_through_time_from_left_to_right(samples):
    image = np.asarray(strip(samples[:1]))
    scale, top = 10, video.LINE + 4
    for time in range(4):
        left = video.LABELS + time * (12 * scale + video.GAP)
        assert (image[top : top + 8 * scale, left : left + 12 * scale] == 40 * time).all()


def test_few_colours_survive_the_gif(tmp_path):
    flat = [Image.new("RGB", (20, 10), colour) for colour in ((255, 0, 0), (0, 0, 255), (12, 200, 90))]
    write_gif(tmp_path / "flat.gif", flat)
    with Image.open(tmp_path / "flat.gif") as image:
        for index, expected in enumerate(flat):
            image.seek(index)
            assert image.convert("RGB").getpixel((5, 5)) == expected.getpixel((5, 5))


def test_where_there_is_no_truth_only_the_dream_is_drawn():
    with_truth = Sample(0, frames(), frames(), 1)
    without = Sample(0, None, frames(), 1, title="RIGHT")
    assert animation([without])[0].height < animation([with_truth])[0].height
