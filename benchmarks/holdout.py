"""
What a holdout tells beside the truth: of whole windows of time, and of requests one by one.

    python benchmarks/holdout.py [--windows 40] [--draws 4]

Virtual time, h100-8b, the default bound; lengths of two logs, drawn again and again, in bursts
(gamma intervals) whose queues come and go; predictions are the true length times a log-normal
factor (0.7). "True" is a run in order beside a run first come, first served. "Requests": one of
twenty stands first come, first served, and the others are held against it. "Windows": whole windows
do, one of four, as `pars.outcomes.holdout` draws and compares them, over some draws.
The last line of stdout is one JSON; PARS_SHARED names the folder with data/ (default ../shared).
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import fmean

import numpy as np

from frontier import by_policy, figures
from frontier_loads import BURSTS_CV, CHATS, SHARED, TRACES, Case, load_of
from pars.outcomes.holdout import FCFS, ORDERED, Schedule
from pars.outcomes.switchback import NTPOT, WAIT, Window, effect_of
from pars.prove.workload.arrivals import gamma
from pars.scheduling.demand import Demand
from pars.scheduling.policies.max_slowdown import MaxSlowdown
from pars.scheduling.policies.policy import Place
from virtual_load import Load, capacity, rounded

WINDOW_S, SHARE = 150.0, 0.25
LOGS = ("azure2023_conv", CHATS)
LOADS = (0.8, 0.9)
EACH = 0.05  # of requests, held out one by one
Told = dict[str, float]


class HeldOut(MaxSlowdown):
    """The default, under which some requests are first come, first served: those at their turn."""

    def __init__(self, is_held_out: np.ndarray) -> None:
        super().__init__()
        self._turns = iter(is_held_out.tolist())

    def place(self, demand: Demand, arrival_s: float, **kwargs) -> Place:
        return super().place(demand, arrival_s, is_ordered=not next(self._turns), **kwargs)


def stationary(case: Case, seconds: float) -> Load:
    """That log's lengths, drawn anew, at that share of what the engine gets done, so long."""
    lengths, _ = load_of(case)
    rng = np.random.default_rng(1)
    rate = case.share * capacity(lengths.output_tokens, lengths.prompt_tokens)
    rows = rng.integers(len(lengths.output_tokens), size=round(seconds * rate))
    at_s = np.array(gamma(len(rows), rate, BURSTS_CV, 1))
    return Load(at_s, lengths.prompt_tokens[rows], lengths.output_tokens[rows])


def by_request(load: Load, run: Callable, is_held_out: np.ndarray) -> dict[str, np.ndarray]:
    """Each request's time per token, and its wait."""
    times = sorted(run(HeldOut(is_held_out)), key=lambda it: it.request_id)
    ends_s = np.array([it.finished_s for it in times]) - load.arrivals_s
    waits_s = np.array([it.first_token_s for it in times]) - load.arrivals_s
    return {NTPOT: ends_s / load.output_tokens, WAIT: waits_s}


def one_by_one(load: Load, run: Callable) -> Told:
    """What requests tell that are held out among ordered ones."""
    held = np.random.default_rng(0).random(len(load.arrivals_s)) < EACH
    found = by_request(load, run, held)
    return {name: 1 - float(it[~held].mean() / it[held].mean()) for name, it in found.items()}


def by_windows(load: Load, run: Callable, draw: int) -> dict[str, list[float]]:
    """What windows tell: the gain, and its interval's ends."""
    schedule = Schedule(SHARE, WINDOW_S)
    at_s = load.arrivals_s + 1000 * draw * schedule.num_windows * schedule.window_s
    arms = np.array([schedule.arm(it) for it in at_s.tolist()])
    blocks = np.array([schedule.block(it) for it in at_s.tolist()])
    counts = np.array([schedule.is_settled(it) for it in at_s.tolist()])
    found = by_request(load, run, arms == FCFS)
    windows = []
    for block in np.unique(blocks).tolist():
        for arm in (FCFS, ORDERED):
            here = (blocks == block) & (arms == arm) & counts
            sums = {name: (float(it[here].sum()), int(here.sum())) for name, it in found.items()}
            windows.append(Window(block, arm, 0.0, sums))
    effects = {name: effect_of(windows, name, FCFS, ORDERED) for name in found}
    return {name: [it.ratio, it.low, it.high] for name, it in effects.items() if it is not None}


