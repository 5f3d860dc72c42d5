"""Results for people: a table on the terminal and `report.html`, one file that opens from disk, self-contained."""

import base64
import html
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.episodes import write_json
from training import charts, checkpoint

COLUMNS = (  # heading, key of the results, digits, explanation
    ("PSNR, dB", "psnr", 2, "mean over frames, then clips"),
    ("SSIM", "ssim", 3, "structural similarity, 1 is equal"),
    ("gain 2–10, dB", "psnr_gain_h2_10", 2, "PSNR over copying the last frame, mean of predicted frames 2–10"),
    ("ΔPSNR, dB", "delta_psnr", 2, "what the true actions are worth against random ones (Genie)"),
    ("ΔPSNR last, dB", "delta_psnr_last", 2, "the same with the last action alone replaced (GenieRedux)"),
    ("FID", "fid", 1, "bilinear resizing; lower is better"),
    ("FID nearest", "fid_nearest", 1, "nearest-neighbour resizing, as GenieRedux reports it; lower is better"),
)
BESIDE = (  # prefix, name of the row
    ("copy_last_", "copy last frame (floor)"),
    ("ceiling_", "tokenizer (ceiling)"),
    ("random_actions_", "random actions"),
)
MIME = {".gif": "image/gif", ".png": "image/png"}
PICTURES = (("dream_vs_real", ".gif"), ("dream_vs_real", ".png"), ("every_action", ".gif"))
CAPTIONS = {
    "dream_vs_real": "Real frames above, below what the model makes of them.",
    "every_action": "Every action, taken again and again from the same frames.",
}


def rows_of(results: Mapping[str, dict[str, Any]]) -> Iterable[tuple[str, bool, dict[str, Any]]]:
    """(name, whether it is a model, {key: (value, interval)}) of each row: a model, then what stands beside it."""
    for name, result in results.items():
        yield name, True, {key: (result.get(key), result.get(f"{key}_ci95")) for _, key, _, _ in COLUMNS}
        for prefix, label in BESIDE:
            if result.get(f"{prefix}psnr") is not None:
                keys = ("psnr", "ssim")
                cells = {key: (result.get(f"{prefix}{key}"), result.get(f"{prefix}{key}_ci95")) for key in keys}
                yield label, False, cells


def table(results: Mapping[str, dict[str, Any]]) -> str:
    """The results as text for a terminal; 95 % intervals in brackets, columns that nobody has are left out."""
    rows = list(rows_of(results))
    columns = [c for c in COLUMNS if any(cells.get(c[1], (None,))[0] is not None for _, _, cells in rows)]
    lines = [["", *(heading for heading, *_ in columns)]]
    for name, is_model, cells in rows:
        texts = [" ".join(_cell(*cells.get(key, (None, None)), digits)) for _, key, digits, _ in columns]
        lines.append([name if is_model else f"  {name}", *texts])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "-" * len(max(text, key=len)))
    for name, result in results.items():
        text.append(f"{name}: {_speed(result)}")
        text += [f"{name}: {note}" for note in notes(result)]
    return "\n".join(text)


def notes(result: Mapping[str, Any]) -> list[str]:
    """What is missing or strange in the results of a model, each with its cure."""
    found = []
    if result.get("fid_missing"):
        found.append(f"FID is missing: {result['fid_missing']}")
    if result.get("psnr_floored_frames"):
        found.append(f"{result['psnr_floored_frames']} frames equal the truth and count as 100 dB")
    return found


