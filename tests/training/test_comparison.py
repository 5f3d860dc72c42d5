"""Comparing evaluations: one table, honest about what cannot be compared, and differences on the same clips."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from training import comparability, comparison, main
from training.comparability import compare, paired_difference
from training.comparison import read_all
from training.comparison_table import best, text
from training.measured import Measured

from . import example_results
from .example_results import by_clip, guided, latent, tokenizer
from .test_report import Page


@pytest.fixture
def root(tmp_path):
    """Two worlds measured alike on the same clips."""
    example_results.write(tmp_path / "a", "guided", guided(), by_clip())
    example_results.write(tmp_path / "b", "latent", latent(), by_clip(shift=0.5))
    return tmp_path


def run(root, *inputs):
    """The mode as a user runs it: (comparison.json, comparison.html)."""
    words = [str(root / word) for word in inputs] or [str(root)]
    code = main.main(["--mode=compare", f"--compare.inputs=[{','.join(words)}]", f"--compare.out={root / 'out'}"])
    assert code == 0
    return json.loads((root / "out" / "comparison.json").read_text()), (root / "out" / "comparison.html").read_text()


def with_protocol(results, **changes):
    return results | {"protocol": results["protocol"] | changes}


# ---- one table


def test_models_are_rows_in_every_file_that_is_written(root, capsys):
    data, page = run(root)
    shown = capsys.readouterr().out
    assert data["groups"] == [["guided", "latent"]] and data["conflicts"] == {}
    assert [row["psnr"] for row in data["models"]] == [21.0, 22.0]
    assert "21.00 [20.00, 22.00]" in shown and "*22.00 [21.00, 23.00]" in shown
    rows = list(csv.DictReader((root / "out" / "comparison.csv").read_text().splitlines()))
    assert [(row["model"], row["psnr"], row["psnr_ci95_low"]) for row in rows] == [
        ("guided", "21.0", "20.0"),
        ("latent", "22.0", "21.0"),
    ]
    markdown = (root / "out" / "comparison.md").read_text()
    assert "| **22.00** [21.00, 23.00] |" in markdown
    Page(page)
    assert "copy last frame (floor)" in page and "not measured alike" not in page


def test_the_page_has_curves_and_forests_and_needs_nothing_but_itself(root):
    _, page = run(root)
    assert page.count("<svg") == 6  # PSNR, SSIM, LPIPS and ΔPSNR over the horizon, gain, paired difference
    assert "Dashed: copy last frame" in page
    assert all(source.startswith("#") for source in Page(page).sources)
    assert "<script" not in page


def test_floor_and_ceiling_stand_beside_the_models_of_a_group(root, capsys):
    _, page = run(root)
    rows = re.findall(r"<tr class=beside><th>([^<]+)</th><td>([\d.–]+)", page)
    assert rows == [
        ("copy last frame (floor)", "17.25"),
        ("tokenizer (ceiling)", "28.75"),
        ("random actions: latent", "19.50"),
        ("real frames: latent", "–"),
        ("the commonest action: latent", "–"),
    ]
    assert "tokenizer (ceiling)" in capsys.readouterr().out
    assert "| *copy last frame (floor)* | 17.25 [16.25, 18.25] |" in (root / "out" / "comparison.md").read_text()
    rows = list(csv.DictReader((root / "out" / "comparison.csv").read_text().splitlines()))
    assert [row["ceiling_psnr"] for row in rows] == ["28.75", "28.75"]


def test_ceilings_that_differ_are_told_apart(tmp_path):
    example_results.write(tmp_path / "a", "a", guided())
    example_results.write(tmp_path / "b", "b", guided(ceiling_psnr=30.5))
    _, page = run(tmp_path)
    assert "copy last frame (floor)<" in page
    assert "tokenizer (ceiling): a<" in page and "tokenizer (ceiling): b<" in page


def test_equal_values_make_nobody_the_best():
    models = {name: Measured(latent(), {}, {}, Path(name)) for name in "ab"}
    assert best(compare(models), ["a", "b"]) == {}


def test_worlds_with_latent_and_with_recorded_actions_are_said_to_be_told_other_things(root, tmp_path_factory, capsys):
    _, page = run(root)
    assert "latent actions are inferred from the very frames" in page and "very frames" in capsys.readouterr().out
    alike = tmp_path_factory.mktemp("alike")
    for name in "ab":
        example_results.write(alike / name, name, guided())
    assert "very frames" not in run(alike)[1]


def test_other_clips_are_told_of_beside_other_protocols_too(tmp_path):
    example_results.write(tmp_path / "a", "a", guided(), by_clip())
    example_results.write(tmp_path / "b", "b", guided(), by_clip(seed=1))
    example_results.write(tmp_path / "c", "c", with_protocol(guided(), prompt=4), by_clip())
    _, page = run(tmp_path)
    assert "its clips are not those of a" in page and "These facts differ" in page


def test_the_best_value_of_each_column_is_marked_lower_where_lower_is_better():
    worse = latent(psnr=19.0, fid=60.0, lpips=0.15)
    models = {"a": Measured(latent(), {}, {}, Path("a")), "b": Measured(worse, {}, {}, Path("b"))}
    compared = compare(models)
    winners = best(compared, ["a", "b"])
    assert (winners["psnr"], winners["fid"], winners["lpips"]) == ("a", "a", "b")
    assert "*41.2" in text(compared) and "*60.0" not in text(compared)


def test_a_metric_that_one_model_alone_has_marks_nobody(root):
    _, page = run(root)
    marked = re.findall(r"<td class=best>([\d.–]+)<", page)
    assert "22.00" in marked and "41.2" not in marked


# ---- what cannot be compared


@pytest.mark.parametrize(
    ("fact", "values"),
    [
        ("dataset", ("noise", "other")),
        ("split", ("test", "validation")),
        ("levels", ([10000, 10299], [0, 99])),
        ("prompt", (1, 4)),
        ("method", ("one_go", "autoregressive")),
        ("steps", (1, 25)),
        ("temperature", (0.0, 1.0)),
        ("top_k", (None, 10)),
        ("inception", ("6726825d", "00000000")),
    ],
)
def test_another_protocol_puts_models_into_groups_and_names_the_fact(tmp_path, capsys, fact, values):
    for name, value in zip("ab", values, strict=True):
        example_results.write(tmp_path / name, name, with_protocol(guided(), **{fact: value}), by_clip())
    data, page = run(tmp_path)
    assert data["groups"] == [["a"], ["b"]]
    assert data["conflicts"] == {fact: list(values)}
    shown = capsys.readouterr().out
    assert "only models of the same group can be compared" in shown and f"  {fact.replace('_', ' ')}: [1] " in shown
    assert "*" not in shown.split("* best")[0]
    assert "compare within a group only" in page and "class=best" not in page
    assert all(row["psnr_difference"] is None for row in data["models"])


def test_another_number_of_clips_is_another_protocol(tmp_path):
    example_results.write(tmp_path / "a", "a", guided())
    example_results.write(tmp_path / "b", "b", guided(num_clips=1000))
    assert run(tmp_path)[0]["conflicts"] == {"num_clips": [6, 1000]}


def test_reconstructions_are_not_compared_with_dreams(root):
    example_results.write(root / "c", "tokenizer", tokenizer())
    data, page = run(root)
    assert data["groups"] == [["guided", "latent"], ["tokenizer"]]
    assert data["conflicts"] == {"kind": ["dreams", "reconstructions"]}
    assert "Group 2" in page


def test_facts_of_the_model_and_of_missing_networks_do_not_part_models(tmp_path):
    other = with_protocol(guided(), weights="runs/b", train_steps=7, num_actions=15, inception="6726825d", news=1)
    example_results.write(tmp_path / "a", "a", guided())
    example_results.write(tmp_path / "b", "b", other)
    assert run(tmp_path)[0]["groups"] == [["a", "b"]]


def test_three_protocols_make_groups_whose_members_all_agree():
    facts = {name: {"kind": "dreams", "steps": steps} for name, steps in zip("abcde", (1, 2, 1, 3, 2), strict=True)}
    groups = comparability.group(facts)
    assert groups == [["a", "c"], ["b", "e"], ["d"]]
    assert comparability.conflicts(facts, groups) == {"steps": [1, 2, 3]}


# ---- differences on the same clips


def model(psnr, copy=None):
    psnr = np.asarray(psnr, dtype=float)
    return Measured(guided(), {"psnr": psnr, "copy_last_psnr": np.zeros_like(psnr) if copy is None else copy}, {}, None)


def test_a_paired_interval_by_hand():
    # Clips differ by 30 dB, the models by 1 dB on the one and 3 dB on the other: a resample of two clips has the mean
    # 1, 2 or 3 with chances of 1/4, 1/2 and 1/4, so that the middle 95 % reach from 1 to 3.
    first = model([[10, 10], [40, 40]])
    second = model([[10.5, 11.5], [43, 43]])
    found = paired_difference(second, first)
    assert found["mean"] == pytest.approx(2)
    assert found["ci95"] == pytest.approx([1, 3])


def test_a_constant_difference_is_certain_however_hard_the_clips():
    clips = np.random.default_rng(0).normal(20, 5, (50, 10))
    found = paired_difference(model(clips + 0.25), model(clips))
    assert found["mean"] == pytest.approx(0.25)
    assert found["ci95"] == pytest.approx([0.25, 0.25])


def test_the_difference_to_the_first_model_is_written_with_its_interval(root):
    data, page = run(root, "a/metrics.json", "b/metrics.json")
    first, second = data["models"]
    assert first["psnr_difference"] is None
    assert second["psnr_difference"] == pytest.approx(0.5)
    assert second["psnr_difference_ci95"] == pytest.approx([0.5, 0.5])
    assert "PSNR − first" in page and "+0.50" in page
    assert run(root, "b/metrics.json", "a/metrics.json")[0]["models"][1]["psnr_difference"] == pytest.approx(-0.5)


def test_other_clips_under_the_same_protocol_are_not_paired_and_that_is_said(tmp_path, capsys):
    example_results.write(tmp_path / "a", "a", guided(), by_clip())
    example_results.write(tmp_path / "b", "b", guided(), by_clip(seed=1))
    data, page = run(tmp_path)
    assert data["models"][1]["psnr_difference"] is None
    assert "b: its clips are not those of a" in capsys.readouterr().out
    assert "its clips are not those of a" in page


def test_without_values_by_clip_there_is_no_difference(tmp_path):
    example_results.write(tmp_path / "a", "a", guided())
    example_results.write(tmp_path / "b", "b", guided(), by_clip())
    assert run(tmp_path)[0]["models"][1]["psnr_difference"] is None


# ---- inputs


def test_files_folders_and_patterns_are_read_and_each_result_counts_once(root):
    (root / "empty").mkdir()
    (root / "notes.txt").write_text("a pattern may match more than results")
    for inputs in (
        ["a/metrics.json", "b/metrics.json"],
        ["a", "b"],
        ["."],
        ["?"],
        ["*"],
        ["*/metrics.json", "a"],
        ["**/b", "a"],
    ):
        assert set(read_all([str(root / word) for word in inputs])) == {"guided", "latent"}, inputs


def test_a_reports_copy_of_the_same_results_counts_once_and_loses_no_values_by_clip(root):
    copy = root / "0_report"
    copy.mkdir()
    (copy / "metrics.json").write_text(json.dumps({"guided": guided(), "latent": latent()}))
    found = read_all([str(root)])
    assert list(found) == ["guided", "latent"]
    assert all(m.by_clip for m in found.values())


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for number, folder in enumerate(("one/world/small", "one/world/large", "two/world/large")):
        example_results.write(tmp_path / folder, "world", guided(psnr=20.0 + number))
    names = list(read_all([str(tmp_path)]))
    assert names == ["world (one/world/large)", "world (small)", "world (two/world/large)"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("[{root}/nothing]", "no metrics.json at"),
        ("[{root}/a]", "only guided in"),
        ("[{root}/broken.json]", "not readable as JSON"),
        ("[{root}/list.json]", "does not hold results"),
        ("[{root}/other.json]", "does not hold results"),
        ("[]", "compare.inputs is []"),
        ("7", "compare.inputs is 7"),
    ],
)
def test_a_mistake_is_one_line(root, capfd, inputs, message):
    (root / "broken.json").write_text('{"guided": ')
    (root / "list.json").write_text("[1, 2]")
    (root / "other.json").write_text('{"guided": {"loss": 1}}')
    words = ["--mode=compare", f"--compare.inputs={inputs.format(root=root)}", f"--compare.out={root / 'out'}"]
    assert main.main(words) == 2
    said = capfd.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (root / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(root, capfd):
    (root / "file").write_text("")
    words = [f"--compare.inputs=[{root}]", f"--compare.out={root / 'file' / 'below'}"]
    assert main.main(["--mode=compare", *words]) == 2
    assert "set compare.out" in capfd.readouterr().err


def test_comparing_is_the_work_of_one_process(root, capfd, monkeypatch):
    monkeypatch.setenv("LAMP_NUM_PROCESSES", "2")
    assert main.main(["--mode=compare", f"--compare.inputs=[{root}]"]) == 2
    assert "leave --num_processes out" in capfd.readouterr().err


def test_the_mode_needs_no_config(root, capfd):
    assert main.main(["--mode=compare", f"--compare.inputs=[{root}]", f"--compare.out={root / 'out'}"]) == 0
    printed = capfd.readouterr().out
    assert "guided" in printed and comparison.STEM in printed
    assert {f"comparison.{kind}" for kind in ("html", "json", "csv", "md")} == {
        p.name for p in (root / "out").iterdir()
    }
