"""
What people read of a result: tables for the terminal, report.json, and one page, report.html.

    print(write_report(Path("bench"), limits={"ttft_s": 0.5}))

All three say first what came out, and before that what makes it doubtful. The page needs nothing
beside itself: no script, no font, no other file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pars.files import utf8, write_json, written_whole
from pars.prove.report.course import NUM_PARTS, course, learns
from pars.prove.report.gain import BASELINE, Gain, best_of, compared
from pars.prove.report.latency import MEASURES, THIRDS, Figures, figures
from pars.prove.report.page import page
from pars.prove.report.times import RequestTimes, Result, read_result
from pars.prove.report.verdict import share_text, verdict

JSON_FILE, HTML_FILE = "report.json", "report.html"
TITLES = {
    "ntpot_s": "NTPOT, s: end-to-end time / output tokens",
    "ttft_s": "TTFT, s: wait for the first token",
    "e2e_s": "End-to-end, s",
    "tpot_s": "TPOT, s: (end-to-end - TTFT) / (output tokens - 1)",
    "itl_s": "ITL, s: between two tokens",
}
ITSELF = "itself"  # in place of the share: what the others are measured by
LONG_STALL_S = 0.1
LONG_LATE_S = 0.1


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first column names the policy."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = [
            line[0].ljust(widths[0])
            + "".join(
                f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)
            )
            for line in lines
        ]
        return "\n".join([self.title, *text])


def write_report(folder: Path, limits: Mapping[str, float] | None = None) -> str:
    """
    Make report.json and report.html beside the requests of a result; returns the tables.

    Args:
        limits: Of goodput, by measure (`goodput.parse_limits`).

    Raises:
        DataError: the folder holds no result.
        ParsError: a file cannot be written.
    """
    result = read_result(folder)
    rows = figures(result, limits)
    gains, courses = _gains(result, rows), _courses(result, rows)
    sentence = verdict(result, rows)
    notes = _notes(result, rows)
    write_json(folder / JSON_FILE, _json(result, rows, (gains, courses), sentence, notes, limits))
    with written_whole(folder / HTML_FILE) as file:
        shown = tables(result, rows, (gains, courses), limits)
        file.write(utf8(page(result, rows, shown, sentence, notes)))
    only_main = len({row.rate for row in rows}) > 1
    few = tables(result, rows, (gains, courses), limits, only_main=only_main)
    told = [sentence, *(f"! {note}" for note in notes), "", *(f"{table}\n" for table in few)]
    told.append(f"{sentence}\n")  # once more, since the first line has gone by
    return "\n".join([*told, f"{folder / HTML_FILE} has the pictures"])


def tables_of(result: Result, rows: Sequence[Figures]) -> list[Table]:
    """What the terminal shows of a result: every load's main figures, and what was gained."""
    worth = _gains(result, rows), _courses(result, rows)
    return tables(result, rows, worth, None, only_main=True)


Gains = Mapping[tuple[str, float | None, str], Gain]
Courses = Mapping[tuple[str, float | None], Sequence[Gain]]


def _courses(result: Result, rows: Sequence[Figures]) -> Courses:
    """What each policy that learns had gained by each quarter of a load."""
    return {
        (row.policy, row.rate): course(result, row.policy, rate=row.rate)
        for row in rows
        if learns(row.policy) and row.num_ended_well and BASELINE in result.policies()
    }


def _gains(result: Result, rows: Sequence[Figures]) -> Gains:
    """What each policy but fcfs gained, in the measures that a queue changes."""
    found = {}
    at_rate: dict[float | None, list[RequestTimes]] = {}
    for request in result.requests:
        at_rate.setdefault(request.rate, []).append(request)
    for row in rows:
        part = replace(result, requests=at_rate.get(row.rate, []))
        for measure in ("ntpot_s", "ttft_s", "e2e_s"):
            if row.policy != BASELINE and row.num_ended_well:
                gain = compared(part, row.policy, rate=row.rate, measure=measure)
                if gain is not None:
                    found[row.policy, row.rate, measure] = gain
    return found


