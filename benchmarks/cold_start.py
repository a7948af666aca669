"""
A cold start in a queue: how soon the ranker that learns while it serves is worth having.

    python benchmarks/cold_start.py

The engine of `pars simulate` (preset h100-8b) with 32 slots, arrivals in bursts (gamma, cv 2) at
0.95 of what it can serve, in virtual time. Nothing is known at the start; each answer is learned
when it ends. Traffic: Alpaca, and a mix of six data sets as six applications, each known by its
name. Every request's time per answer token (NTPOT) is held against that of the same request under
first come, first served and under the oracle, which knows true lengths: the share of the oracle's
gain in the mean, by the age of the service in requests, over NUM_RUNS runs of other requests. The
bundled ranker, which learns nothing, stands beside it. All are shortest first without a bound, as
the oracle's gain is largest there; the default bound of 1.5 times is the second table. The last
line of stdout is one JSON document; PARS_SHARED names the folder with data/ (default ../shared).
"""

import json
import sys
from dataclasses import replace

import numpy as np

from online import NUM_HELD_OUT, SHARED, SIX, first_of_each, rows_of
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.policy_run import run_policy
from pars.prove.engine.step_time import EnginePreset
from pars.prove.report.sweep import capacity_rps
from pars.prove.workload.arrivals import gamma
from pars.prove.workload.contenders import Contender
from pars.prove.workload.scores import RankerSource
from pars.prove.workload.workload import WorkloadRequest
from pars.ranking.ranker import bundled_ranker
from pars.request.features import signals_of_row
from pars.scheduling.policies.max_slowdown import DEFAULT_MAX_SLOWDOWN

SLOTS, LOAD, CV = 32, 0.95, 2.0
NUM_REQUESTS, NUM_RUNS = 10_000, 4
AGES = ((0, 300), (300, 1_000), (1_000, 3_000), (3_000, NUM_REQUESTS))
BOUNDS = ("", f"@{DEFAULT_MAX_SLOWDOWN:g}x")
TARGETS = {"Alpaca": (75, 85, None, 93), "six applications": (65, 75, None, 92)}
PRESET = EnginePreset.named("h100-8b")
LIMITS = replace(PRESET.limits, max_num_seqs=SLOTS)


def main() -> None:
    if not (SHARED / "data").is_dir():
        sys.exit(f"{SHARED}/data is not there: set PARS_SHARED")
    results: dict[str, dict[str, list[float]]] = {}
    for name, rows in {"Alpaca": alpaca(), "six applications": six_applications()}.items():
        runs = [times_of(requests_of(rows, seed)) for seed in range(NUM_RUNS)]
        results[name] = shares = {
            order + bound: share_of(runs, order + bound, bound)
            for bound in BOUNDS
            for order in ("online", "ranker")
        }
        print(f"\n{name}: share of the oracle's gain in mean NTPOT, by requests before")
        print(f"{'':<16}" + "".join(f"{f'{first:,} to {last:,}':>18}" for first, last in AGES))
        for order, told in shares.items():
            label = order.replace("ranker", "bundled")
            print(f"{label:<16}" + "".join(f"{share:>17.0%} " for share in told))
        targets = ("" if it is None else f"{it}%" for it in TARGETS[name])
        print(f"{'target':<16}" + "".join(f"{it:>17} " for it in targets))
    print(json.dumps(results))


def alpaca() -> list[dict]:
    return first_of_each(rows_of("instruction_alpaca_davinci003"))


def six_applications() -> list[dict]:
    return [
        {**row, "model": None, "application": name}
        for name in SIX
        for row in first_of_each(rows_of(name))[:NUM_HELD_OUT]
    ]


def requests_of(rows: list[dict], seed: int) -> list[WorkloadRequest]:
    """As many of the rows, in another order and at other times for each seed."""
    rng = np.random.default_rng(seed)
    chosen = [rows[int(it)] for it in rng.permutation(len(rows))[:NUM_REQUESTS]]
    requests = [
        WorkloadRequest(
            request_id=f"{number:05d}",
            arrival_s=0.0,
            prompt=row["prompt"],
            prompt_tokens=max(1, row["prompt_tokens"]),
            output_tokens=row["response_tokens"],
            facts=signals_of_row(asked(row), row["prompt"]).facts,
        )
        for number, row in enumerate(chosen)
    ]
    rate = LOAD * capacity_rps(requests, replace(PRESET, limits=LIMITS))
    arrivals_s = gamma(len(requests), rate, CV, seed)
    return [replace(it, arrival_s=at) for it, at in zip(requests, arrivals_s, strict=True)]


def asked(row: dict) -> dict:
    return {it: row[it] for it in ("model", "application") if row.get(it)}


def times_of(requests: list[WorkloadRequest]) -> dict[str, np.ndarray]:
    """Seconds of each request per answer token, [num_requests], under each policy."""
    bundled = RankerSource(bundled_ranker()).scores(requests)
    found = {"fcfs": ntpot_s(requests, Contender.parse("fcfs"))}
    for bound in BOUNDS:
        for order in ("online", "ranker", "oracle"):
            contender = Contender.parse(order + bound)
            scores = bundled if order == "ranker" else None
            found[order + bound] = ntpot_s(requests, contender, scores)
        print(f"{bound or 'no bound'}: done", file=sys.stderr)
    return found


def ntpot_s(requests: list[WorkloadRequest], contender: Contender, scores=None) -> np.ndarray:
    found = np.full(len(requests), np.nan)

    def keep(times) -> None:
        took_s = times.finished_s - times.arrival_s
        found[int(times.request_id)] = took_s / times.output_tokens

    run_policy(
        requests,
        contender,
        contender.fitted(requests, scores.calibration if scores else None),
        FastEngine(LIMITS),
        PRESET.step_time,
        scores=scores.values if scores else None,
        on_finished=keep,
    )
    return found


def share_of(runs: list[dict[str, np.ndarray]], order: str, bound: str) -> list[float]:
    """Of the gain that the oracle has over first come, first served, of each age."""

    def mean(name: str, age: tuple[int, int]) -> float:
        return float(np.mean([run[name][slice(*age)].mean() for run in runs]))

    def share(age: tuple[int, int]) -> float:
        fcfs = mean("fcfs", age)
        return (fcfs - mean(order, age)) / (fcfs - mean(f"oracle{bound}", age))

    return list(map(share, AGES))


if __name__ == "__main__":
    main()
