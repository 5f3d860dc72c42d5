"""Charts as SVG that sit inside a page and take their text colour from it, so that they suit light and dark."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from training.intervals import bootstrap
from training.measured import Measured

INK = "#010203"  # stands for the page's text colour until the SVG is written
BLUE, GREY, GREEN, AMBER = "#3987e5", "#8b919c", "#1baf7a", "#d98e04"
# Told apart by people who see no difference between red and green, on white as on dark; with a shape for each besides.
PALETTE = (BLUE, AMBER, GREEN, "#d55fae", "#b0561d", GREY, "#6157ea", "#35b3c9")
MARKERS = "os^DvPX*"
# prefix of the keys in the results, name of the row, colour
ROWS = (
    ("", "model", BLUE),
    ("ceiling_", "tokenizer ceiling", GREEN),
    ("copy_last_", "copy last frame", GREY),
    ("random_actions_", "random actions", AMBER),
)
HORIZONS = (  # metric, axis
    ("psnr", "PSNR, dB"),
    ("ssim", "SSIM"),
    ("lpips", "LPIPS (lower is better)"),
    ("delta_psnr", "ΔPSNR, dB"),
)
LOSSES = {"training": BLUE, "validation": AMBER}
WIDTH, HEIGHT = 4.6, 3.0  # inches per panel
LOG_RATIO = 20  # losses that fall by more are drawn on a logarithmic axis
MARGIN = 0.06  # of the range of values, above and below


def over_horizon(evaluations: Mapping[str, Measured], metric: str, label: str) -> list[str]:
    """A panel for each world that has the metric, all to one scale: the model and the rows beside it, 95 % bands."""
    worlds = {name: m for name, m in evaluations.items() if m.results.get(f"{metric}_by_horizon")}
    drawn = {name: [row for row in ROWS if m.results.get(f"{row[0]}{metric}_by_horizon")] for name, m in worlds.items()}
    lines = {name: [curve(worlds[name], f"{prefix}{metric}") for prefix, _, _ in drawn[name]] for name in worlds}
    limits = _limits(line for group in lines.values() for line in group)
    if metric == "delta_psnr":
        limits = min(0.0, limits[0]), max(0.0, limits[1])
    panels = []
    for name in worlds:
        figure, ax = panel()
        for (prefix, _, colour), line in zip(drawn[name], lines[name], strict=True):
            draw_curve(ax, *line, colour, width=2.2 if prefix == "" else 1.5)
        ax.set_ylim(*limits)
        if metric == "delta_psnr":
            ax.axhline(0, color=INK, alpha=0.4, linewidth=0.8)
        dress(ax, name, "predicted frame", label)
        ax.xaxis.get_major_locator().set_params(integer=True)
        panels.append(to_svg(figure, f"{metric}-{name}"))
    return panels


def rows_drawn(evaluations: Mapping[str, Measured]) -> dict[str, str]:
    """{name: colour} of what `over_horizon` draws."""
    keys = {key for m in evaluations.values() for key, value in m.results.items() if value}
    return {label: colour for prefix, label, colour in ROWS if keys & {f"{prefix}{m}_by_horizon" for m, _ in HORIZONS}}


def curve(measured: Measured, key: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (T,) of a metric by horizon, and their 95 % band (T, 2): as given, or from the values by clip."""
    values = np.array(measured.results[f"{key}_by_horizon"], dtype=float)
    band = measured.results.get(f"{key}_by_horizon_ci95")
    if band is not None:
        return values, np.array(band, dtype=float)
    by_clip = measured.by_clip.get(f"{key}_by_horizon", measured.by_clip.get(key))
    if by_clip is None or by_clip.shape[1:] != values.shape:
        return values, None
    return values, np.stack(bootstrap(by_clip), axis=1)


def draw_curve(
    ax: Axes, values: np.ndarray, band: np.ndarray | None, colour: str, *, width: float = 2.0, marker: str = "o"
) -> None:
    horizons = np.arange(1, len(values) + 1)
    ax.plot(horizons, values, color=colour, linewidth=width, marker=marker, markersize=3.5)
    if band is not None:
        ax.fill_between(horizons, band[:, 0], band[:, 1], color=colour, alpha=0.18, linewidth=0)


def _limits(lines: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> tuple[float, float]:
    seen = np.concatenate([np.ravel(part) for line in lines for part in line if part is not None] or [np.zeros(1)])
    margin = MARGIN * max(np.ptp(seen), 1e-6)
    return seen.min() - margin, seen.max() + margin


def learning_curves(curves: Mapping[str, Path]) -> list[str]:
    """A panel for each stage, from its logs/metrics.jsonl: training loss, and validation loss where it was taken."""
    panels = []
    for name, path in curves.items():
        lines = read_lines(path)
        if not lines:
            continue
        figure, ax = panel()
        seen = []
        for (label, colour), key in zip(LOSSES.items(), ("train/loss", "validation/loss"), strict=True):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                marker = "o" if label == "validation" else None
                ax.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, marker=marker, markersize=4)
                seen += [loss for _, loss in points]
        if seen and min(seen) > 0 and max(seen) / min(seen) > LOG_RATIO:
            ax.set_yscale("log")
        dress(ax, name, "step", "loss")
        panels.append(to_svg(figure, f"curves-{name}"))
    return panels


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; none where there is no such file."""
    if not Path(path).is_file():
        return []
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.endswith("}")]


def panel(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def dress(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    ax.set_title(title, color=INK, parse_math=False, fontsize=10, loc="left")
    ax.set_xlabel(xlabel, color=INK, parse_math=False, fontsize=9)
    ax.set_ylabel(ylabel, color=INK, parse_math=False, fontsize=9)
    ax.tick_params(colors=INK, labelsize=8, length=0)
    ax.grid(color=INK, alpha=0.12, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.patch.set_visible(False)
    for side in ax.spines.values():
        side.set_visible(False)


def to_svg(figure: Figure, name: str) -> str:
    """The `<svg>` element alone. The name keeps the ids of several charts on a page apart."""
    figure.patch.set_visible(False)
    figure.tight_layout()
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
