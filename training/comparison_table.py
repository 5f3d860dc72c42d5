"""A comparison as rows: for files, for a terminal, for Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training import measured, tables
from training.comparability import Compared
from training.tables import COLUMNS, Cell

DIFFERENCE = "psnr_difference"  # to the first model of the group, paired by clip


def rows_of(compared: Compared) -> Iterable[dict[str, Any]]:
    """One dictionary for each model: name, group, where it is from, every metric with its interval."""
    for number, names in enumerate(compared.groups, start=1):
        for name in names:
            own = compared.models[name]
            row = {"model": name, "group": number, "file": str(own.folder / measured.METRICS)}
            row["num_clips"] = own.results.get("num_clips")
            for column in COLUMNS:
                row[column.key] = own.results.get(column.key)
                row[f"{column.key}_ci95"] = own.results.get(f"{column.key}_ci95")
            difference = compared.differences.get(name, {})
            yield row | {DIFFERENCE: difference.get("mean"), f"{DIFFERENCE}_ci95": difference.get("ci95")}


def table_of(compared: Compared) -> tuple[list[str], list[tuple[str, list[tuple[str, str, bool]]]]]:
    """Headings, and the lines of all groups: (name, [(value, interval, whether it is the best of its group)])."""
    columns = shown(compared)
    headings = [column.heading for column in columns]
    if compared.differences:
        headings.insert(1, "PSNR − first")
    lines = []
    for names in compared.groups:
        winners = best(compared, names)
        for name in names:
            found = tables.cells_of(compared.models[name].results)
            line = [(*tables.written(found.get(c.key), c.digits), winners.get(c.key) == name) for c in columns]
            if compared.differences:
                line.insert(1, (*_signed(compared.differences.get(name)), False))
            lines.append((name, line))
    return headings, lines


def shown(compared: Compared) -> list[tables.Column]:
    return [c for c in COLUMNS if any(m.results.get(c.key) is not None for m in compared.models.values())]


def best(compared: Compared, names: Sequence[str]) -> dict[str, str]:
    """{metric: the model of a group that has the best value}, where there are two or more to choose from."""
    winners = {}
    for column in COLUMNS:
        values = {n: v for n in names if (v := compared.models[n].results.get(column.key)) is not None}
        if len(values) > 1:
            winners[column.key] = max(values, key=lambda name: column.better * values[name])
    return winners


def _signed(difference: Mapping[str, Any] | None) -> tuple[str, str]:
    value, interval = tables.written(Cell(difference["mean"], difference["ci95"]) if difference else None, 2)
    return (f"+{value}" if value and not value.startswith("-") else value), interval


def text(compared: Compared) -> str:
    """For a terminal: the groups below each other, the best of each marked by a star."""
    headings, lines = table_of(compared)
    words = [["", *headings]]
    for name, cells in lines:
        number = next(i for i, names in enumerate(compared.groups, start=1) if name in names)
        label = name if len(compared.groups) == 1 else f"[{number}] {name}"
        words.append(
            [label, *(f"{'*' if is_best else ''}{value} {interval}".strip() for value, interval, is_best in cells)]
        )
    return "\n".join(
        [tables.aligned(words), "* best of its group" if len(compared.groups) > 1 else "* best", *warnings(compared)]
    )


def warnings(compared: Compared) -> list[str]:
    """Lines that say what must not be compared, and in which facts groups differ."""
    found = [
        f"{name}: its clips are not those of {names[0]}, although the protocols agree, so that no difference is paired"
        for names in compared.groups
        for name in names[1:]
        if name not in compared.differences and all(compared.models[n].by_clip for n in (names[0], name))
    ]
    if len(compared.groups) == 1:
        return found
    found += ["These were not measured alike; only models of the same group can be compared:"]
    for key, values in compared.conflicts.items():
        said = ", ".join(f"[{i}] {tables.plain(value)}" for i, value in enumerate(values, start=1))
        found.append(f"  {key.replace('_', ' ')}: {said}")
    return found


def markdown(compared: Compared) -> str:
    headings, lines = table_of(compared)
    rows = ["| " + " | ".join(["", *headings]) + " |", "|---" * (len(headings) + 1) + "|"]
    groups = {name: i for i, names in enumerate(compared.groups, start=1) for name in names}
    for name, cells in lines:
        label = name if len(compared.groups) == 1 else f"[{groups[name]}] {name}"
        said = [f"{f'**{value}**' if is_best else value} {interval}".strip() for value, interval, is_best in cells]
        rows.append("| " + " | ".join([label.replace("|", "\\|"), *said]) + " |")
    legend = "Bold: best of its group. In brackets: 95 % bootstrap interval over clips."
    return "\n".join([*rows, "", legend, *(f"\n{line}" for line in warnings(compared)), ""])
