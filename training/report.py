"""`report.html`: what an evaluation found, or several of them together, as one page that needs nothing but itself."""

import html
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.episodes import write_json
from training import action_charts, charts, measured, page, tables
from training.measured import Measured
from training.video import DIFFERENCE

REPORT = "report.html"
CHOSEN = ("best", "median", "worst")
# What is shown of a model's samples: those that fit into the page, taken in this order.
PICTURES = {
    **{f"{stem}.gif": f"{stem.capitalize()} clip by PSNR" for stem in CHOSEN},
    "every_action.gif": "Every action, taken again and again from the same frames.",
    "dream_vs_real.gif": "Clips spread over the set: the truth above, below what the model makes of it.",
    "dream_vs_real.png": "The same, frame by frame and in all colours.",
}
PICTURE_BYTES = 3_900_000  # of all pictures in a page: 5.2 MB as text, so that the page stays below 6 MB


def write_report(
    folder: Path,
    evaluations: Mapping[str, Path],
    curves: Mapping[str, Path] | None = None,
    *,
    commands: Mapping[str, str] | None = None,
    remarks: Sequence[str] = (),
) -> Path:
    """Write `report.html` into `folder`, self-contained and below 6 MB; returns it.

    evaluations: {model: the folder of its evaluation}. Where that is another folder, all results are written into
    `folder` too as one `metrics.json`, and the pictures as `<model>_best.gif` and so on. curves: {stage: its
    logs/metrics.jsonl}. commands: {stage: the line that runs it alone}. remarks: sentences under the title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: measured.read(Path(path) / measured.METRICS)[name] for name, path in evaluations.items()}
    results = {name: m.results for name, m in found.items()}
    if any(m.folder.resolve() != folder.resolve() for m in found.values()):
        write_json(folder / measured.METRICS, results)
    title = _page_title(results)
    pictures = _fitting({name: _pictures_of(m, folder, name) for name, m in found.items()})
    parts = [
        page.header(title, remarks, _tiles(results)),
        page.section("Results", page.sentences(_conditions(results)) + tables.results_section(results)),
        page.section("Over the horizon", _horizons(found)),
        *(page.section(_title_of(name, results), _pictures(*pictures[name], folder)) for name in found),
        page.section("Use of codes and actions", _usage(results)),
        *(page.section(f"Latent actions: {name}", action_charts.latent_section(m)) for name, m in found.items()),
        page.section("Learning curves", _learning(curves or {})),
        page.section("How it was measured", tables.protocol_section(results)),
        page.section("The same again", page.commands(commands or {})),
    ]
    return page.write_page(folder / REPORT, title, parts)


def _page_title(results: Mapping[str, dict[str, Any]]) -> str:
    """Says no more than is known about what the models have seen."""
    protocols = [result.get("protocol") or {} for result in results.values()]
    if any(facts.get("split") == "train" or facts.get("levels_trained_on") for facts in protocols):
        return "World models on levels that they were trained on"
    is_known = all(facts.get("levels_trained_on") == 0 for facts in protocols)
    return "World models on levels they never saw" if is_known else "World models on held-out levels"


def _conditions(results: Mapping[str, dict[str, Any]]) -> list[str]:
    """How the models were measured, those alike in one sentence."""
    names: dict[str, list[str]] = {}
    for name, result in results.items():
        if said := tables.conditions(result):
            names.setdefault(said, []).append(name)
    return [f"{', '.join(own)}: {said}." if len(results) > 1 else f"{said}." for said, own in names.items()]


def _tiles(results: Mapping[str, dict[str, Any]]) -> str:
    """The few numbers to see first."""
    tiles = []
    for name, result in results.items():
        shown = [
            (f"{result[key]:{sign}.2f}", label)
            for label, key, sign in (
                ("PSNR", "psnr", ""),
                ("over copying", "psnr_gain_h2_10", "+"),
                ("ΔPSNR", "delta_psnr", ""),
            )
            if result.get(key) is not None
        ]
        facts = "".join(f"<div><b>{value}</b> dB<span>{label}</span></div>" for value, label in shown)
        tiles.append(f'<div class="tile"><h3>{html.escape(name)}</h3><div class="facts">{facts}</div></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _horizons(found: Mapping[str, Measured]) -> str:
    panels = [panel for metric, label in charts.HORIZONS for panel in charts.over_horizon(found, metric, label)]
    return page.charts(panels, "Bands: 95 % over clips.", charts.rows_drawn(found))


def _usage(results: Mapping[str, dict[str, Any]]) -> str:
    panels = [panel for name, result in results.items() for panel in action_charts.usage_panels(name, result)]
    return page.charts(
        panels,
        "Sorted by use. Dashed: the share of each if all were used alike. Perplexity: so many, all used alike, would "
        "be as varied.",
    )


def _learning(curves: Mapping[str, Path]) -> str:
    return page.charts(charts.learning_curves(curves), "Loss over steps of each stage.", charts.LOSSES)


# ------------------------------------------------------------------------------------------------------------- pictures


def _pictures_of(m: Measured, folder: Path, name: str) -> list[tuple[str, Path]]:
    """(name in `PICTURES`, file) of the pictures that there are; copies of those that lie in another folder."""
    files = []
    for shown in PICTURES:
        source = m.folder / measured.SAMPLES / shown
        if not source.is_file():
            continue
        if m.folder.resolve() != folder.resolve():
            source = Path(shutil.copyfile(source, folder / f"{name}_{shown}"))
        files.append((shown, source))
    return files


def _fitting(
    files: Mapping[str, list[tuple[str, Path]]], limit: int = PICTURE_BYTES
) -> dict[str, tuple[dict[str, Path], list[Path]]]:
    """{model: (pictures for the page, files that must stay beside it)}: the first kind of all models, then the next."""
    chosen: dict[str, tuple[dict[str, Path], list[Path]]] = {name: ({}, []) for name in files}
    for shown in PICTURES:
        for name, own in files.items():
            fpath = dict(own).get(shown)
            if fpath is None:
                continue
            if fpath.stat().st_size <= limit:
                limit -= fpath.stat().st_size
                chosen[name][0][shown] = fpath
            else:
                chosen[name][1].append(fpath)
    return chosen


def _title_of(name: str, results: Mapping[str, dict[str, Any]]) -> str:
    return f"{'Dreams' if results[name].get('psnr_by_horizon') else 'Reconstructions'}: {name}"


def _pictures(shown: Mapping[str, Path], beside: Sequence[Path], folder: Path) -> str:
    """Best, median and worst clip beside each other, then the others; a strip is folded away."""
    chosen = [page.picture(shown[f"{stem}.gif"], PICTURES[f"{stem}.gif"]) for stem in CHOSEN if f"{stem}.gif" in shown]
    content = page.row(chosen)
    if chosen:
        content += (
            "<p>From above: the truth, what the model makes of it, and the absolute difference of both, "
            f"{DIFFERENCE} times as bright as it is. GIFs have 256 colours; the pictures frame by frame are exact.</p>"
        )
    for name, fpath in shown.items():
        if name.removesuffix(".gif") in CHOSEN:
            continue
        drawn = page.picture(fpath, PICTURES[name])
        content += page.details("Frame by frame", drawn) if fpath.suffix == ".png" else drawn
    if beside:
        names = ", ".join(str(fpath.relative_to(folder)) for fpath in beside)
        content += f"<p>Left out to keep this page small; beside it lie {html.escape(names)}.</p>"
    return content
