"""
What `pars reproduce` leaves: one page with pictures, the tables, the figures for papers, and what
another engine needs to run the same.

    out/report.html, report.json, tau.csv, latency.csv
    out/figures/*.svg, *.pdf
    out/live/NAME/{poisson,burst}.jsonl, pairwise.jsonl, …    # for `pars bench`, `pars simulate`
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pars.files import utf8, write_json, written_whole
from pars.prove.leaderboard.records import Data
from pars.prove.leaderboard.tables import Row, html_table
from pars.prove.report.page import CSS
from pars.prove.report.plot import Plot
from pars.prove.reproduce.experiment import POLICIES, Found, Point, workload_of
from pars.prove.reproduce.figures import figures
from pars.prove.reproduce.paper import NOT_THE_SAME, PUBLISHED
from pars.prove.workload.workload import write_workload
from pars.ranking.intervals import Estimate


def tables(found: Sequence[Found]) -> list[tuple[str, list[Row]]]:
    """Titled tables, a head row first."""
    return [("Kendall tau-b by objective", _taus(found)), *map(_latency, found), _published(found)]


def _taus(found: Sequence[Found]) -> list[Row]:
    head = [
        "log",
        "trained on",
        "held out",
        "objective",
        "tau-b",
        "by training",
        "pairwise less it",
    ]
    rows = [
        [
            *(it.name, f"{it.num_train:,}", f"{it.num_test:,}", name, str(tau.tau_b)),
            " ".join(f"{value:.3f}" for value in tau.by_seed),
            _signed(tau.pairwise_less),
        ]
        for it in found
        for name, tau in it.taus.items()
    ]
    return [head, *rows]


def _signed(it: Estimate) -> str:
    if math.isnan(it.value):
        return "-"
    mark = " *" if it.low > 0 or it.high < 0 else ""
    return f"{it.value:+.3f} [{it.low:+.3f}, {it.high:+.3f}]{mark}"


def _latency(found: Found) -> tuple[str, list[Row]]:
    head = ["arrivals", "policy", "mean s/token", "p90 s/token", "times lower than FCFS"]
    rows = [
        [_arrivals(it), it.policy, _seconds(it.mean), _seconds(it.p90), _ratio(it.times_lower)]
        for it in found.points
    ]
    return f"{found.name}: time per output token", [head, *rows]


def _arrivals(it: Point) -> str:
    return "burst" if it.rate is None else f"poisson, {it.rate:.1f}/s ({it.load:g} of capacity)"


def _seconds(it: Estimate) -> str:
    return f"{it.value:.4f} [{it.low:.4f}, {it.high:.4f}]"


def _ratio(it: Estimate) -> str:
    return f"{it.value:.2f} [{it.low:.2f}, {it.high:.2f}]"


def _published(found: Sequence[Found]) -> tuple[str, list[Row]]:
    """The paper's figures, and the nearest thing here."""
    best = max(
        (it for log in found for it in log.points if it.policy == "pairwise"),
        key=lambda it: it.times_lower.value,
    )
    taus = {name: [it.taus[name].tau_b.value for it in found] for name in found[0].taus}
    ours = [
        f"{_ratio(best.times_lower)} ({_arrivals(best)})",
        *(_between(taus[name]) for name in ("pairwise", "pointwise", "pairwise")),
        "not measured in virtual time",
    ]
    head = ["PARS, arXiv 2510.03243", "the paper", "read in", "here, least to most", ""]
    rows = [
        [it.what, it.value, it.where, here, NOT_THE_SAME]
        for it, here in zip(PUBLISHED, ours, strict=True)
    ]
    return "Beside the paper", [head, *rows]


