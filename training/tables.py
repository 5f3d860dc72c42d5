"""Results as tables: what the columns are, which rows stand beside a model, and what is missing, each with its cure."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from training import page


class Column(NamedTuple):
    heading: str
    key: str  # of the results
    digits: int
    better: int  # 1: the larger the better, -1: the smaller
    explanation: str


class Cell(NamedTuple):
    value: float | None = None
    interval: Sequence[float] | None = None  # 95 %, over clips


COLUMNS = tuple(
    Column(*words)
    for words in (
        ("PSNR, dB", "psnr", 2, 1, "mean over frames, then clips"),
        ("SSIM", "ssim", 3, 1, "structural similarity, 1 is equal"),
        ("LPIPS", "lpips", 3, -1, "distance of AlexNet features, 0 is equal"),
        ("gain 2–10, dB", "psnr_gain_h2_10", 2, 1, "PSNR over copying the last frame, mean of predicted frames 2–10"),
        ("ΔPSNR, dB", "delta_psnr", 2, 1, "what the true actions are worth against random ones (Genie)"),
        ("ΔPSNR last, dB", "delta_psnr_last", 2, 1, "the same with the last action alone replaced (GenieRedux)"),
        ("actions read", "action_following", 3, 1, "share of actions that a classifier reads back from the frames"),
        ("error ratio", "action_error_ratio", 2, -1, "that classifier's errors on dreams over those on real frames"),
        ("FID", "fid", 1, -1, "distance of the sets of frames, bilinear resizing"),
        ("FID nearest", "fid_nearest", 1, -1, "the same with nearest-neighbour resizing, as GenieRedux reports it"),
        ("FVD", "fvd", 1, -1, "distance of the sets of clips, by features of video"),
    )
)
DISTANCES = (
    "fid",
    "fid_nearest",
    "fvd",
)  # of sets, so that real frames have one too: that of half of them to the others
BESIDE = (  # name of the row, {key of a column: key of the results}
    *(
        (label, {column.key: f"{prefix}{column.key}" for column in COLUMNS})
        for prefix, label in (
            ("copy_last_", "copy last frame (floor)"),
            ("ceiling_", "tokenizer (ceiling)"),
            ("random_actions_", "random actions"),
        )
    ),
    ("real frames", {**{key: f"real_{key}" for key in DISTANCES}, "action_following": "action_following_real"}),
    ("the commonest action", {"action_following": "action_following_majority"}),
)
ALWAYS = ("psnr", "fid")  # columns that a page shows even where nobody has them
MISSING = {
    "fid_missing": "FID",
    "lpips_missing": "LPIPS",
    "fvd_missing": "FVD",
    "action_following_missing": "the action-following score",
}


def cells_of(result: Mapping[str, Any], keys: Mapping[str, str] | None = None) -> dict[str, Cell]:
    """{key of a column: what the results hold for it}, without what they do not hold."""
    keys = {column.key: column.key for column in COLUMNS} if keys is None else keys
    found = {column: Cell(result.get(key), result.get(f"{key}_ci95")) for column, key in keys.items()}
    return {column: cell for column, cell in found.items() if cell.value is not None}


def rows_of(results: Mapping[str, dict[str, Any]]) -> Iterable[tuple[str, bool, dict[str, Cell]]]:
    """(name, whether it is a model, its cells) of each row: a model, then what stands beside it."""
    for name, result in results.items():
        yield name, True, cells_of(result)
        for label, keys in BESIDE:
            if cells := cells_of(result, keys):
                yield label, False, cells


def table(results: Mapping[str, dict[str, Any]]) -> str:
    """The results as text for a terminal; 95 % intervals in brackets, columns that nobody has are left out."""
    rows = list(rows_of(results))
    columns = [column for column in COLUMNS if any(column.key in cells for _, _, cells in rows)]
    lines = [["", *(column.heading for column in columns)]]
    for name, is_model, cells in rows:
        texts = [" ".join(written(cells.get(column.key), column.digits)) for column in columns]
        lines.append([name if is_model else f"  {name}", *texts])
    text = [aligned(lines)]
    for name, result in results.items():
        text.append(f"{name}: {speed(result)}")
        text += [f"{name}: {note}" for note in notes(result)]
    return "\n".join(text)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Words in columns, with a rule below the first line; the longer side runs down, where terminals have room."""
    if len(lines[0]) > len(lines):
        lines = list(zip(*lines, strict=True))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "-" * len(max(text, key=len)))
    return "\n".join(text)


def notes(result: Mapping[str, Any]) -> list[str]:
    """What is missing or strange in the results of a model, each with its cure."""
    found = [f"{name} is missing: {result[key]}" for key, name in MISSING.items() if result.get(key)]
    if result.get("psnr_floored_frames"):
        found.append(f"{result['psnr_floored_frames']} frames equal the truth and count as 100 dB")
    return found


# ----------------------------------------------------------------------------------------------------------- for a page


