"""
A leaderboard as people and programs read it: text, Markdown, CSV, JSON and one HTML page.

    write_board(board, Path("out"))             # leaderboard.csv, .json, .md, .html
"""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pars.files import utf8, write_json, written_whole
from pars.prove.leaderboard.board import FileBoard, Leaderboard, Line
from pars.prove.report.page import CSS
from pars.ranking.intervals import Estimate

NAME = "leaderboard"
Row = list[str]
NOTE = (
    "Kendall tau-b with 95% intervals from resampled conversations (prompts where none are known);"
    " * marks a difference whose interval leaves out 0, not corrected for how many are looked at."
    " inside 80%: answers inside the interval told; high/low: its median width; bias: expected over"
    " real tokens. Gain: share of the oracle's under the same policy in simulated mean NTPOT."
)
BOUNDS = {"": "no bound"}


def tables(board: FileBoard) -> list[tuple[str, list[Row]]]:
    """Titled tables of one file, a head row first: order, calibration with cost, and worth."""
    title = (
        f"{board.name}: trained on {board.num_train:,}, judged by {board.num_test:,} requests of"
        f" {board.num_conversations:,} conversations or prompts"
    )
    found = [
        (title, _order(board)),
        ("Calibration and cost", _cost(board)),
    ]
    if any(line.worth for line in board.lines):
        found.append(("Share of the oracle's gain, by load and bound", _worth(board)))
    return found


def _order(board: FileBoard) -> list[Row]:
    head = ["predictor", "tau-b, all pairs", "filtered pairs", "within conversations"]
    rows = [
        [
            line.predictor,
            *(str(it) for it in (line.tau_b, line.tau_b_filtered, line.tau_b_within)),
            _difference(line.difference),
        ]
        for line in board.lines
    ]
    return [[*head, f"less {board.against}"], *rows]


def _difference(it: Estimate) -> str:
    if math.isnan(it.value):
        return "-"
    mark = " *" if it.low > 0 or it.high < 0 else ""
    return f"{it.value:+.3f} [{it.low:+.3f}, {it.high:+.3f}]{mark}"


def _cost(board: FileBoard) -> list[Row]:
    head = [
        "predictor",
        "inside 80%",
        "high/low",
        "bias",
        "alone us",
        "in batch us",
        "MB",
        "train s",
    ]
    return [head, *(_cost_row(line) for line in board.lines)]


def _cost_row(line: Line) -> Row:
    known, cost = line.calibrated, line.cost
    told = (
        ["-", "-", "-"]
        if known is None
        else [
            "-" if known.coverage is None else f"{known.coverage:.0%}",
            "-" if known.sharpness is None else f"{known.sharpness:.1f}",
            f"{known.bias:.2f}",
        ]
    )
    held = "-" if cost.held_bytes is None else f"{cost.held_bytes / 1e6:.2f}"
    times = [f"{cost.alone_us:,.0f}", f"{cost.batch_us:,.1f}", held, f"{cost.train_s:.1f}"]
    return [line.predictor, *told, *times]


def _worth(board: FileBoard) -> list[Row]:
    """A column a load and bound."""
    shape = next(line.worth for line in board.lines if line.worth)
    places = [(bound, load) for bound in shape for load in shape[bound]]
    head = [f"{load:g}, {BOUNDS.get(bound, bound)}" for bound, load in places]
    rows = [
        [line.predictor, *(_percent(line.worth[bound][load]) for bound, load in places)]
        for line in board.lines
    ]
    return [["predictor", *head], *rows]


def _percent(it: Estimate) -> str:
    if math.isnan(it.value):
        return "-"
    between = "" if math.isnan(it.low) else f" [{it.low:.0%}, {it.high:.0%}]"
    return f"{it.value:.0%}{between}"


def render(board: Leaderboard) -> str:
    """For a terminal."""
    parts = [_in_columns(title, rows) for it in board.files for title, rows in tables(it)]
    return "\n\n".join([*parts, NOTE, *_differs(board)])


