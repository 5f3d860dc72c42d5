"""The report: one file that says everything, and pictures that show what they claim."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from training import embedding, page, report, tables, video
from training.charts import learning_curves, over_horizon
from training.measured import Measured
from training.video import Sample, animation, strip, write_dream_vs_real, write_gif

from . import example_results
from .example_results import frames, guided, latent, tokenizer


class Page(HTMLParser):
    """Checks that elements close in order, and keeps what they refer to and say."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.titles, self.ids = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "img", "wbr", "use", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("use", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h2", "h3"):
            self.titles.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Evaluations of three models with everything that they leave behind."""
    folder = tmp_path_factory.mktemp("evaluations")
    for name, results in {"tokenizer": tokenizer(), "guided": guided(), "latent": latent()}.items():
        own = example_results.write(folder / name, name, results, example_results.by_clip())
        example_results.draw(own / "samples")
    embedding.write_latents(folder / "latent" / "latents.npz", example_results.latents())
    return folder


def page_of(folder, *names, **options):
    return report.write_report(folder / names[0], {name: folder / name for name in names}, **options).read_text()


# ---- what stands on the page


def test_names_break_between_words_and_are_escaped():
    assert page.name("out/genie_redux_<b>_") == "out/<wbr>genie_<wbr>redux_<wbr>&lt;b&gt;_"


COMMON = ["Results", "Use of codes and actions", "How it was measured", "The same again"]
LATENT = ["Latent actions: latent", "Latent against real actions", "Map of latent actions"]


@pytest.mark.parametrize(
    ("name", "sections", "charts"),
    [
        ("tokenizer", [*COMMON, "Reconstructions: tokenizer"], 1),
        ("guided", [*COMMON, "Over the horizon", "Dreams: guided"], 3),
        ("latent", [*COMMON, "Over the horizon", "Dreams: latent", *LATENT], 8),
    ],
)
def test_every_kind_of_model_has_its_sections(folder, name, sections, charts):
    text = page_of(folder, name, commands={"evaluation": "bash run.sh --config=genie_redux.yaml --mode=eval"})
    found = Page(text).titles
    assert set(found) == {*sections, name}
    assert text.count("<svg") == charts
    assert text.count("<img") == 6
    assert "bash run.sh --config=genie_redux.yaml --mode=eval" in text


@pytest.mark.parametrize("name", ["tokenizer", "guided", "latent"])
def test_the_page_needs_nothing_but_itself(folder, name):
    text = page_of(folder, name)
    sources = Page(text).sources
    assert any(source.startswith("data:image/gif") for source in sources)
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.search(r"@import|url\((?!#)|<script|<link|src=.http", text)


def test_charts_on_one_page_do_not_share_ids(folder):
    ids = Page(page_of(folder, "latent")).ids
    paths = [name for name in ids if re.match(r"[mpC][0-9a-f_]{8}", name)]
    assert paths and len(set(paths)) == len(paths)


def test_the_page_holds_numbers_floor_ceiling_and_real_frames(folder):
    text = page_of(folder, "latent", remarks=["One frame is given."])
    for words in (
        "22.00", "[21.00, 23.00]", "1.23", "[0.95, 1.51]", "copy last frame (floor)", "17.25", "tokenizer (ceiling)",
        "28.75", "random actions", "19.50", "real frames", "7.5", "41.2", "[39.0, 43.5]", "310.5", "420.5", "0.615",
        "0.835", "2.33", "[2.05, 2.75]", "the commonest action", "0.295", "0.210",
        "One frame is given.", "6 clips", "240 s", "10000 – 10299", "left, stay, right",
    ):  # fmt: skip
        assert words in text, words
    assert "is missing" not in text


def test_the_page_says_how_many_clips_of_what_were_dreamt_how(folder):
    text = page_of(folder, "guided", "latent", "tokenizer")
    said = "6 clips of noise (test, levels 10000 – 10299); 1 given frame, 3 predicted; 1 step, temperature 0; actions "
    for sentence in (
        f">guided: {said}recorded.<",
        f">latent: {said}inferred from the true frames.<",
        ">tokenizer: 6 clips",
    ):
        assert sentence in text
    assert "guided, latent</b>: latent actions are inferred from the very frames" in text
    assert "from the very frames" not in page_of(folder, "guided", "tokenizer")


@pytest.mark.parametrize(
    ("facts", "title"),
    [
        ({"levels_trained_on": 0}, "World models on levels they never saw"),
        ({"levels_trained_on": None}, "World models on held-out levels"),
        ({"levels_trained_on": 3}, "World models on levels that they were trained on"),
        ({"split": "train"}, "World models on levels that they were trained on"),
    ],
)
def test_the_title_claims_no_more_than_is_known(tmp_path, facts, title):
    results = guided()
    example_results.write(tmp_path / "x", "x", results | {"protocol": results["protocol"] | facts})
    assert f"<h1>{title}</h1>" in page_of(tmp_path, "x")


def test_measures_of_latent_actions_stand_beside_what_chance_gives(folder):
    rows = re.search(r"by chance</th>.*?<tbody>(.*?)</tbody>", page_of(folder, "latent"), re.DOTALL)[1].split("<tr>")[
        1:
    ]
    cells = [re.findall(r">([^<>]+)</t[hd]>", row)[:3] for row in rows]
    assert cells == [
        ["mutual information, bits", "0.83 [0.71, 0.94]", "0.17"],
        ["normalised (NMI)", "0.310 ", "0.065"],
        ["purity", "0.722 ", "0.405"],
        ["mapping accuracy", "0.625 [0.580, 0.670]", "0.375"],
    ]
    assert "of the 1.53 bits that it holds" in rows[0]


def test_the_axis_of_delta_psnr_holds_zero():
    results = guided(delta_psnr_by_horizon=[5.1, 5.2, 5.3])
    (svg,) = over_horizon({"world": measured(results)}, "delta_psnr", "ΔPSNR, dB")
    assert ">0<" in svg.replace(" ", "") or ">0.0<" in svg


def test_what_is_missing_is_named_with_its_cure(folder):
    text = page_of(folder, "guided")
    for name in ("fid", "lpips", "fvd"):
        cure = example_results.CURE.format(name)
        assert f"{name.upper()} is missing: {cure}" in text
    assert "the action-following score is missing: the dataset has no train split" in text


def test_results_of_an_earlier_evaluation_that_know_less_still_make_a_page(tmp_path):
    few = {"psnr": 20.5, "num_clips": 3, "psnr_by_horizon": [21.0, 20.0], "protocol": {"split": "test"}}
    example_results.write(tmp_path / "old", "old", few)
    text = page_of(tmp_path, "old")
    Page(text)
    assert "20.50" in text and text.count("<svg") == 1


def test_names_are_text_and_not_markup(tmp_path):
    name = "a<b>$c$"
    example_results.write(tmp_path / "x", name, guided())
    text = report.write_report(tmp_path / "x", {name: tmp_path / "x"}).read_text()
    Page(text)
    assert "a&lt;b&gt;" in text and "a<b>" not in text


def test_latent_codes_stand_against_real_actions_by_name(folder):
    text = page_of(folder, "latent")
    matrix = re.search(r'<table class="matrix">(.*?)</table>', text, re.DOTALL)[1]
    rows = [re.findall(r">([^<>]+)</t[hd]>", row) for row in matrix.split("<tr>")[1:]]
    assert rows[0] == ["latent", "left", "stay", "right", "all", "stands for"]
    assert rows[1] == ["0", "9", "0", "1", "10", "left"]
    assert rows[4] == ["3", "0", "0", "0", "0", "–"]
    shares = [float(share) for share in re.findall(r"--share: ([\d.]+)", matrix)]
    assert shares[0] == pytest.approx(0.9 * 0.8, abs=0.01) and shares[1] == 0


def test_use_is_shown_in_sorted_order_with_its_perplexity(folder):
    text = page_of(folder, "guided")
    chart = next(svg for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL) if "perplexity" in svg)
    assert "2 of 3 used, perplexity 1.8" in chart
    assert chart.index(">left<") < chart.index(">right<") < chart.index(">stay<")


def test_several_models_share_one_page_with_results_and_pictures_beside_it(folder, tmp_path):
    curve = tmp_path / "metrics.jsonl"
    curve.write_text("".join(json.dumps({"step": n, "train/loss": 1 / (n + 1)}) + "\n" for n in range(50)))
    names = ("tokenizer", "guided", "latent")
    fpath = report.write_report(tmp_path / "report", {name: folder / name for name in names}, {"latent": curve})
    titles = Page(fpath.read_text()).titles
    assert {"Reconstructions: tokenizer", "Dreams: guided", "Dreams: latent", "Learning curves", *LATENT} <= set(titles)
    written = {path.name for path in fpath.parent.iterdir()}
    assert written == {"report.html", "metrics.json"} | {f"{n}_{shown}" for n in names for shown in report.PICTURES}
    assert json.loads((fpath.parent / "metrics.json").read_text())["latent"] == latent()


def test_a_page_stays_small_and_names_the_pictures_that_it_leaves_out(folder, tmp_path):
    own = example_results.write(tmp_path / "large", "large", guided())
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1300, 1300), dtype=np.uint8))
    (own / "samples").mkdir()
    for name in ("best.gif", "median.gif", "worst.gif", "dream_vs_real.gif", "dream_vs_real.png"):
        noise.save(own / "samples" / name)
    assert sum(fpath.stat().st_size for fpath in (own / "samples").iterdir()) > 6e6
    fpath = report.write_report(own, {"large": own})
    assert fpath.stat().st_size < 6e6
    text = fpath.read_text()
    assert "Best clip" in text and "samples/dream_vs_real.gif" in text


def test_damaged_results_are_one_line(tmp_path):
    own = example_results.write(tmp_path / "x", "x", guided())
    (own / "by_clip.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"by_clip.npz is damaged") as error:
        report.write_report(own, {"x": own})
    assert "\n" not in str(error.value)


# ---- charts and tables


def measured(results, by_clip=None):
    return Measured(results, by_clip or {}, {}, None)


def test_charts_take_their_colour_from_the_page(tmp_path):
    (svg,) = over_horizon({"world": measured(guided())}, "psnr", "PSNR, dB")
    assert svg.startswith("<svg") and "currentColor" in svg and "#010203" not in svg
    assert over_horizon({"tokenizer": measured(tokenizer())}, "psnr", "PSNR, dB") == []
    assert learning_curves({"nothing": tmp_path / "missing.jsonl"}) == []


def test_bands_that_the_results_do_not_have_come_from_the_values_by_clip():
    def num_bands(by_clip):
        (svg,) = over_horizon({"world": measured(guided(), by_clip)}, "ssim", "SSIM")
        return svg.count("FillBetweenPolyCollection")

    assert num_bands({}) == 0
    assert num_bands(example_results.by_clip()) == 1
    assert num_bands({"ssim": np.zeros((6, 2))}) == 0  # of another evaluation


def test_the_last_line_of_a_killed_run_does_not_matter(tmp_path):
    curve = tmp_path / "metrics.jsonl"
    curve.write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 1.0}\n{"step": 3, "tra')
    assert learning_curves({"stage": curve})[0].startswith("<svg")


def test_the_table_shows_intervals_and_leaves_out_what_nobody_has():
    text = tables.table({"tokenizer": tokenizer(), "guided": guided()})
    assert "1.23 [0.95, 1.51]" in text
    assert "copy last frame (floor)  17.25 [16.25, 18.25]" in text
    assert "ΔPSNR last" not in text and "LPIPS  " not in text
    assert "FID is missing" in text
    complete = tables.table({"latent": latent()})
    assert "41.2 [39.0, 43.5]" in complete and "missing" not in complete


def test_the_table_of_a_model_with_every_metric_fits_a_terminal():
    lines = tables.table({"latent": latent()}).splitlines()
    assert max(map(len, lines)) < 150
    names = re.split("  +", lines[0].strip())
    assert names == ["latent", *(label for label, _ in tables.BESIDE)]
    row = next(line for line in lines if line.startswith("FID "))
    assert row.split() == ["FID", "41.2", "[39.0,", "43.5]", "18.5", "22.5", "7.5"]


# ---- the map of latent actions


def test_the_map_is_the_same_again_and_keeps_groups_together(tmp_path):
    given = example_results.latents(60)
    for name in ("a", "b"):
        embedding.write_latents(tmp_path / name, given)
    first, second = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("a", "b"))
    assert np.array_equal(first["embedding"], second["embedding"])
    points = first["embedding"]
    nearest = np.argsort(np.linalg.norm(points[:, None] - points[None], axis=-1), axis=1)[:, 1]
    assert (given["codes"][nearest] == given["codes"]).mean() > 0.9


@pytest.mark.parametrize("vectors", [np.ones((30, 4)), np.zeros((3, 2)), np.empty((0, 4))])
def test_vectors_that_are_all_alike_or_too_few_have_no_map(tmp_path, vectors):
    codes = np.zeros(len(vectors), int)
    embedding.write_latents(tmp_path / "latents.npz", {"vectors": vectors, "codes": codes})
    assert set(np.load(tmp_path / "latents.npz")) == {"vectors", "codes"}


def test_one_number_per_latent_action_is_enough_for_a_map():
    assert embedding.embed(np.arange(20.0)[:, None]).shape == (20, 2)


def test_a_model_without_latent_actions_leaves_no_older_file_behind(tmp_path):
    (tmp_path / "latents.npz").write_bytes(b"of another model")
    embedding.write_latents(tmp_path / "latents.npz", {})
    assert not (tmp_path / "latents.npz").exists()


# ---- pictures


@pytest.fixture
def samples():
    return example_results.samples()


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


def test_the_difference_lies_below_the_dream_three_times_as_bright():
    real, dream = np.full((2, 8, 12, 3), 100, np.uint8), np.full((2, 8, 12, 3), 90, np.uint8)
    dream[1] = 220
    images = [np.asarray(image) for image in animation([Sample(0, real, dream, 1, has_difference=True)])]
    scale = 16
    top = video.LINE + 4 + 2 * (8 * scale + video.GAP)
    place = np.s_[top : top + 8 * scale, video.LABELS : video.LABELS + 12 * scale]
    assert (images[0][place] == 30).all()
    assert (images[1][place] == 255).all()


def test_many_clips_go_into_rows_that_fit_the_page():
    one, many = (
        animation([Sample(n, None, frames(4, 64, 64), 1, title=str(n)) for n in range(count)])[3] for count in (1, 15)
    )
    assert many.width < 1016 and many.height > 2 * 64
    brightness = np.asarray(many) == 120
    assert brightness.all(axis=-1).sum() >= 15 * 64 * 64
    assert one.width < many.width


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


def test_many_colours_are_kept_near_in_a_gif_too(tmp_path):
    ramp = np.arange(256, dtype=np.uint8)
    smooth = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 128), axis=-1).astype(np.uint8)
    coin = smooth.copy()
    coin[100:110, 100:110] = (255, 255, 0)
    for picture in (smooth, coin):
        write_gif(tmp_path / "ramp.gif", [Image.fromarray(picture)] * 2)
        with Image.open(tmp_path / "ramp.gif") as image:
            error = np.asarray(image.convert("RGB")).astype(float) - picture
        assert np.sqrt((error**2).mean()) < 8
    assert np.abs(error[100:110, 100:110]).max() < 60


def test_where_there_is_no_truth_only_the_dream_is_drawn():
    with_truth = Sample(0, frames(), frames(), 1)
    without = Sample(0, None, frames(), 1, title="RIGHT")
    assert animation([without])[0].height < animation([with_truth])[0].height
