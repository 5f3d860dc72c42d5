"""A page that is one file: its skeleton, its style, and the parts that reports are put together from.

Nothing is loaded from anywhere: pictures and charts are inside. It suits light and dark, wide and narrow screens.
"""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from training import checkpoint

MIME = {".gif": "image/gif", ".png": "image/png"}


def write_page(fpath: Path, title: str, parts: Iterable[str]) -> Path:
    """Write the page with these parts, of which empty ones are left out."""
    body = "\n".join(filter(None, parts))
    checkpoint.write_text(fpath, PAGE.format(title=html.escape(title), style=STYLE, body=body))
    return fpath


def header(title: str, remarks: Sequence[str], content: str = "") -> str:
    said = "".join(f"<p>{html.escape(remark)}</p>" for remark in remarks)
    return f"<header><h1>{html.escape(title)}</h1>{said}{content}</header>"


def sentences(texts: Iterable[str]) -> str:
    """Small print, each on a line of its own."""
    return "".join(f'<p class="small">{html.escape(text)}</p>' for text in texts)


def section(title: str, content: str) -> str:
    """A titled part of the page; "" where there is nothing to say."""
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>" if content else ""


def part(title: str, content: str) -> str:
    """A titled piece of a section."""
    return f"<h3>{html.escape(title)}</h3>{content}" if content else ""


def charts(panels: Sequence[str], caption: str, colours: Mapping[str, str] | None = None) -> str:
    """SVG panels side by side, as many as the screen has room for. colours: {what is drawn: its colour}."""
    if not panels:
        return ""
    keys = "".join(f'<span><i style="background: {c}"></i>{html.escape(n)}</span>' for n, c in (colours or {}).items())
    legend = f'<div class="legend">{keys}</div>' if keys else ""
    drawn = "".join(f"<div>{svg}</div>" for svg in panels)
    return f'<figure>{legend}<div class="charts">{drawn}</div><figcaption>{html.escape(caption)}</figcaption></figure>'


def picture(fpath: Path, caption: str) -> str:
    data = base64.b64encode(fpath.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><div class="wide"><img src="data:{MIME[fpath.suffix]};base64,{data}" alt="{text}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def row(figures: Sequence[str]) -> str:
    """Figures beside each other; a narrow screen scrolls through them."""
    return f'<div class="row">{"".join(figures)}</div>' if figures else ""


def name(text: str) -> str:
    """A name that a narrow column breaks after its underscores and slashes, not in the middle of a word."""
    return re.sub(r"([_/])(?=.)", r"\1<wbr>", html.escape(text))


def details(summary: str, content: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>" if content else ""


def notes(texts: Iterable[tuple[str, str]]) -> str:
    """A list of warnings: (whom it concerns, what is to be said)."""
    items = "".join(f"<li><b>{html.escape(whom)}</b>: {html.escape(text)}</li>" for whom, text in texts)
    return f'<ul class="notes">{items}</ul>' if items else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table of texts; the first of each row names it."""
    top = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(text)}</td>' for text in cells)}</tr>"
        for name, *cells in rows
    )
    return (
        f'<div class="wide"><table class="facts-table"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def commands(lines: Mapping[str, str]) -> str:
    return "".join(f"<p>{html.escape(name)}</p><pre>{html.escape(line)}</pre>" for name, line in lines.items())


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
:root { color-scheme: light dark; --ground: #fafaf8; --card: #fff; --text: #1c1e21; --faint: #646a73;
  --line: #e4e4df; --accent: #2a6fc9; --fill: 42 111 201; --warn: #fff6e0; --best: #e3f3ea; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14161a; --card: #1c1f25; --text: #e8eaed; --faint: #979da7; --line: #30343c;
    --accent: #6aa9f4; --warn: #33290f; --best: #16362a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; text-wrap: balance; }
h2 { font-size: 20px; margin: 0 0 14px; }
h3 { font-size: 15px; margin: 22px 0 8px; font-weight: 600; }
h2 + h3, .tile h3 { margin-top: 0; }
header p { color: var(--faint); margin: 4px 0; max-width: 68ch; }
section { margin-top: 28px; padding: 22px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
section p { margin: 0 0 12px; max-width: 76ch; }
section p.small { max-width: none; margin: 0 0 2px; color: var(--faint); font-size: 13px; }
.small + .wide { margin-top: 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 14px; margin-top: 22px; }
.tile { padding: 16px 18px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile h3 { color: var(--faint); font-size: 14px; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: 6px 22px; font-size: 14px; }
.facts b { font-size: 22px; font-variant-numeric: tabular-nums; }
.facts span { display: block; color: var(--faint); font-size: 13px; }
.wide { overflow-x: auto; }
.row { display: flex; gap: 24px; overflow-x: auto; }
.row figure { flex: none; max-width: 85vw; }
.charts { display: flex; flex-wrap: wrap; gap: 12px 20px; }
.charts > div { flex: 1 1 400px; max-width: 520px; min-width: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-bottom: 10px; font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 3px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--faint); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 400; }
td small { display: block; color: var(--faint); font-size: 12px; white-space: nowrap; }
.facts-table td { overflow-wrap: anywhere; min-width: 110px; }
.results td { white-space: nowrap; }
.results tbody th { min-width: 170px; overflow-wrap: anywhere; }
.results th, .results td { padding-right: 11px; }
.results tbody th { position: sticky; left: 0; background: var(--card); }
.results thead th { white-space: normal; vertical-align: bottom; line-height: 1.25; font-size: 13px; }
tr.model th, tr.model td { font-weight: 600; }
tr.model td small { font-weight: 400; }
tr.beside th { padding-left: 16px; color: var(--faint); }
tr.group th { padding-top: 18px; color: var(--faint); font-weight: 600; }
td.best { background: var(--best); box-shadow: -6px 0 var(--best); font-weight: 600; }
td.best small { font-weight: 400; }
.matrix { width: auto; }
.matrix th, .matrix td { padding: 6px 10px; border: 1px solid var(--card); text-align: center; white-space: nowrap; }
.matrix td { min-width: 58px; background: rgb(var(--fill) / var(--share)); }
.matrix td.plain { background: none; color: var(--faint); }
.matrix tbody th { text-align: right; }
figure { margin: 0 0 18px; }
figure img { display: block; border-radius: 8px; image-rendering: pixelated; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--faint); font-size: 13px; margin-top: 6px; max-width: 90ch; }
details { margin-top: 14px; font-size: 14px; }
summary { cursor: pointer; color: var(--accent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 10px 0; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--faint); }
@media (max-width: 600px) {
  main { padding: 20px 10px 40px; }
  section { padding: 16px 14px; }
  dl { grid-template-columns: 1fr; }
  .results tbody th { white-space: normal; min-width: 128px; }
  dd { margin-bottom: 6px; } }
.notes { margin: 16px 0 0; padding: 12px 16px 12px 34px; background: var(--warn); border-radius: 8px; font-size: 14px;
  overflow-wrap: anywhere; }
.notes table { overflow-wrap: normal; }
.plain.notes { padding-left: 16px; }
pre { margin: 4px 0 14px; padding: 10px 14px; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--ground);
  border: 1px solid var(--line); border-radius: 8px; font-size: 13px; }
"""