def _in_columns(title: str, rows: Sequence[Row]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([title, "", *lines])


def _differs(board: Leaderboard) -> list[str]:
    """What of each predictor is not as it was published."""
    lines = {line.predictor: line for it in board.files for line in it.lines}
    told = [
        f"{name}: {it.source}{'; ' + it.differs if it.differs else ''}."
        for name, it in lines.items()
    ]
    return ["\n".join(told)]


def as_markdown(board: Leaderboard) -> str:
    """With a heading a file."""
    parts = ["# Leaderboard"]
    for it in board.files:
        for place, (title, (head, *rows)) in enumerate(tables(it)):
            ruler = ["---", *["--:"] * (len(head) - 1)]
            lines = [f"| {' | '.join(row)} |" for row in (head, ruler, *rows)]
            parts += [f"{'##' if place == 0 else '###'} {title}", "\n".join(lines)]
    listed = "\n".join(f"- {line}" for line in _differs(board)[0].splitlines())
    return "\n\n".join([*parts, NOTE, listed]) + "\n"


def as_csv(board: Leaderboard) -> str:
    """A row for each predictor on each file, with plain numbers."""
    rows = [_flat(it, line) for it in board.files for line in it.lines]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _flat(board: FileBoard, line: Line) -> dict[str, Any]:
    row: dict[str, Any] = {"file": board.name, "predictor": line.predictor}
    row |= {"num_train": board.num_train, "num_test": board.num_test}
    measured = {
        "tau_b": line.tau_b,
        "tau_b_filtered": line.tau_b_filtered,
        "tau_b_within": line.tau_b_within,
        f"tau_b_less_{board.against}": line.difference,
    }
    for bound, by_load in line.worth.items():
        for load, share in by_load.items():
            measured[f"gain_{load:g}{bound}"] = share
    for name, it in measured.items():
        told = it.as_json()
        row |= {name: told["value"], f"{name}_low": told["low"], f"{name}_high": told["high"]}
    if line.calibrated:
        known = line.calibrated
        row |= {"coverage": known.coverage, "sharpness": known.sharpness, "bias": known.bias}
    cost = line.cost
    row |= {"train_s": round(cost.train_s, 3), "alone_us": round(cost.alone_us, 1)}
    row |= {"batch_us": round(cost.batch_us, 1), "held_bytes": cost.held_bytes}
    return row


def as_json(board: Leaderboard) -> dict[str, Any]:
    """Everything, null for what is undefined."""
    files = [
        {
            "name": it.name,
            "against": it.against,
            "lines": [
                _flat(it, line) | {"source": line.source, "differs": line.differs}
                for line in it.lines
            ],
        }
        for it in board.files
    ]
    return {"facts": board.facts, "files": files}


def as_html(board: Leaderboard) -> str:
    """One page; nothing in it comes from elsewhere, and it has no script."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>pars: leaderboard</title><style>{CSS}</style></head><body>",
        "<h1>Leaderboard</h1>",
    ]
    for it in board.files:
        parts += [html_table(title, rows) for title, rows in tables(it)]
    listed = "".join(f"<li>{escape(line)}</li>" for line in _differs(board)[0].splitlines())
    facts = escape(json.dumps(board.facts, ensure_ascii=False))
    parts += [f"<p>{escape(NOTE)}</p><ul>{listed}</ul><p>{facts}</p>", "</body></html>\n"]
    return "\n".join(parts)


def html_table(title: str, rows: Sequence[Row]) -> str:
    """A head row and the others."""
    head, *rest = rows
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rest
    )
    return (
        f'<h2>{escape(title)}</h2><div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def write_board(board: Leaderboard, folder: Path) -> list[Path]:
    """
    leaderboard.csv, .json, .md and .html in `folder`; where they lie.

    Raises:
        ParsError: a file cannot be written.
    """
    makers: dict[str, Callable[[Leaderboard], str]] = {
        "csv": as_csv,
        "md": as_markdown,
        "html": as_html,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, make in makers.items():
        paths.append(folder / f"{NAME}.{suffix}")
        with written_whole(paths[-1]) as file:
            file.write(utf8(make(board)))
    paths.append(folder / f"{NAME}.json")
    write_json(paths[-1], as_json(board))
    return paths
