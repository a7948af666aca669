"""The page report.html: the verdict, the pictures, the tables and how it was run, in one file."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol

from pars.prove.report.latency import Figures
from pars.prove.report.times import Result

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #111827; background: #fff;
       max-width: 72rem; margin: 0 auto; padding: 1rem; }
.verdict { font-size: 1.35rem; line-height: 1.35; font-weight: 600; margin: .5rem 0 1rem; }
.verdict::first-letter { text-transform: uppercase; }
.kind { color: #4b5563; margin: 0 0 1rem; }
.notes { background: #fef3c7; border-left: 4px solid #d97706; margin: 1rem 0; padding: .6rem 1rem; }
.notes p { margin: .2rem 0; overflow-wrap: anywhere; }
.pictures { display: grid; gap: 1.5rem;
            grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; } figcaption { color: #4b5563; font-size: .875rem; }
h2 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; } figure h2 { margin: 0 0 .2rem; }
svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 1px solid #9ca3af; font-weight: 600; }
td { border-bottom: 1px solid #e5e7eb; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .875rem; }
dt { color: #4b5563; } dd { margin: 0; overflow-wrap: anywhere; }
"""
DEFINITIONS = {
    "NTPOT": "end-to-end time / output tokens: the papers' per-token or normalized latency",
    "TTFT": "from when the request was due to its first token",
    "TPOT": "(end-to-end - TTFT) / (output tokens - 1)",
    "ITL": "between two tokens, over all tokens",
    "of oracle's gain": "(fcfs - policy) / (fcfs - oracle) of the means over the requests that"
    " ended well under all three; in brackets the 95% interval over repeats and requests",
    "oracle": "knows each answer's length beforehand: what a perfect ranker would do",
}


class TableLike(Protocol):
    """The part of `report.Table` that is read here."""

    @property
    def title(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def rows(self) -> list[tuple[str, ...]]: ...


def page(
    result: Result,
    rows: Sequence[Figures],
    tables: Sequence[TableLike],
    verdict: str,
    notes: Sequence[str],
) -> str:
    """The whole page; nothing in it comes from elsewhere, and it has no script."""
    warned = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>pars: {escape(verdict[:80])}</title><style>{CSS}</style></head><body>",
            f'<p class="verdict">{escape(verdict)}</p>',
            f'<p class="kind">{escape(_kind(result.header))}</p>',
            f'<div class="notes">{warned}</div>' if warned else "",
            _pictures(result, rows),
            *map(_table, tables),
            "<h2>What the words mean</h2>",
            _list(DEFINITIONS),
            "<h2>How it was run</h2>",
            _list(_flat(result.header)),
            "</body></html>\n",
        ]
    )


def _kind(header: Mapping[str, Any]) -> str:
    if header.get("kind") == "simulate":
        return f"Simulated in virtual time: {header.get('engine', '')}"
    return f"Measured live: {header.get('url', '')}, model {header.get('model', '')}"


def _pictures(result: Result, rows: Sequence[Figures]) -> str:
    from pars.prove.report.pictures import pictures

    try:
        drawn = pictures(result, rows)
    except ModuleNotFoundError:
        return "<p>Pictures need matplotlib: pip install 'pars-llm[plot]', then `pars report`.</p>"
    shown = [
        f"<figure><h2>{escape(it.title)}</h2>{it.svg}<figcaption>{escape(it.caption)}</figcaption>"
        "</figure>"
        for it in drawn
    ]
    return f'<div class="pictures">{"".join(shown)}</div>'


def _table(table: TableLike) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _list(values: Mapping[str, str]) -> str:
    items = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items())
    return f"<dl>{''.join(items)}</dl>"


def _flat(header: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as lines: `workload source`."""
    lines: dict[str, str] = {}
    for name, value in header.items():
        if isinstance(value, Mapping):
            lines |= _flat(value, f"{prefix}{name} ")
        elif value not in (None, "", [], {}):
            told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines[f"{prefix}{name}".replace("_", " ")] = told
    return lines
