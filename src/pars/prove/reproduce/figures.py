"""The figures: tau-b by objective, and time per token against the arrival rate, as `Plot`s."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pars.prove.report.pictures import plain_numbers
from pars.prove.report.plot import Plot, plot
from pars.prove.reproduce.experiment import OBJECTIVES, POLICIES, Found

COLOURS = {
    "fcfs": "#6b7280",
    "pointwise": "#d97706",
    "listwise": "#9333ea",
    "pairwise": "#1d4ed8",
    "oracle": "#15803d",
}
LABELS = {"fcfs": "FCFS", "pairwise": "PARS (pairwise)"}


def figures(found: Sequence[Found]) -> dict[str, Plot]:
    """By file name, without a suffix."""
    drawn = {"tau": _taus(found)}
    for it in found:
        drawn[f"{it.name}_mean"] = _latency(it, "mean", "Mean")
        drawn[f"{it.name}_p90"] = _latency(it, "p90", "90th percentile of the")
        drawn[f"{it.name}_burst"] = _burst(it)
    return drawn


def _taus(found: Sequence[Found]) -> Plot:
    def draw(axes: Any) -> None:
        width = 0.8 / len(OBJECTIVES)
        for place, name in enumerate(OBJECTIVES):
            told = [it.taus[name].tau_b for it in found]
            values = np.array([it.value for it in told])
            errors = np.array([[it.value - it.low, it.high - it.value] for it in told]).T
            places = np.arange(len(found)) + (place - 1) * width
            look = {"color": COLOURS[name], "label": LABELS.get(name, name), "capsize": 2}
            axes.bar(places, values, width * 0.92, yerr=np.clip(errors, 0, None), **look)
        axes.set_xticks(range(len(found)), [it.name for it in found])
        axes.set(ylabel="Kendall tau-b, all pairs")
        axes.grid(visible=False, axis="x")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8.5)

    caption = "Mean over trainings; 95% interval over held-out conversations of one."
    return plot("Order by objective", caption, draw)


def _latency(found: Found, measure: str, words: str) -> Plot:
    def draw(axes: Any) -> None:
        for policy in POLICIES:
            points = [it for it in found.points if it.policy == policy and it.rate is not None]
            told = [getattr(it, measure) for it in points]
            rates = [it.rate for it in points]
            colour = COLOURS[policy]
            axes.plot(
                rates,
                [it.value for it in told],
                marker="o",
                markersize=4,
                color=colour,
                label=LABELS.get(policy, policy),
            )
            axes.fill_between(
                rates, [it.low for it in told], [it.high for it in told], color=colour, alpha=0.12
            )
        axes.set(xlabel="requests per second", ylabel="seconds per token", yscale="log")
        plain_numbers(axes.yaxis)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8.5)

    title = f"{found.name}: {words} time per token against the arrival rate"
    return plot(title, "Poisson arrivals; bands are 95% intervals.", draw)


def _burst(found: Found) -> Plot:
    def draw(axes: Any) -> None:
        points = {it.policy: it for it in found.points if it.rate is None}
        for place, policy in enumerate(POLICIES):
            it = points[policy].mean
            error = [[max(0.0, it.value - it.low)], [max(0.0, it.high - it.value)]]
            if not math.isnan(it.value):
                axes.bar(place, it.value, 0.8, yerr=error, capsize=2, color=COLOURS[policy])
        axes.set_xticks(range(len(POLICIES)), [LABELS.get(it, it) for it in POLICIES])
        axes.set(ylabel="seconds per token, mean")
        axes.grid(visible=False, axis="x")

    return plot(f"{found.name}: a burst", "All requests at once; 95% intervals.", draw)
