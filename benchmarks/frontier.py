"""
What a bound on waiting costs, and what it buys: the gain kept against p99 and the longest wait.

    python benchmarks/frontier.py [--requests 8000]

Virtual time, h100-8b; traces of Azure's conversations (2023) and of Mooncake at three shares of
what the engine gets done. "Gain" is the share of what shortest first gains over first come, first
served in mean time per output token; the other columns are ratios to the latter in the same run.
Predictions are the true length times a log-normal factor (0.7), drawn at random from the
lengths, or inverted. `@30` is 30 s of overtaking, `@1.5x` the slowdown. The last line of stdout is
one JSON document; PARS_SHARED names the folder with data/traces (default ../shared).
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.simulate import simulate
from pars.prove.workload.line import START_S
from pars.prove.workload.workload import WorkloadRequest
from pars.scheduling.demand import Demand
from pars.scheduling.policies.max_slowdown import MaxSlowdown
from pars.scheduling.policies.shortest_first import ShortestFirst
from virtual_load import PRESET, Job, Load, capacity, finished

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))
TRACES = ("azure2023_conv", "mooncake_conversation")
LOADS = (0.8, 1.0, 1.2)
RATIOS = (1.25, 1.5, 2.0)
SECONDS = (10.0, 30.0, 100.0)
PREDICTORS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "lognormal 0.7": lambda rng, tokens: tokens * np.exp(rng.normal(0, 0.7, len(tokens))),
    "random": lambda rng, tokens: rng.permutation(tokens).astype(float),
    "inverted": lambda rng, tokens: float(tokens.max()) / tokens,
}
DEFAULT = "@1.5x"


@dataclass(frozen=True, slots=True)
class Case:
    trace: str
    share: float
    num_requests: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--requests", type=int, default=8000, help="Of each trace, at most.")
    options = parser.parse_args()
    if not (SHARED / "data/traces").is_dir():
        sys.exit(f"{SHARED}/data/traces is not there: set PARS_SHARED")
    cases = [Case(trace, share, options.requests) for trace in TRACES for share in LOADS]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(map(str, cases), pool.map(measured, cases), strict=True))
    for case, rows in zip(cases, results.values(), strict=True):
        print(f"\n{case.trace} at {case.share:g} of what the engine gets done")
        print(f"{'':<30}{'gain':>7}{'NTPOT':>8}{'TTFT':>7}{'e2e':>7}{'p99':>7}{'longest':>9}")
        for name, row in rows.items():
            print(
                f"{name:<30}{row['gain']:>7.0%}{row['ntpot']:>8.2f}{row['ttft']:>7.2f}"
                f"{row['e2e']:>7.2f}{row['p99_ttft']:>7.2f}{row['longest']:>9.2f}"
            )
    verdict(results)
    print(json.dumps(results))


def verdict(results: dict) -> None:
    """The targets, met or missed."""
    usual = [row[f"lognormal 0.7 {DEFAULT}"] for row in results.values()]
    twice = [row["lognormal 0.7 @2x"] for row in results.values()]
    harm = [row[f"{name} {DEFAULT}"] for row in results.values() for name in PREDICTORS]
    told = (
        ("gain kept by the default, least", min(r["gain"] for r in usual), 0.65, 1),
        ("its p99 TTFT over FCFS's, most", max(r["p99_ttft"] for r in usual), 1.3, -1),
        ("its longest wait over FCFS's, most", max(r["longest"] for r in usual), 1.35, -1),
        ("gain kept by @2x, least", min(r["gain"] for r in twice), 0.80, 1),
        ("worst mean NTPOT over FCFS's, any prediction", max(r["ntpot"] for r in harm), 1.02, -1),
        ("worst mean e2e over FCFS's, any prediction", max(r["e2e"] for r in harm), 1.02, -1),
    )
    print()
    for name, value, target, sign in told:
        is_met = sign * (value - target) >= 0
        print(f"{name:<50}{value:>6.2f}   target {target:g}: {'met' if is_met else 'MISSED'}")


def measured(case: Case) -> dict[str, dict[str, float]]:
    """Every policy on one trace at one load."""
    load = load_of(case)
    tokens = load.output_tokens.astype(float)
    fcfs = figures(finished(Job(load, ticks(load.arrivals_s))), load)
    rows: dict[str, dict[str, float]] = {}
    best = None
    for name, predict in PREDICTORS.items():
        expected = np.maximum(predict(np.random.default_rng(0), tokens), 1.0)
        cost = np.sqrt(expected * (expected + load.prompt_tokens))
        runs = {"shortest first": figures(finished(Job(load, ticks(cost / 1e3))), load)}
        best = best or runs["shortest first"]
        if name == "lognormal 0.7":
            for seconds in SECONDS:
                runs[f"@{seconds:g}"] = figures(
                    finished(Job(load, aged(load, cost, seconds))), load
                )
        for ratio in RATIOS if name == "lognormal 0.7" else (float(DEFAULT[1:-1]),):
            runs[f"@{ratio:g}x"] = figures(by_slowdown(load, cost, expected, ratio), load)
        for policy, run in runs.items():
            gain = (fcfs["ntpot"] - run["ntpot"]) / (fcfs["ntpot"] - best["ntpot"])
            rows[f"{name} {policy}"] = {"gain": gain} | {
                measure: run[measure] / fcfs[measure] for measure in fcfs
            }
    return rows


def load_of(case: Case) -> Load:
    with (SHARED / f"data/traces/{case.trace}.csv").open() as file:
        rows = list(csv.DictReader(file))[: case.num_requests]
    at, prompts, outputs = (
        np.array([float(row[name]) for row in rows])
        for name in ("arrival_s", "input_tokens", "output_tokens")
    )
    prompts, outputs = prompts.astype(int), np.maximum(outputs, 1).astype(int)
    rate = case.share * capacity(outputs, prompts)
    return Load((at - at[0]) * len(at) / ((at[-1] - at[0]) * rate), prompts, outputs)


def ticks(seconds: np.ndarray) -> np.ndarray:
    return np.round(seconds * 1e6).astype(np.int64)


def aged(load: Load, cost: np.ndarray, seconds: float) -> np.ndarray:
    policy, long_tokens = ShortestFirst(seconds), float(np.quantile(cost, 0.9))
    keys = [
        policy.place(Demand(it, it), START_S + at_s, long_tokens=long_tokens).key
        for it, at_s in zip(cost.tolist(), load.arrivals_s.tolist(), strict=True)
    ]
    return np.array(keys, dtype=np.int64)


def by_slowdown(load: Load, cost: np.ndarray, expected: np.ndarray, ratio: float) -> list:
    """The times of a run whose express lane hears what a gateway would hear."""
    lane, places, times = MaxSlowdown(ratio), {}, []

    def requests():
        for row, (at_s, prompt, output) in enumerate(
            zip(
                load.arrivals_s.tolist(),
                load.prompt_tokens.tolist(),
                load.output_tokens.tolist(),
                strict=True,
            )
        ):
            name, it = f"{row:06d}", float(cost[row])
            demand = Demand(it, float(expected[row]) + prompt)
            places[name] = place = lane.place(demand, START_S + at_s)
            yield WorkloadRequest(name, at_s, None, prompt, output), place.key

    def ended(it) -> None:
        place = places.pop(it.request_id)
        lane.ended(place, it.finished_s)
        lane.correct(place, float(it.output_tokens + it.prompt_tokens))
        times.append(it)

    simulate(
        requests(),
        FastEngine(PRESET.limits),
        PRESET.step_time,
        policy="slowdown",
        on_finished=ended,
        on_first_token=lambda name, _: lane.began(places[name]),
    )
    return times


def figures(times: list, load: Load) -> dict[str, float]:
    times = sorted(times, key=lambda it: it.request_id)
    ttft = np.array([it.first_token_s for it in times]) - load.arrivals_s
    e2e = np.array([it.finished_s for it in times]) - load.arrivals_s
    return {
        "ntpot": float((e2e / load.output_tokens).mean()),
        "ttft": float(ttft.mean()),
        "e2e": float(e2e.mean()),
        "p99_ttft": float(np.quantile(ttft, 0.99)),
        "longest": float(ttft.max()),
    }


if __name__ == "__main__":
    main()
