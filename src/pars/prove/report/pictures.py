"""
The pictures of a result, each as a `Plot`. Needs the `plot` extra.

    for picture in pictures(result, figures(result)):
        page += picture.svg                 # with picture.title and what it shows, picture.caption

A policy has the same colour on every page; its line is broken where it ages.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pars.prove.report.course import gaps, learns
from pars.prove.report.gain import BASELINE
from pars.prove.report.latency import THIRDS, Figures, ended_well
from pars.prove.report.plot import Plot, plot
from pars.prove.report.times import Result

COLOURS = {
    "fcfs": "#6b7280",
    "ranker": "#1d4ed8",
    "gateway": "#0891b2",
    "oracle": "#15803d",
    "prompt-length": "#d97706",
    "max-tokens": "#9333ea",
    "reversed": "#b91c1c",
}
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))
NUM_POINTS = 400  # of a curve, whatever the number of requests
LEAST_WAIT_S = 1e-3
THIRDS_SHOWN = 12  # more policies than this make bars that nobody can tell apart


def pictures(result: Result, rows: Sequence[Figures]) -> list[Plot]:
    """
    What there is data for: latency against load, waits, thirds, what is gained as policies learn,
    and queue (at the highest load).

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    good = [row for row in rows if row.num_ended_well]
    if not good:
        return []
    rate = good[-1].rate
    styles = _styles(result.policies())
    at = "" if rate is None else f" at {rate:g} requests/s"
    top = [row for row in good if row.rate == rate]
    drawn = []
    if len({row.rate for row in good}) > 1:
        drawn += [
            plot(
                "Latency against load",
                "Mean NTPOT (end-to-end time divided by output tokens), all repeats.",
                lambda axes: _load(axes, good, styles, "ntpot_s", "mean"),
            ),
            plot(
                "The wait of the unluckiest hundredth against load",
                "99th percentile of the time to first token: what order costs the long ones.",
                lambda axes: _load(axes, good, styles, "ttft_s", "p99"),
            ),
        ]
    drawn.append(
        plot(
            f"How long requests wait{at}",
            "Share of requests whose first token came within a time; further left is better.",
            lambda axes: _waits(axes, result, rate, styles),
        )
    )
    drawn.append(
        plot(
            f"Short against long{at}",
            "Mean wait for the first token, by thirds of the answers' lengths.",
            lambda axes: _thirds(axes, top[:THIRDS_SHOWN], styles),
        )
    )
    learning = [row.policy for row in top if learns(row.policy)]
    if learning and any(row.policy == BASELINE for row in top):
        drawn.append(
            plot(
                f"The gap to first come, first served opens{at}",
                "Seconds per token saved so far, on average of the requests that came.",
                lambda axes: _gap(axes, result, rate, styles),
            )
        )
    if any(run.queue for run in result.runs if run.rate == rate):
        drawn.append(
            plot(
                f"The queue over time{at}",
                "Requests waiting in the engine; a thin line is another repeat.",
                lambda axes: _queue(axes, result, top, styles),
            )
        )
    return drawn


