"""`comparison.html`: models as rows, what keeps groups apart, curves on one axis, gains with their intervals."""

import html
from pathlib import Path

import numpy as np

from training import charts, page, tables
from training.charts import INK, MARKERS, PALETTE
from training.comparability import Compared
from training.comparison_table import DIFFERENCE, Line, shown, table_of, warnings

TITLE = "World models compared"
FLOOR, FLOOR_PREFIX = "copy last frame", "copy_last_"  # drawn where the clips of a group are the same
FORESTS = (  # metric, axis
    ("psnr_gain_h2_10", "PSNR over copying, frames 2–10, dB"),
    (DIFFERENCE, "PSNR − first, same clips, dB"),
)
ROW_HEIGHT = 0.34  # inches


def write(fpath: Path, compared: Compared) -> Path:
    """Write the page, self-contained; returns it."""
    several = len(compared.groups) > 1
    parts = [
        page.header(TITLE, [_sentence(compared)]),
        page.section("Results", _table(compared) + _conflicts(compared)),
    ]
    for number, names in enumerate(compared.groups, start=1):
        parts.append(page.section(f"Group {number}" if several else "Curves", _plots(compared, names)))
    results = {name: m.results for name, m in compared.models.items()}
    parts.append(page.section("How it was measured", tables.protocol_section(results)))
    files = [[name, str(m.folder)] for name, m in compared.models.items()]
    parts.append(page.section("Where it is from", page.table(["", "evaluation"], files)))
    return page.write_page(fpath, TITLE, parts)


def _sentence(compared: Compared) -> str:
    count = len(compared.models)
    if len(compared.groups) == 1:
        return f"{count} models, measured alike."
    return f"{count} models in {len(compared.groups)} groups that were not measured alike: compare within a group only."


def _table(compared: Compared) -> str:
    headings, lines = table_of(compared)
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = []
    for number in range(1, len(compared.groups) + 1):
        if len(compared.groups) > 1:
            body.append(f'<tr class="group"><th colspan="{len(headings) + 1}">Group {number}</th></tr>')
        body += [_row(line) for line in lines if line.group == number]
    return (
        f'<div class="wide"><table class="results"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div><figcaption>Shaded: the best of its group, however near others. "
        "In brackets: 95 % bootstrap interval over clips."
        f"{_about_pairs(compared)}</figcaption>" + page.details("What the columns mean", tables.legend(shown(compared)))
    )


def _about_pairs(compared: Compared) -> str:
    if not compared.differences:
        return ""
    return (
        " PSNR − first: difference to the first model of the group on the same clips, each resampled with both its "
        "values; where the interval leaves out 0, the models differ."
    )


def _row(line: Line) -> str:
    cells = "".join(
        f"<td{' class=best' if is_best else ''}>{value or '–'}<small>{interval}</small></td>"
        for value, interval, is_best in line.cells
    )
    return f"<tr{'' if line.is_model else ' class=beside'}><th>{page.name(line.name)}</th>{cells}</tr>"


def _conflicts(compared: Compared) -> str:
    said = page.notes([("Note", line) for line in warnings(compared)])
    if len(compared.groups) == 1:
        return said
    heads = [f"group {number}" for number in range(1, len(compared.groups) + 1)]
    rows = [[key.replace("_", " "), *map(tables.plain, values)] for key, values in compared.conflicts.items()]
    differ = "These facts differ, so that numbers of different groups cannot be compared:"
    return f'{said}<div class="notes plain"><p>{differ}</p>{page.table(["", *heads], rows)}</div>'


# ---------------------------------------------------------------------------------------------------------------- plots


def _plots(compared: Compared, names: list[str]) -> str:
    """Curves of all models of a group on one axis, and forests of their gains."""
    colours = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}
    panels = [svg for metric, label in charts.HORIZONS if (svg := _curves(compared, colours, metric, label))]
    panels += [svg for metric, label in FORESTS if (svg := _forest(compared, colours, metric, label))]
    has_floor = any(compared.models[name].results.get(f"{FLOOR_PREFIX}psnr_by_horizon") for name in names)
    said = f"Bands and bars: 95 % over clips.{f' Dashed: {FLOOR}.' if has_floor else ''}"
    return page.charts(panels, said, colours)


def _curves(compared: Compared, colours: dict[str, str], metric: str, label: str) -> str:
    drawn = [name for name in colours if compared.models[name].results.get(f"{metric}_by_horizon")]
    if not drawn:
        return ""
    figure, ax = charts.panel()
    for name in drawn:
        marker = MARKERS[list(colours).index(name) % len(MARKERS)]
        charts.draw_curve(ax, *charts.curve(compared.models[name], metric), colours[name], marker=marker)
    floor = compared.models[drawn[0]].results.get(f"{FLOOR_PREFIX}{metric}_by_horizon")
    if floor is not None:
        ax.plot(np.arange(1, len(floor) + 1), floor, color=INK, alpha=0.6, linewidth=1.2, linestyle=(0, (4, 3)))
    if metric == "delta_psnr":
        ax.axhline(0, color=INK, alpha=0.4, linewidth=0.8)
    charts.dress(ax, label, "predicted frame", "")
    ax.xaxis.get_major_locator().set_params(integer=True)
    return charts.to_svg(figure, f"{metric}-{drawn[0]}")


def _forest(compared: Compared, colours: dict[str, str], metric: str, label: str) -> str:
    """A line for each model: its value as a point, its interval as a bar; dashed: none."""
    found = {}
    for name in colours:
        results = compared.models[name].results
        difference = compared.differences.get(name) or {}
        value, interval = (
            (difference.get("mean"), difference.get("ci95"))
            if metric == DIFFERENCE
            else (results.get(metric), results.get(f"{metric}_ci95"))
        )
        if value is not None:
            found[name] = (value, interval)
    if not found:
        return ""
    figure, ax = charts.panel(height=max(charts.HEIGHT * 0.6, 1.0 + ROW_HEIGHT * len(found)))
    for place, (name, (value, interval)) in enumerate(found.items()):
        if interval is not None:
            ax.plot(interval, [place, place], color=colours[name], linewidth=2)
        marker = MARKERS[list(colours).index(name) % len(MARKERS)]
        ax.plot([value], [place], color=colours[name], marker=marker, markersize=7)
    ax.axvline(0, color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (4, 3)))
    charts.dress(ax, label, "", "")
    ax.set_yticks(np.arange(len(found)), [_short(name) for name in found], parse_math=False)
    ax.set_ylim(len(found) - 0.4, -0.6)
    return charts.to_svg(figure, f"{metric}-{next(iter(found))}")


def _short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
