"""
How well a server tells, while it serves, what its order is worth: told and true, side by side.

    python benchmarks/worth.py [--requests 4000]

Each trace runs in virtual time (h100-8b) first come, first served, by the default bound and
shortest first. What `pars.outcomes.counterfactual` tells of a run, from arrivals, begins and ends
alone, is set beside what the first come, first served run of the same requests truly took. "In
thought" is the other way round (shadow mode): what the first come, first served run tells of
shortest first. The last line of stdout is one JSON; PARS_SHARED names the folder with data/traces
(default ../shared).
"""

import argparse
import json
import sys
from dataclasses import dataclass

import numpy as np

from frontier import LOADS, by_policy, figures
from frontier_loads import SHARED, TRACES, Case, load_of
from pars.outcomes.counterfactual import fcfs_begins_s, ordered_begins_s
from pars.scheduling.demand import Demand
from pars.scheduling.policies.max_slowdown import DEFAULT_MAX_SLOWDOWN, MaxSlowdown
from virtual_load import Job, Load, finished, ranks

DEFAULT = f"@{DEFAULT_MAX_SLOWDOWN:g}x"
SHORTEST = "shortest first"
TARGET = 0.05
Ratios = dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a server sees of a run, by columns of [num_requests]."""

    load: Load
    begins_s: np.ndarray
    ends_s: np.ndarray
    work: np.ndarray

    @classmethod
    def of(cls, times: list, load: Load) -> "Run":
        times = sorted(times, key=lambda it: it.request_id)
        begins_s = np.array([it.first_token_s for it in times])
        ends_s = np.array([it.finished_s for it in times])
        return cls(load, begins_s, ends_s, (load.output_tokens + load.prompt_tokens).astype(float))

    def gain(self, other_begins_s: np.ndarray) -> Ratios:
        """By how much this run's means are shorter than with those begins, where they are known."""
        known, at_s = ~np.isnan(other_begins_s), self.load.arrivals_s
        beside_s = other_begins_s - self.begins_s
        own_s, tokens = (self.ends_s - at_s)[known], self.load.output_tokens[known]
        own_wait_s = (self.begins_s - at_s)[known].mean()
        return {
            "ntpot": 1
            - float((own_s / tokens).mean() / ((own_s + beside_s[known]) / tokens).mean()),
            "wait": 1 - float(own_wait_s / (other_begins_s - at_s)[known].mean()),
        }

    def told(self) -> Ratios:
        """What the run itself shows of first come, first served."""
        last_s = float(self.ends_s.max())
        return self.gain(fcfs_begins_s(self.load.arrivals_s, self.begins_s, self.work, last_s))

    def in_thought(self, cost: np.ndarray) -> float:
        """What a first come, first served run tells of shortest first, in time per token."""
        begins_s = ordered_begins_s(self.load.arrivals_s, self.begins_s, self.work, cost)
        return 1 - 1 / (1 - self.gain(begins_s)["ntpot"])


def runs_of(load: Load) -> tuple[dict[str, list], np.ndarray]:
    """The times of each order, and the costs by which the shortest go first."""
    noise = np.exp(np.random.default_rng(0).normal(0, 0.7, len(load.output_tokens)))
    expected = np.maximum(load.output_tokens * noise, 1.0)
    work = expected + load.prompt_tokens
    cost = np.sqrt(expected * work)
    demands = [Demand(*it) for it in zip(cost.tolist(), work.tolist(), strict=True)]
    return {
        "fcfs": finished(Job(load, np.zeros(len(cost), dtype=np.int64))),
        DEFAULT: by_policy(load, demands, MaxSlowdown()),
        SHORTEST: finished(Job(load, ranks(cost))),
    }, cost


def compared(case: Case) -> dict[str, dict[str, Ratios]]:
    """What each order's run tells of its worth, and the truth; printed as well."""
    load, _ = load_of(case)
    orders, cost = runs_of(load)
    usual, rows = figures(orders["fcfs"], load), {}
    for name, times in orders.items():
        own, told = figures(times, load), Run.of(times, load).told()
        true = {"ntpot": 1 - own["ntpot"] / usual["ntpot"], "wait": 1 - own["ttft"] / usual["ttft"]}
        label = f"{case.trace.split('_')[0]} at {case.share:g}, {name}"
        rows[label] = {"told": told, "true": true}
        print(
            f"{label:<43}{told['ntpot']:>11.1%}{true['ntpot']:>7.1%}"
            f"{told['wait']:>11.1%}{true['wait']:>7.1%}",
            flush=True,
        )
    thought = Run.of(orders["fcfs"], load).in_thought(cost)
    rows[f"{case.trace.split('_')[0]} at {case.share:g}, in thought"] = {"told": {"ntpot": thought}}
    print(f"{'':<14}{'in thought':<29}{thought:>11.1%}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--requests", type=int, default=4000, help="Of each trace, at most.")
    options = parser.parse_args()
    if not (SHARED / "data/traces").is_dir():
        sys.exit(f"{SHARED}/data/traces is not there: set PARS_SHARED")
    print("By how much the order shortened the mean, told by the server and in truth")
    print(f"{'':<43}{'NTPOT told':>11}{'true':>7}{'wait told':>11}{'true':>7}")
    rows: dict[str, dict[str, Ratios]] = {}
    for trace in TRACES:
        for share in LOADS:
            rows |= compared(Case(trace, share, options.requests))
    usual = [row for name, row in rows.items() if name.endswith(DEFAULT)]
    worst = max(abs(row["told"]["ntpot"] - row["true"]["ntpot"]) for row in usual)
    is_met = "met" if worst <= TARGET else "MISSED"
    print(
        f"\n{DEFAULT}: NTPOT told within {100 * worst:.1f} points of the truth;"
        f" target {100 * TARGET:g}: {is_met}"
    )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