def _styles(policies: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour by name; the first spelling of a name is a whole line, the next ones are broken."""
    num_seen: dict[str, int] = {}
    styles = {}
    for policy in policies:
        name = policy.partition("@")[0]
        index = num_seen.get(name, 0) + ("@" in policy and name not in num_seen)
        num_seen[name] = index + 1
        colour = COLOURS.get(name, "#111827")
        styles[policy] = {"color": colour, "linestyle": DASHES[index % len(DASHES)]}
    return styles


def _load(
    axes: Any, rows: Sequence[Figures], styles: dict[str, dict[str, Any]], measure: str, at: str
) -> None:
    for policy, style in styles.items():
        points = [
            (row.rate, getattr(row.measures[measure], at))
            for row in rows
            if row.policy == policy and measure in row.measures and row.rate is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=policy, **style)
    axes.set(xlabel="requests per second", ylabel="seconds", yscale="log")
    plain_numbers(axes.yaxis)
    _legend(axes)


def _waits(
    axes: Any, result: Result, rate: float | None, styles: dict[str, dict[str, Any]]
) -> None:
    least_s = math.inf
    for policy, style in styles.items():
        waits = [
            r.first_token_s - r.arrival_s
            for r in result.requests
            if r.policy == policy and r.rate == rate and ended_well(r) and r.first_token_s
        ]
        if waits:
            shares = np.linspace(0, 1, min(NUM_POINTS, 1 + len(waits)))
            found = np.maximum(np.quantile(waits, shares, method="inverted_cdf"), LEAST_WAIT_S)
            axes.plot(found, shares, drawstyle="steps-pre", label=policy, **style)
            least_s = min(least_s, float(np.quantile(found, 0.01)) / 1.2)
    axes.set(xlabel="seconds to the first token", ylabel="share of requests", xscale="log")
    axes.set_ylim(0, 1.01)
    axes.set_xlim(max(LEAST_WAIT_S, least_s), None)
    plain_numbers(axes.xaxis)
    _legend(axes)


def _thirds(axes: Any, rows: Sequence[Figures], styles: dict[str, dict[str, Any]]) -> None:
    width = 0.8 / len(rows)
    for index, row in enumerate(rows):
        means = [row.thirds.get(third, {}).get("ttft_s", 0.0) for third in THIRDS]
        places = np.arange(len(THIRDS)) + (index - (len(rows) - 1) / 2) * width
        look = {"color": styles[row.policy]["color"], "label": row.policy}
        if styles[row.policy]["linestyle"] != "-":
            look |= {"hatch": "////", "edgecolor": "white", "linewidth": 0}
        axes.bar(places, means, width * 0.92, **look)
    axes.set_xticks(range(len(THIRDS)), [f"{third} answers" for third in THIRDS])
    axes.set(ylabel="seconds to the first token")
    axes.grid(visible=False, axis="x")
    _legend(axes)


def _gap(axes: Any, result: Result, rate: float | None, styles: dict[str, dict[str, Any]]) -> None:
    for policy, style in styles.items():
        if policy == BASELINE:
            continue
        counts, saved_s = gaps(result, policy, BASELINE, rate)
        step = -(-len(counts) // NUM_POINTS)
        if counts:
            axes.plot(counts[::step], saved_s[::step], label=policy, **style)
    axes.axhline(0, color=COLOURS[BASELINE], linewidth=0.8)
    axes.set(xlabel="requests", ylabel="seconds a token saved", xlim=(0, None))
    _legend(axes)


def _queue(
    axes: Any, result: Result, rows: Sequence[Figures], styles: dict[str, dict[str, Any]]
) -> None:
    shown = {(row.policy, row.rate) for row in rows}
    seen: set[str] = set()
    for run in sorted(result.runs, key=lambda run: run.repeat):
        if (run.policy, run.rate) not in shown or not run.queue:
            continue
        step = -(-len(run.queue) // NUM_POINTS)
        samples = run.queue[::step]
        look = dict(styles[run.policy])
        if run.policy in seen:
            look |= {"linewidth": 0.7, "alpha": 0.5}
        else:
            look["label"] = run.policy
        seen.add(run.policy)
        times = [sample.at_s for sample in samples]
        axes.plot(times, [sample.num_waiting for sample in samples], **look)
    axes.set(xlabel="seconds from the start", ylabel="requests waiting", xlim=(0, None))
    axes.set_ylim(0, None)
    _legend(axes)


def _legend(axes: Any) -> None:
    """Above the axes, where it hides nothing."""
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=min(4, len(handles)),
        fontsize=8.5,
        handlelength=1.6,
        columnspacing=1.2,
    )


def plain_numbers(axis: Any) -> None:
    """0.01, 1, 100 in place of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    span = high / max(low, 1e-9)
    subs = (1.0,) if span > 100 else (1.0, 2.0, 5.0) if span > 8 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