def measured(case: Case, num_windows: int, num_draws: int) -> dict[str, Told]:
    """The truth, and what either holdout tells of it."""
    load = stationary(case, num_windows * WINDOW_S)
    tokens = load.output_tokens.astype(float)
    factors = np.exp(np.random.default_rng(0).normal(0, 0.7, len(tokens)))
    expected = np.maximum(tokens * factors, 1.0)
    work = expected + load.prompt_tokens
    costs = np.sqrt(expected * work)
    demands = [Demand(*it) for it in zip(costs.tolist(), work.tolist(), strict=True)]

    def run(policy: MaxSlowdown) -> list:
        return by_policy(load, demands, policy)

    fcfs, ordered = (figures(run(policy), load) for policy in (MaxSlowdown(1.0), MaxSlowdown()))
    true = {NTPOT: 1 - ordered["ntpot"] / fcfs["ntpot"], WAIT: 1 - ordered["ttft"] / fcfs["ttft"]}
    draws = [by_windows(load, run, draw) for draw in range(num_draws)]
    told = {name: fmean(it[name][0] for it in draws) for name in true}
    holds = {name: fmean(it[name][1] <= true[name] <= it[name][2] for it in draws) for name in true}
    waits = {"mean": fcfs["ttft"], "p99": fcfs["p99_ttft"]}
    own = {"true": true, "requests": one_by_one(load, run), "windows": told}
    return own | {"holds": holds, "fcfs_wait_s": waits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--windows", type=int, default=40, help="Of a run.")
    parser.add_argument("--draws", type=int, default=4, help="Of the windows held out.")
    options = parser.parse_args()
    if not (SHARED / "data/traces").is_dir():
        sys.exit(f"{SHARED}/data/traces is not there: set PARS_SHARED")
    cases = [Case(trace, share, 8000) for trace in LOGS for share in LOADS]
    run = partial(measured, num_windows=options.windows, num_draws=options.draws)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(run, cases))
    print("By how much order shortens the mean: in truth, and told by what is held out")
    print(f"{'':<32}{'time per token':>24}{'wait':>27}")
    print(
        f"{'':<32}"
        + f"{'true':>9}{'windows':>9}{'requests':>9}" * 2
        + "  fcfs wait, mean and p99, s"
    )
    for case, row in zip(cases, rows, strict=True):
        label = f"{TRACES[case.trace]} at {case.share:g}"
        shown = (row[by][name] for name in (NTPOT, WAIT) for by in ("true", "windows", "requests"))
        waits = row["fcfs_wait_s"]
        told = f"{waits['mean']:>8.1f}{waits['p99']:>7.1f}"
        print(f"{label:<32}" + "".join(f"{it:>9.1%}" for it in shown) + told)
    print("\nmean distance from the truth, in points")
    for by in ("windows", "requests"):
        off = [
            fmean(abs(row[by][name] - row["true"][name]) for row in rows) for name in (NTPOT, WAIT)
        ]
        print(f"{by:<12}time per token {100 * off[0]:.1f}, wait {100 * off[1]:.1f}")
    held = [fmean(row["holds"][name] for row in rows) for name in (NTPOT, WAIT)]
    print(f"the windows' 95% intervals hold the truth: {held[0]:.0%} and {held[1]:.0%}")
    names = [f"{it.trace} at {it.share:g}" for it in cases]
    print(json.dumps(rounded(dict(zip(names, rows, strict=True)))))


if __name__ == "__main__":
    main()