def results_section(results: Mapping[str, dict[str, Any]]) -> str:
    """Every model with the rows beside it, what the columns mean, and what is missing."""
    rows = list(rows_of(results))
    columns = [c for c in COLUMNS if c.key in ALWAYS or any(c.key in cells for _, _, cells in rows)]
    body = []
    for name, is_model, cells in rows:
        kind = "model" if is_model else "beside"
        texts = "".join(f"<td>{filled(cells.get(column.key), column.digits)}</td>" for column in columns)
        body.append(f'<tr class="{kind}"><th>{page.name(name)}</th>{texts}</tr>')
    return (
        f'<div class="wide"><table class="results">{head(columns)}<tbody>{"".join(body)}</tbody></table></div>'
        + page.details("What columns and rows mean", legend(columns))
        + page.notes(_shared_notes(results))
    )


def head(columns: Sequence[Column]) -> str:
    cells = "".join(f'<th title="{html.escape(c.explanation)}">{html.escape(c.heading)}</th>' for c in columns)
    return f"<thead><tr><th></th>{cells}</tr></thead>"


def filled(cell: Cell | None, digits: int) -> str:
    value, interval = written(cell, digits)
    return f"{value or '–'}<small>{interval}</small>"


def legend(columns: Sequence[Column]) -> str:
    meanings = "".join(
        f"<dt>{html.escape(c.heading)}</dt><dd>{html.escape(c.explanation)}"
        f"; {'higher' if c.better > 0 else 'lower'} is better</dd>"
        for c in columns
    )
    return (
        f"<dl>{meanings}</dl><p>In brackets: 95 % bootstrap interval over clips. Floor: the last given frame, repeated."
        " Ceiling: the true future through the tokenizer and back, which no dream can beat. Random actions: the same "
        "model under actions drawn by chance. Real frames: for distances, one half of the true frames "
        "measured against the other. The commonest action: what naming it without looking would reach.</p>"
    )


def conditions(result: Mapping[str, Any]) -> str:
    """What was measured and how, as a sentence; "" where the results do not say."""
    facts = result.get("protocol") or {}
    if not facts.get("dataset"):
        return ""
    said = f"{result.get('num_clips')} clips of {facts['dataset']} ({facts.get('split')}"
    said += f", levels {plain(facts['levels'])})" if facts.get("levels") else ")"
    if facts.get("prompt") is None:
        return f"{said}, {facts.get('num_frames')} frames each, through the tokenizer and back"
    given, new = facts["prompt"], facts.get("horizon")
    said += f"; {given} given frame{'s' if given > 1 else ''}, {new} predicted"
    together = facts.get("frames_per_round")
    if together is not None:
        said += " in one go" if together == new else " one by one" if together == 1 else f", {together} together"
    if facts.get("steps") is not None:
        said += f"; {facts['steps']} step{'s' if facts['steps'] > 1 else ''}, temperature {facts.get('temperature'):g}"
    return said + (f"; actions {facts['actions']}" if facts.get("actions") else "")


def unlike_actions(results: Mapping[str, dict[str, Any]]) -> str | None:
    """What to bear in mind where worlds with latent and with recorded actions stand side by side."""
    kinds = {(result.get("protocol") or {}).get("actions") for result in results.values()} - {None}
    if len(kinds) < 2:
        return None
    return (
        "latent actions are inferred from the very frames to be predicted and may tell more about them than "
        "recorded buttons do; PSNR and ΔPSNR of the two kinds of worlds answer different questions"
    )


def _shared_notes(results: Mapping[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """(models, note): models of which the same is to be said share a line."""
    models: dict[str, list[str]] = {}
    for name, result in results.items():
        for note in notes(result):
            models.setdefault(note, []).append(name)
    if note := unlike_actions(results):
        models[note] = [name for name, result in results.items() if (result.get("protocol") or {}).get("actions")]
    return [(", ".join(names), note) for note, names in models.items()]


def protocol_section(results: Mapping[str, dict[str, Any]]) -> str:
    """One column for each model, one row for each fact."""
    protocols = {
        name: {
            **(result.get("protocol") or {}),
            "clips": result.get("num_clips"),
            "training": None if result.get("train_seconds") is None else f"{result['train_seconds']:.0f} s",
            "evaluation": speed(result),
        }
        for name, result in results.items()
    }
    keys = list(dict.fromkeys(key for facts in protocols.values() for key in facts))
    rows = [[key.replace("_", " "), *(plain(facts.get(key)) for facts in protocols.values())] for key in keys]
    return page.table(["", *protocols], rows)


# ---------------------------------------------------------------------------------------------------------------- words


def written(cell: Cell | None, digits: int) -> tuple[str, str]:
    """Value and interval as text, "" for what is not there."""
    if cell is None or cell.value is None:
        return "", ""
    brackets = "" if cell.interval is None else "[{:.{d}f}, {:.{d}f}]".format(*cell.interval, d=digits)
    return f"{cell.value:.{digits}f}", brackets


def speed(result: Mapping[str, Any]) -> str:
    if result.get("eval_seconds") is None:
        return "–"
    return f"{result['num_clips']} clips in {result['eval_seconds']:.1f} s, {result['clips_per_second']:.2f} clips/s"


def plain(value: Any) -> str:
    """A fact of a protocol as text; two numbers are a range."""
    if value is None:
        return "–"
    if not isinstance(value, list):
        return str(value)
    is_range = len(value) == 2 and all(isinstance(item, int) for item in value)
    return (" – " if is_range else ", ").join(map(str, value))