def write_report(
    folder: Path,
    results: Mapping[str, dict[str, Any]],
    curves: Mapping[str, Path] | None = None,
    pictures: Mapping[str, Path] | None = None,
    *,
    title: str = "World models on levels they never saw",
    commands: Mapping[str, str] | None = None,
    remarks: Sequence[str] = (),
) -> Path:
    """Write `metrics.json` and a self-contained `report.html` into `folder`; returns the page.

    results: as evaluation gives them, {model: {…}}. curves: {stage: its logs/metrics.jsonl}. pictures: {model: the
    `samples` folder of its evaluation}; what is shown is also copied, as `<model>_dream_vs_real.gif|png`. commands:
    {stage: the line that runs it alone}. remarks: sentences under the title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", dict(results))
    shown = {name: _collect(Path(samples), folder, name) for name, samples in (pictures or {}).items()}
    parts = [
        _header(title, results, remarks),
        _section("Results", _results_table(results) + _all_notes(results)),
        _section("PSNR over the horizon", _figure(charts.psnr_over_horizon(results), "Bands: 95 % over clips.")),
        *(_section(_title_of(name, results), _pictures(shown[name])) for name in shown),
        _section("Learning curves", _figure(charts.learning_curves(curves or {}), "Loss over steps of each stage.")),
        _section("How it was measured", _protocol(results)),
        _section("Commands", _commands(commands or {})),
    ]
    fpath = folder / "report.html"
    checkpoint.write_text(
        fpath, PAGE.format(title=html.escape(title), style=STYLE, body="\n".join(filter(None, parts)))
    )
    return fpath


# ---------------------------------------------------------------------------------------------------- parts of the page


def _header(title: str, results: Mapping[str, dict[str, Any]], remarks: Sequence[str]) -> str:
    tiles = []
    for name, result in results.items():
        values = [("PSNR", "psnr"), ("over copying", "psnr_gain_h2_10"), ("ΔPSNR", "delta_psnr")]
        facts = "".join(
            f"<div><b>{'+' if label == 'over copying' and result[key] >= 0 else ''}{result[key]:.2f}</b> dB"
            f"<span>{label}</span></div>"
            for label, key in values
            if result.get(key) is not None
        )
        tiles.append(f'<div class="tile"><h3>{html.escape(name)}</h3><div class="facts">{facts}</div></div>')
    said = "".join(f"<p>{html.escape(remark)}</p>" for remark in remarks)
    return f'<header><h1>{html.escape(title)}</h1>{said}<div class="tiles">{"".join(tiles)}</div></header>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>" if content else ""


def _results_table(results: Mapping[str, dict[str, Any]]) -> str:
    rows = list(rows_of(results))
    columns = [
        c
        for c in COLUMNS
        if c[1].startswith("fid") or any(cells.get(c[1], (None,))[0] is not None for _, _, cells in rows)
    ]
    head = "".join(f'<th title="{html.escape(explanation)}">{heading}</th>' for heading, _, _, explanation in columns)
    body = []
    for name, is_model, cells in rows:
        texts = []
        for _, key, digits, _ in columns:
            value, interval = _cell(*cells.get(key, (None, None)), digits)
            texts.append(f"<td>{value or '–'}<small>{interval}</small></td>")
        kind = "model" if is_model else "beside"
        body.append(f'<tr class="{kind}"><th>{html.escape(name)}</th>{"".join(texts)}</tr>')
    legend = "".join(f"<dt>{heading}</dt><dd>{html.escape(text)}</dd>" for heading, _, _, text in columns)
    return (
        f'<div class="wide"><table class="results"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f"<details><summary>What the columns mean</summary><dl>{legend}</dl>"
        "<p>In brackets: 95 % bootstrap interval over clips. Floor: the last given frame, repeated. Ceiling: the true "
        "future through the tokenizer and back, which no dream can beat.</p></details>"
    )


def _all_notes(results: Mapping[str, dict[str, Any]]) -> str:
    models: dict[str, list[str]] = {}
    for name, result in results.items():
        for note in notes(result):
            models.setdefault(note, []).append(name)
    items = "".join(
        f"<li><b>{html.escape(', '.join(names))}</b>: {html.escape(note)}</li>" for note, names in models.items()
    )
    return f'<ul class="notes">{items}</ul>' if items else ""


def _figure(svg: str, caption: str) -> str:
    return f'<figure class="wide">{svg}<figcaption>{caption}</figcaption></figure>' if svg else ""


def _collect(samples: Path, folder: Path, name: str) -> list[Path]:
    """Copies of the pictures that a report shows, those that exist, named after their model."""
    copies = []
    for stem, suffix in PICTURES:
        source = samples / f"{stem}{suffix}"
        if source.is_file():
            copies.append(folder / f"{name}_{stem}{suffix}")
            shutil.copyfile(source, copies[-1])
    return copies


def _title_of(name: str, results: Mapping[str, dict[str, Any]]) -> str:
    is_world = bool(results.get(name, {}).get("psnr_by_horizon"))
    return f"{'Dreams' if is_world else 'Reconstructions'}: {name}"


def _pictures(files: Sequence[Path]) -> str:
    figures = []
    for fpath in files:
        data = base64.b64encode(fpath.read_bytes()).decode()
        caption = next(text for stem, text in CAPTIONS.items() if fpath.stem.endswith(stem))
        figure = (
            f'<figure class="wide"><img src="data:{MIME[fpath.suffix]};base64,{data}" alt="{html.escape(caption)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
        if fpath.suffix == ".png":  # the same again, to look at closely
            figure = f"<details><summary>Frame by frame</summary>{figure}</details>"
        figures.append(figure)
    return "".join(figures)


def _protocol(results: Mapping[str, dict[str, Any]]) -> str:
    """One column for each model, one row for each fact."""
    protocols = {
        name: {
            **(result.get("protocol") or {}),
            "clips": result.get("num_clips"),
            "training": _seconds(result.get("train_seconds")),
            "evaluation": _speed(result),
        }
        for name, result in results.items()
    }
    keys = list(dict.fromkeys(key for facts in protocols.values() for key in facts))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in protocols)
    body = "".join(
        f"<tr><th>{html.escape(key.replace('_', ' '))}</th>"
        + "".join(f"<td>{html.escape(_plain(facts.get(key)))}</td>" for facts in protocols.values())
        + "</tr>"
        for key in keys
    )
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _commands(commands: Mapping[str, str]) -> str:
    return "".join(f"<p>{html.escape(stage)}</p><pre>{html.escape(line)}</pre>" for stage, line in commands.items())


# ---------------------------------------------------------------------------------------------------------------- words


def _cell(value: float | None, interval: Sequence[float] | None, digits: int) -> tuple[str, str]:
    if value is None:
        return "", ""
    brackets = "" if interval is None else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    return f"{value:.{digits}f}", brackets


def _speed(result: Mapping[str, Any]) -> str:
    if result.get("eval_seconds") is None:
        return "–"
    return f"{result['num_clips']} clips in {result['eval_seconds']:.1f} s, {result['clips_per_second']:.2f} clips/s"


def _seconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.0f} s"


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    return " – ".join(map(str, value)) if isinstance(value, list) else str(value)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ground: #fafaf8; --card: #fff; --text: #1c1e21; --faint: #6a7079;
  --line: #e4e4df; --accent: #2a6fc9; --warn: #fff6e0; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14161a; --card: #1c1f25; --text: #e8eaed; --faint: #979da7; --line: #30343c;
    --accent: #6aa9f4; --warn: #33290f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; text-wrap: balance; }
h2 { font-size: 20px; margin: 0 0 14px; }
h3 { font-size: 14px; margin: 0 0 8px; color: var(--faint); font-weight: 600; }
header p { color: var(--faint); margin: 4px 0; max-width: 68ch; }
section { margin-top: 28px; padding: 22px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 14px; margin-top: 22px; }
.tile { padding: 16px 18px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.facts { display: flex; flex-wrap: wrap; gap: 6px 22px; font-size: 14px; }
.facts b { font-size: 22px; font-variant-numeric: tabular-nums; }
.facts span { display: block; color: var(--faint); font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--faint); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 400; }
td small { display: block; color: var(--faint); font-size: 12px; white-space: nowrap; }
.results td { white-space: nowrap; }
tr.model th, tr.model td { font-weight: 600; }
tr.model td small { font-weight: 400; }
tr.beside th { padding-left: 16px; color: var(--faint); }
figure { margin: 0 0 16px; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 8px; image-rendering: pixelated; }
figure svg { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--faint); font-size: 13px; margin-top: 6px; }
details { margin-top: 14px; font-size: 14px; }
summary { cursor: pointer; color: var(--accent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 10px 0; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--faint); }
.notes { margin: 16px 0 0; padding: 12px 16px 12px 34px; background: var(--warn); border-radius: 8px; font-size: 14px;
  overflow-wrap: anywhere; }
pre { margin: 4px 0 14px; padding: 10px 14px; overflow-x: auto; background: var(--ground);
  border: 1px solid var(--line); border-radius: 8px; font-size: 13px; }
"""
