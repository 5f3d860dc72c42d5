"""A comparison as rows: for files, for a terminal, for Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from training import measured, tables
from training.comparability import Compared
from training.tables import BESIDE, COLUMNS, Cell

DIFFERENCE = "psnr_difference"  # to the first model of the group, paired by clip
Beside = tuple[str, Mapping[str, str]]  # name of the row, {key of a column: key of the results}


class Line(NamedTuple):
    """A row of the table: a model, or what stands beside all models of a group or one of them."""

    name: str
    group: int  # counted from 1
    is_model: bool
    cells: list[tuple[str, str, bool]]  # value, interval, whether it is the best of its group


def rows_of(compared: Compared) -> Iterable[dict[str, Any]]:
    """One dictionary for each model: name, group, where it is from, every metric with its interval, and of the rows
    beside it what any model has."""
    beside = [
        key
        for _, keys in BESIDE
        for key in keys.values()
        if any(m.results.get(key) is not None for m in compared.models.values())
    ]
    for number, names in enumerate(compared.groups, start=1):
        for name in names:
            own = compared.models[name]
            row = {"model": name, "group": number, "file": str(own.folder / measured.METRICS)}
            row["num_clips"] = own.results.get("num_clips")
            for key in (*(column.key for column in COLUMNS), *beside):
                row[key] = own.results.get(key)
                row[f"{key}_ci95"] = own.results.get(f"{key}_ci95")
            difference = compared.differences.get(name, {})
            yield row | {DIFFERENCE: difference.get("mean"), f"{DIFFERENCE}_ci95": difference.get("ci95")}


def table_of(compared: Compared, beside: Sequence[Beside] = BESIDE) -> tuple[list[str], list[Line]]:
    """Headings, and the lines of all groups: the models of a group, then what stands beside them."""
    columns = shown(compared)
    headings = [column.heading for column in columns]
    if compared.differences:
        headings.insert(1, "PSNR − first")
    lines = []
    for number, names in enumerate(compared.groups, start=1):
        winners = best(compared, names)
        for name in names:
            found = tables.cells_of(compared.models[name].results)
            cells = [(*tables.written(found.get(c.key), c.digits), winners.get(c.key) == name) for c in columns]
            if compared.differences:
                cells.insert(1, (*_signed(compared.differences.get(name)), False))
            lines.append(Line(name, number, True, cells))
        lines += _beside(compared, number, names, beside)
    return headings, lines


def _beside(compared: Compared, number: int, names: Sequence[str], beside: Sequence[Beside]) -> Iterable[Line]:
    """Floor, ceiling and so on, once where all models of a group have the same."""
    columns = shown(compared)
    for label, keys in beside:
        found: list[tuple[list[str], dict[str, tuple[str, str]]]] = []
        for name in names:
            cells = tables.cells_of(compared.models[name].results, keys)
            said = {c.key: tables.written(cells[c.key], c.digits) for c in columns if c.key in cells}
            same = next(
                (row for row in found if all(row[1].get(key, text) == text for key, text in said.items())), None
            )
            if same is not None:
                same[0].append(name)
                same[1].update(said)
            elif said:
                found.append(([name], said))
        for own, said in found:
            cells = [(*said.get(column.key, ("", "")), False) for column in columns]
            if compared.differences:
                cells.insert(1, ("", "", False))
            yield Line(label if own == list(names) else f"{label}: {', '.join(own)}", number, False, cells)


def shown(compared: Compared) -> list[tables.Column]:
    return [c for c in COLUMNS if any(m.results.get(c.key) is not None for m in compared.models.values())]


def best(compared: Compared, names: Sequence[str]) -> dict[str, str]:
    """{metric: the model of a group that alone has the best value}, where there are two or more to choose from."""
    winners = {}
    for column in COLUMNS:
        values = {n: v for n in names if (v := compared.models[n].results.get(column.key)) is not None}
        top = max(values, key=lambda name: column.better * values[name], default=None)
        if sum(value == values[top] for value in values.values()) == 1 < len(values):
            winners[column.key] = top
    return winners


def _signed(difference: Mapping[str, Any] | None) -> tuple[str, str]:
    value, interval = tables.written(Cell(difference["mean"], difference["ci95"]) if difference else None, 2)
    return (f"+{value}" if value and not value.startswith("-") else value), interval


def text(compared: Compared) -> str:
    """For a terminal: the groups below each other, the best of each marked by a star."""
    headings, lines = table_of(compared, BESIDE[:2])  # floor and ceiling: a terminal has no room for more
    words = [["", *headings]]
    for line in lines:
        label = line.name if len(compared.groups) == 1 else f"[{line.group}] {line.name}"
        cells = (f"{'*' if is_best else ''}{value} {interval}".strip() for value, interval, is_best in line.cells)
        words.append([label if line.is_model else f"  {label}", *cells])
    stars = "* best of its group" if len(compared.groups) > 1 else "* best"
    return "\n".join([tables.aligned(words), stars, *warnings(compared), *conflicts(compared)])


def warnings(compared: Compared) -> list[str]:
    """Lines on what is to be borne in mind within a group."""
    found = [
        f"{name}: its clips are not those of {names[0]}, although the protocols agree, so that no difference is paired"
        for names in compared.groups
        for name in names[1:]
        if name not in compared.differences and all(compared.models[n].by_clip for n in (names[0], name))
    ]
    unlike = (tables.unlike_actions({n: compared.models[n].results for n in names}) for names in compared.groups)
    return found + list(dict.fromkeys(note for note in unlike if note))


def conflicts(compared: Compared) -> list[str]:
    """Lines on the facts in which groups differ."""
    if len(compared.groups) == 1:
        return []
    found = ["These were not measured alike; only models of the same group can be compared:"]
    for key, values in compared.conflicts.items():
        said = ", ".join(f"[{i}] {tables.plain(value)}" for i, value in enumerate(values, start=1))
        found.append(f"  {key.replace('_', ' ')}: {said}")
    return found


def markdown(compared: Compared) -> str:
    headings, lines = table_of(compared)
    rows = ["| " + " | ".join(["", *headings]) + " |", "|---" * (len(headings) + 1) + "|"]
    for line in lines:
        label = line.name if len(compared.groups) == 1 else f"[{line.group}] {line.name}"
        cells = [
            f"{f'**{value}**' if is_best else value} {interval}".strip() for value, interval, is_best in line.cells
        ]
        label = label.replace("|", "\\|")
        rows.append("| " + " | ".join([label if line.is_model else f"*{label}*", *cells]) + " |")
    legend = "Bold: best of its group. In brackets: 95 % bootstrap interval over clips. In italics: for comparison."
    said = (*warnings(compared), *conflicts(compared))
    return "\n".join([*rows, "", legend, *(f"\n{line}" for line in said), ""])