def _between(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def render(found: Sequence[Found]) -> str:
    """For a terminal."""
    parts = []
    for title, rows in tables(found):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        parts.append("\n".join([title, "", *lines]))
    return "\n\n".join(parts)


def write_report(
    found: Sequence[Found],
    data: Sequence[Data],
    folder: Path,
    facts: Mapping[str, Any],
    engine: str,
) -> None:
    """
    All of it.

    Args:
        engine: The options of `pars simulate` that make the same engine.

    Raises:
        ParsError: a file cannot be written.
        MissingExtra: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures(found)
    for name, it in drawn.items():
        for suffix in ("svg", "pdf"):
            it.save(folder / "figures" / f"{name}.{suffix}")
    commands = [
        line
        for it, log in zip(data, found, strict=True)
        for line in _for_engines(it, log, folder, engine)
    ]
    write_json(folder / "report.json", {"facts": dict(facts), "logs": list(map(_plain, found))})
    for name, rows in (("tau", _flat_taus(found)), ("latency", _flat_points(found))):
        with written_whole(folder / f"{name}.csv") as file:
            file.write(utf8(_csv(rows)))
    with written_whole(folder / "report.html") as file:
        file.write(utf8(_page(found, drawn, facts, commands)))


def _for_engines(data: Data, found: Found, folder: Path, setting: str) -> list[str]:
    """Workloads and scores in files, and the commands that take them."""
    own = folder / "live" / data.name
    own.mkdir(parents=True, exist_ok=True)
    rate = next(it.rate / it.load for it in found.points if it.rate and it.load)
    rates = ",".join(dict.fromkeys(f"{it.rate:.6g}" for it in found.points if it.rate))
    for arrivals, at in (("poisson", rate), ("burst", None)):
        requests = workload_of(data.test, at, 0).requests
        write_workload(own / f"{arrivals}.jsonl", {"source": data.name, "rate": at}, requests)
    for name, scores in found.scores.items():
        with written_whole(own / f"{name}.jsonl") as file:
            for place, score in enumerate(scores.tolist()):
                line = json.dumps({"request_id": str(place), "score": score})
                file.write(utf8(line) + b"\n")
    given = " ".join(f"--scores {name}={own / name}.jsonl" for name in found.scores)
    policies = f"--policies {','.join(POLICIES)} {given}"
    exact = f"pars simulate --stepper vllm --vllm-python .engine/bin/python {setting} --workload"
    return [
        f"pars bench URL --workload {own}/burst.jsonl {policies} --output-dir {own}/bench",
        f"{exact} {own}/poisson.jsonl --rates {rates} {policies} --output-dir {own}/exact",
    ]


def _plain(found: Found) -> dict[str, Any]:
    return {
        "name": found.name,
        "num_train": found.num_train,
        "num_test": found.num_test,
        "taus": _flat_taus([found]),
        "points": _flat_points([found]),
    }


def _flat_taus(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {"log": it.name, "objective": tau.objective, "by_training": list(tau.by_seed)}
        | tau.tau_b.as_json()
        | {f"pairwise_less_{name}": value for name, value in tau.pairwise_less.as_json().items()}
        for it in found
        for tau in it.taus.values()
    ]


def _flat_points(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {"log": it.name, "policy": at.policy, "arrivals": at.arrivals}
        | {"load": at.load, "rate": at.rate}
        | {
            f"{measure}{'' if name == 'value' else '_' + name}": value
            for measure in ("mean", "p90", "times_lower")
            for name, value in _exact(getattr(at, measure)).items()
        }
        for it in found
        for at in it.points
    ]


def _exact(it: Estimate) -> dict[str, float]:
    return {"value": it.value, "low": it.low, "high": it.high}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _page(
    found: Sequence[Found],
    drawn: Mapping[str, Plot],
    facts: Mapping[str, Any],
    commands: Sequence[str],
) -> str:
    """One file; nothing in it comes from elsewhere, and it has no script."""
    shown = "".join(
        f"<figure><h2>{escape(it.title)}</h2>{it.svg}<figcaption>{escape(it.caption)}</figcaption>"
        "</figure>"
        for it in drawn.values()
    )
    ready = "".join(f"<li><code>{escape(line)}</code></li>" for line in commands)
    told = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(it))}</dd>" for name, it in facts.items()
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>pars: PARS reproduced</title><style>{CSS}</style></head><body>",
            "<h1>PARS, from data of its shape</h1>",
            "<p>Simulated in virtual time; every figure has its 95% interval. The data are not the"
            " paper's, and neither is the engine.</p>",
            f'<div class="pictures">{shown}</div>',
            *(html_table(title, rows) for title, rows in tables(found)),
            "<h2>How it was made</h2>",
            f"<dl>{told}</dl>",
            "<h2>The same on an engine</h2>",
            f"<p>Ready, and not run by this command unless --live said so:</p><ul>{ready}</ul>",
            "</body></html>\n",
        ]
    )