def tables(
    result: Result,
    rows: Sequence[Figures],
    worth: tuple[Gains, Courses],
    limits: Mapping[str, float] | None,
    *,
    only_main: bool = False,
) -> list[Table]:
    """Load by load: each measure, what was done, and the thirds; or only the first and last two."""
    gains, courses = worth
    found = []
    measures = [name for name in TITLES if not only_main or name in ("ntpot_s", "ttft_s")]
    for rate in dict.fromkeys(row.rate for row in rows):
        there = [row for row in rows if row.rate == rate]
        at = "" if rate is None else f", at {rate:g} requests/s"
        for measure in measures:
            if any(measure in row.measures for row in there):
                found.append(_measure_table(TITLES[measure] + at, measure, there, gains))
        found.append(_work_table(f"Done{at}", there, limits))
        if parts := {key[0]: it for key, it in courses.items() if key[1] == rate}:
            found.append(_course_table(f"As it learns{at}", parts))
        if not only_main:
            found.append(_thirds_table(f"By thirds of answer length{at}", there))
    return found


def _measure_table(title: str, measure: str, rows: Sequence[Figures], gains: Gains) -> Table:
    columns = ("policy", "mean", "p50", "p90", "p99", "worst", "mean of each repeat", "of fcfs")
    base = next((row for row in rows if row.policy == BASELINE), None)
    base_mean = base.measures[measure].mean if base and measure in base.measures else None
    has_shares = any(gain.share is not None for key, gain in gains.items() if key[2] == measure)
    best = best_of([row.policy for row in rows])
    lines = []
    for row in rows:
        spread = row.measures.get(measure)
        if spread is None:
            lines.append((row.policy, *["-"] * (len(columns) - 1 + has_shares)))
            continue
        numbers = (spread.mean, spread.p50, spread.p90, spread.p99, spread.worst)
        repeats = [number(value) for value in spread.of_each_repeat]
        told = " ".join(repeats) if len(repeats) <= 4 else f"{min(repeats)} .. {max(repeats)}"
        ratio = f"{spread.mean / base_mean:.2f}x" if base_mean else "-"
        gain = gains.get((row.policy, row.rate, measure))
        share = share_text(gain.share) if gain is not None and gain.share is not None else "-"
        share = ITSELF if row.policy == best and share != "-" else share
        cells = (row.policy, *map(number, numbers), told, ratio)
        lines.append((*cells, share) if has_shares else cells)
    return Table(title, (*columns, f"of {best}'s gain") if has_shares else columns, lines)


def _course_table(title: str, courses: Mapping[str, Sequence[Gain]]) -> Table:
    """What is gained by each quarter of the requests, in the order in which they came."""
    columns = ("policy", *(f"requests {told}" for told in ("1st quarter", "2nd", "3rd", "4th")))
    lines = []
    for policy, parts in courses.items():
        cells = [share_text(it.share) if it.share else f"{it.speedup:.2f}x" for it in parts]
        lines.append((policy, *cells, *["-"] * (NUM_PARTS - len(cells))))
    has_shares = any(it.share for parts in courses.values() for it in parts)
    told = "of oracle's gain" if has_shares else "times lower than fcfs"
    return Table(f"{title}: mean NTPOT, {told}", columns, lines)


