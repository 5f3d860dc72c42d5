"""Curves as SVG that sits inside a page and takes its text colour from it, so that they suit light and dark."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour until the SVG is written
BLUE, GREY, GREEN, AMBER = "#3987e5", "#8b919c", "#1baf7a", "#d98e04"
# prefix of the keys in the results, name of the row, colour
ROWS = (
    ("", "model", BLUE),
    ("ceiling_", "tokenizer ceiling", GREEN),
    ("copy_last_", "copy last frame", GREY),
    ("random_actions_", "random actions", AMBER),
)
WIDTH, HEIGHT = 4.6, 3.0  # inches per panel
LOG_RATIO = 20  # losses that fall by more are drawn on a logarithmic axis


def psnr_over_horizon(results: Mapping[str, dict[str, Any]]) -> str:
    """A panel for each world: the model between its floor and its ceiling, with 95 % bands. "" without worlds."""
    worlds = {name: result for name, result in results.items() if result["psnr_by_horizon"]}
    if not worlds:
        return ""
    figure = Figure(figsize=(WIDTH * len(worlds), HEIGHT))
    axes = figure.subplots(1, len(worlds), sharey=True, squeeze=False)[0]
    for ax, (name, result) in zip(axes, worlds.items(), strict=True):
        for prefix, label, colour in ROWS:
            values, bands = result[f"{prefix}psnr_by_horizon"], result[f"{prefix}psnr_by_horizon_ci95"]
            if values is None:
                continue
            horizons = range(1, len(values) + 1)
            line_width = 2.2 if prefix == "" else 1.5
            ax.plot(horizons, values, color=colour, label=label, linewidth=line_width, marker="o", markersize=3)
            if bands is not None:
                low, high = zip(*bands, strict=True)
                ax.fill_between(horizons, low, high, color=colour, alpha=0.18, linewidth=0)
        dress(ax, name, "predicted frame", "PSNR, dB" if ax is axes[0] else "")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    return to_svg(figure, "horizon")


def learning_curves(curves: Mapping[str, Path]) -> str:
    """A panel for each stage, from its logs/metrics.jsonl: training loss, and validation loss where it was taken."""
    stages = {name: lines for name, path in curves.items() if (lines := read_lines(path))}
    if not stages:
        return ""
    figure = Figure(figsize=(WIDTH * len(stages), HEIGHT))
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for ax, (name, lines) in zip(axes, stages.items(), strict=True):
        seen = []
        for key, label, colour in (("train/loss", "training", BLUE), ("validation/loss", "validation", AMBER)):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                marker = "o" if key == "validation/loss" else None
                ax.plot(
                    *zip(*points, strict=True), color=colour, label=label, linewidth=1.6, marker=marker, markersize=4
                )
                seen += [loss for _, loss in points]
        if seen and min(seen) > 0 and max(seen) / min(seen) > LOG_RATIO:
            ax.set_yscale("log")
        dress(ax, name, "step", "loss" if ax is axes[0] else "")
    axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    return to_svg(figure, "curves")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; none where there is no such file."""
    if not Path(path).is_file():
        return []
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.endswith("}")]


def dress(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    ax.set_title(title, color=INK, fontsize=10, loc="left")
    ax.set_xlabel(xlabel, color=INK, fontsize=9)
    ax.set_ylabel(ylabel, color=INK, fontsize=9)
    ax.tick_params(colors=INK, labelsize=8, length=0)
    ax.grid(color=INK, alpha=0.12, linewidth=0.6)
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
