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

import numpy as np

from frontier import LOADS, SHARED, TRACES, Case, by_slowdown, figures, load_of
from pars.outcomes.counterfactual import fcfs_begins_s, ordered_begins_s
from pars.scheduling.policies.max_slowdown import DEFAULT_MAX_SLOWDOWN
from virtual_load import Job, Load, finished, ranks

DEFAULT = f"@{DEFAULT_MAX_SLOWDOWN:g}x"
TARGET = 0.05


def told(times: list, load: Load) -> dict[str, float]:
    """What the run itself shows of first come, first served."""
    times = sorted(times, key=lambda it: it.request_id)
    begins_s = np.array([it.first_token_s for it in times])
    ends_s = np.array([it.finished_s for it in times])
    work = (load.output_tokens + load.prompt_tokens).astype(float)
    begins_fcfs_s = fcfs_begins_s(load.arrivals_s, begins_s, work, float(ends_s.max()))
    waits_s = begins_fcfs_s - load.arrivals_s
    known = ~np.isnan(waits_s)
    e2e_s = (waits_s + ends_s - begins_s)[known]
    own_s = (ends_s - load.arrivals_s)[known]
    tokens, own_waits_s = load.output_tokens[known], (begins_s - load.arrivals_s)[known]
    return {
        "ntpot": 1 - float((own_s / tokens).mean() / (e2e_s / tokens).mean()),
        "wait": 1 - float(own_waits_s.mean() / waits_s[known].mean()),
    }


def in_thought(first_come: list, load: Load, cost: np.ndarray) -> dict[str, float]:
    """What a first come, first served run tells of shortest first."""
    times = sorted(first_come, key=lambda it: it.request_id)
    begins_s = np.array([it.first_token_s for it in times])
    ends_s = np.array([it.finished_s for it in times])
    work = (load.output_tokens + load.prompt_tokens).astype(float)
    waits_s = ordered_begins_s(load.arrivals_s, begins_s, work, cost) - load.arrivals_s
    known = ~np.isnan(waits_s)
    own = ((ends_s - load.arrivals_s) / load.output_tokens)[known].mean()
    other = ((waits_s + ends_s - begins_s) / load.output_tokens)[known].mean()
    return {"ntpot": 1 - float(other / own)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--requests", type=int, default=4000, help="Of each trace, at most.")
    options = parser.parse_args()
    if not (SHARED / "data/traces").is_dir():
        sys.exit(f"{SHARED}/data/traces is not there: set PARS_SHARED")
    results, worst = {}, 0.0
    print("By how much the order shortened the mean, told by the server and in truth")
    print(f"{'':<34}{'NTPOT told':>11}{'true':>7}{'wait told':>11}{'true':>7}")
    for trace in TRACES:
        for share in LOADS:
            load = load_of(Case(trace, share, options.requests))
            expected = load.output_tokens * np.exp(
                np.random.default_rng(0).normal(0, 0.7, len(load.output_tokens))
            )
            cost = np.sqrt(expected * (expected + load.prompt_tokens))
            first_come = finished(Job(load, np.zeros(len(cost), dtype=np.int64)))
            usual = figures(first_come, load)
            thought = in_thought(first_come, load, cost)
            for name, times in (
                ("fcfs", first_come),
                (DEFAULT, by_slowdown(load, cost, expected, DEFAULT_MAX_SLOWDOWN)),
                ("shortest first", finished(Job(load, ranks(cost)))),
            ):
                own, found = figures(times, load), told(times, load)
                if name == "shortest first":
                    results[f"{trace.split('_')[0]} at {share:g}, in thought"] = thought
                true = {
                    "ntpot": 1 - own["ntpot"] / usual["ntpot"],
                    "wait": 1 - own["ttft"] / usual["ttft"],
                }
                label = f"{trace.split('_')[0]} at {share:g}, {name}"
                results[label] = {"told": found, "true": true}
                if name == DEFAULT:
                    worst = max(worst, abs(found["ntpot"] - true["ntpot"]))
                print(
                    f"{label:<34}{found['ntpot']:>11.1%}{true['ntpot']:>7.1%}"
                    f"{found['wait']:>11.1%}{true['wait']:>7.1%}",
                    flush=True,
                )
            print(f"{'':<14}{'in thought':<20}{thought['ntpot']:>11.1%}", flush=True)
    is_met = worst <= TARGET
    print(
        f"\n{DEFAULT}: NTPOT told within {100 * worst:.1f} points of the truth;"
        f" target {100 * TARGET:g}: {'met' if is_met else 'MISSED'}"
    )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
