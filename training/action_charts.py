"""Which codes and actions are used, and what latent actions mean: bars, a table of codes against actions, a map."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from training import charts, page, tables
from training.charts import INK, MARKERS, PALETTE
from training.measured import Measured
from training.tables import Cell

NAMED = 20  # bars that have their names below them; more are only an outline
STRONGEST = 0.8  # opacity of a whole row's share: text in the page's colour stays readable on it
WIDTH, HEIGHT = 4.6, 3.0
MAP_HEIGHT = 4.2
MOST_GROUPS = len(PALETTE) * 2  # told apart on the map; the others are grey


# ------------------------------------------------------------------------------------------------------------------ use


def usage_panels(name: str, results: Mapping[str, Any]) -> list[str]:
    """Use of the tokenizer's codebook and of the actions, as far as they were counted."""
    panels = []
    if counts := results.get("codebook_counts"):
        panels.append(usage(counts, None, f"{name}: codes of the tokenizer", results.get("codebook_perplexity")))
    actions = results.get("action_usage") or {}
    if counts := actions.get("counts"):
        is_latent = (results.get("protocol") or {}).get("actions", "").startswith("inferred")
        names = None if is_latent else action_names(results, len(counts))
        title = f"{name}: {'latent actions' if is_latent else 'actions'}"
        panels.append(
            usage(counts, names or [str(index) for index in range(len(counts))], title, actions["perplexity"])
        )
    return panels


def usage(counts: Sequence[int], names: Sequence[str] | None, title: str, perplexity: float | None) -> str:
    """Shares of use, the most used first; dashed: what each had if all were used alike."""
    order = np.argsort(-np.array(counts), kind="stable")
    shares = np.array(counts)[order] / max(1, np.sum(counts))
    figure, ax = charts.panel(WIDTH, HEIGHT)
    places = np.arange(1, len(shares) + 1)
    if len(shares) <= NAMED:
        ax.bar(places, 100 * shares, color=charts.BLUE, width=0.72)
        ticks = [names[index] if names else str(index) for index in order]
        is_long = max(map(len, ticks)) > 2
        ax.set_xticks(places, ticks, rotation=35 if is_long else 0, ha="right" if is_long else "center")
    else:
        ax.fill_between(places, 100 * shares, step="mid", color=charts.BLUE, alpha=0.85, linewidth=0)
    ax.axhline(100 / len(shares), color=INK, alpha=0.55, linewidth=1, linestyle=(0, (4, 3)))
    said = f"{(shares > 0).sum()} of {len(shares)} used"
    if perplexity is not None:
        said += f", perplexity {perplexity:.1f}"
    charts.dress(
        ax, f"{title}\n{said}", "" if len(shares) <= NAMED else "codes, the most used first", "share of use, %"
    )
    ax.grid(visible=False, axis="x")
    return charts.to_svg(figure, title)


def action_names(results: Mapping[str, Any], count: int) -> list[str] | None:
    """Names of the recorded actions where the evaluation knew as many."""
    names = (results.get("protocol") or {}).get("action_names") or []
    return list(names) if len(names) == count else None


# -------------------------------------------------------------------------------------------------------------- meaning


def latent_section(measured: Measured) -> str:
    """What latent actions say about real ones: numbers, the table of both, and the map of latent vectors."""
    found = measured.results.get("latent_actions") or {}
    real = found.get("counts") and (
        action_names(measured.results, len(found["counts"][0]))
        or [f"action {i}" for i in range(len(found["counts"][0]))]
    )
    content = facts(found)
    if found.get("counts"):
        content += page.part("Latent against real actions", confusion(found, real))
    points = map_panels(measured, real)
    names = ["by code of the model", "by true action"][: len(points)]
    content += page.part(
        "Map of latent actions",
        page.charts(
            points,
            f"t-SNE of the vectors before quantisation, coloured {' and '.join(names)}; one point for each transition. "
            "Only neighbourhoods mean something: distances between groups and their sizes do not.",
        ),
    )
    return content