def _work_table(title: str, rows: Sequence[Figures], limits: Mapping[str, float] | None) -> Table:
    columns = ["policy", "ended well", "failed", "longest wait, s", "requests/s", "tokens/s"]
    columns += ["preemptions", "waiting mean", "most", "running mean", "most"]
    columns += ["good requests/s", "share good"] if limits else []
    lines = []
    for row in rows:
        queue = row.queue
        looks: tuple[str, ...] = ("-",) * 4
        if queue is not None:
            looks = (number(queue.mean_waiting), f"{queue.most_waiting}")
            looks += (number(queue.mean_running), f"{queue.most_running}")
        cells = [
            row.policy,
            f"{row.num_ended_well} of {row.num_requests}",
            f"{sum(row.errors.values())}",
            number(row.longest_wait_s),
            number(row.throughput_rps),
            number(row.throughput_tokens_s),
            "-" if row.num_preemptions is None else f"{row.num_preemptions}",
            *looks,
        ]
        if limits:
            cells += [number(row.goodput_rps), f"{row.share_good or 0:.0%}"]
        lines.append(tuple(cells))
    return Table(title, tuple(columns), lines)


def _thirds_table(title: str, rows: Sequence[Figures]) -> Table:
    shown = {"ntpot_s": "NTPOT", "ttft_s": "TTFT", "e2e_s": "e2e"}
    columns = [f"{name} {third}" for name in shown.values() for third in THIRDS]
    lines = [
        (
            row.policy,
            *(number(row.thirds.get(third, {}).get(m)) for m in shown for third in THIRDS),
        )
        for row in rows
    ]
    return Table(f"{title}, means in s", ("policy", *columns), lines)


def number(value: float | None) -> str:
    """Three significant digits, without powers of ten; `-` for what is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _notes(result: Result, rows: Sequence[Figures]) -> list[str]:
    """What a reader must know before believing the figures."""
    notes = []
    if result.interrupted:
        policies = [f"{row.policy} ({row.num_requests:,})" for row in rows if row.interrupted]
        told = f"; not whole: {', '.join(policies)}" if policies else ""
        notes.append(f"The run was INTERRUPTED: these are the figures of a part{told}.")
    excerpts = {k: v for run in result.runs for k, v in run.facts.get("error_excerpts", {}).items()}
    for row in rows:
        at = "" if row.rate is None else f" at {row.rate:g} requests/s"
        for kind, count in sorted(row.errors.items()):
            said = f' ("{excerpts[kind][:120]}")' if excerpts.get(kind) else ""
            asked = f"{count:,} of {row.num_requests:,} requests failed"
            notes.append(f"{row.policy}{at}: {asked}: {kind}{said}. They are in no figure.")
    stall_s = max((row.largest_stall_s or 0.0 for row in rows), default=0.0)
    if stall_s > LONG_STALL_S:
        notes.append(
            f"This client stood still for up to {stall_s:.2f} s (a busy machine?); its delays hold"
            " that time."
        )
    late_s = max((row.most_late_s or 0.0 for row in rows), default=0.0)
    if late_s > LONG_LATE_S:
        notes.append(
            f"Some requests were sent up to {late_s:.2f} s late; delays count from when they were"
            " due."
        )
    if result.header.get("kind") == "bench" and all(row.queue is None for row in rows):
        notes.append("The engine has no /metrics that tell its queue, so it is not shown.")
    return notes


def _json(
    result: Result,
    rows: Sequence[Figures],
    worth: tuple[Gains, Courses],
    sentence: str,
    notes: Sequence[str],
    limits: Mapping[str, float] | None,
) -> dict[str, Any]:
    gains, courses = worth
    value = {
        "verdict": sentence,
        "interrupted": result.interrupted,
        "num_failed": sum(sum(row.errors.values()) for row in rows),
        "notes": list(notes),
        "limits": dict(limits or {}),
        "figures": [asdict(row) for row in rows],
        "gains": [_gain_json(it) for it in gains.values()],
        "quarters": [_gain_json(it) for parts in courses.values() for it in parts],
        "header": dict(result.header),
    }
    clean: dict[str, Any] = _finite(value)
    return clean


def _gain_json(gain: Gain) -> dict[str, Any]:
    share = None if gain.share is None else gain.share.as_json()
    return asdict(gain) | {"speedup": gain.speedup, "share": share}


def _finite(value: Any) -> Any:
    """Without NaN and infinity, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


assert set(TITLES) == set(MEASURES)