def facts(found: Mapping[str, Any]) -> str:
    """The measures of agreement as a small table, each beside what it is where nothing is known."""
    told = "what a latent action tells about the real one"
    if found.get("action_entropy_bits") is not None:
        told += f", of the {found['action_entropy_bits']:.2f} bits that it holds"
    few = "few labels" if found.get("num_labelled") is None else f"{found['num_labelled']} labels"
    rows = []
    for key, name, digits, floor, meaning in (
        ("mutual_information_bits", "mutual information, bits", 2, "mutual_information_bits_by_chance", told),
        ("nmi", "normalised (NMI)", 3, "nmi_by_chance", "0: nothing, 1: one follows from the other"),
        ("purity", "purity", 3, "purity_by_chance", "transitions whose real action is the commonest of their code"),
        ("mapping_accuracy", "mapping accuracy", 3, "majority_accuracy", f"real actions read by a map from {few}"),
    ):
        if found.get(key) is not None:
            value, interval = tables.written(Cell(found[key], found.get(f"{key}_ci95")), digits)
            chance, _ = tables.written(Cell(found.get(floor)), digits)
            rows.append([name, f"{value} {interval}", chance or "–", meaning])
    said = (
        "By chance: the same codes beside the actions of other clips; for the map, the commonest action of all. Few "
        "transitions make the first three larger than they are: what lies above chance counts."
    )
    heads = ["", "value [95 % over clips]", "by chance", ""]
    return f"{page.table(heads, rows)}<figcaption>{said}</figcaption>" if rows else ""


def confusion(found: Mapping[str, Any], real: Sequence[str]) -> str:
    """Codes × real actions as a table: counts, coloured by their share of the code's row."""
    counts = np.array(found["counts"])
    sums = counts.sum(axis=1)
    mapped = found.get("real_of_latent")
    head = ["latent", *real, "all", *(["stands for"] if mapped is not None else [])]
    body = []
    for code, row in enumerate(counts):
        shares = row / max(1, sums[code])
        cells = [
            f'<td style="--share: {STRONGEST * share:.2f}" title="{share:.0%} of code {code}">{count}</td>'
            for count, share in zip(row, shares, strict=True)
        ]
        cells.append(f'<td class="plain">{sums[code]}</td>')
        if mapped is not None:
            meaning = real[mapped[code]] if mapped[code] is not None and mapped[code] >= 0 else "–"
            cells.append(f'<td class="plain">{html.escape(meaning)}</td>')
        body.append(f"<tr><th>{code}</th>{''.join(cells)}</tr>")
    top = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    return (
        f'<div class="wide"><table class="matrix"><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table>'
        "</div><figcaption>Transitions by latent code (rows) and recorded action (columns); the stronger the colour, "
        "the larger the share of its row. A code that means one action has one strong cell.</figcaption>"
    )


def map_panels(measured: Measured, real: Sequence[str] | None) -> list[str]:
    """The places of latent vectors on a plane twice: coloured by code, and by true action where it is known."""
    latents = measured.latents
    if "embedding" not in latents:
        return []
    panels = [scatter(latents["embedding"], latents["codes"], None, "by code")]
    if "actions" in latents:
        panels.append(scatter(latents["embedding"], latents["actions"], real, "by true action"))
    return panels


def scatter(points: np.ndarray, groups: np.ndarray, names: Sequence[str] | None, title: str) -> str:
    """Points (N, 2) in the colour and shape of their group, whose name stands in the middle of where most of it is."""
    figure, ax = charts.panel(WIDTH, MAP_HEIGHT)
    for group in np.unique(groups):
        own = points[groups == group]
        name = names[group] if names is not None and 0 <= group < len(names) else str(group)
        is_told = 0 <= group < MOST_GROUPS
        ax.scatter(
            *own.T,
            s=11,
            color=PALETTE[group % len(PALETTE)] if is_told else charts.GREY,
            marker=MARKERS[(group + group // len(PALETTE)) % len(MARKERS)] if is_told else ".",
            linewidth=0,
            alpha=0.75,
            label=name,
        )
    charts.dress(ax, title, "", "")
    ax.set_xticks([])
    ax.set_yticks([])
    _key_below(ax)
    return charts.to_svg(figure, f"map-{title}")


def _key_below(ax: Axes) -> None:
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=4,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handletextpad=0.2,
        columnspacing=1.0,
        markerscale=1.6,
    )
