"""
One tenant floods an engine that several share: what the others notice, and who gets how much work.

    python benchmarks/tenants.py [--seconds 300]

Virtual time, h100-8b, lengths of Azure's conversations (2023), predictions off by a log-normal
factor of 0.7. Three of four tenants of equal weight keep within their shares; the fourth sends ten
times its own. Then four tenants of weights 4, 2, 1 and 1 flood alike, and each minute each should
have work by its weight. Then all send a little more than their shares, which shows what the order
inside tenants is worth. Orders: first come, first served; the bound alone; tenants by weight; and
VTC (Sheng et al., OSDI 2024), which counts every token inside the engine and chooses anew at each
admission. "Always first" is the best that any order can do for the three: the flood gets what they
leave. The last line of stdout is one JSON document; PARS_SHARED names the folder with data/traces
(default ../shared).
"""

import argparse
import csv
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pars.prove.engine.decoding import Sequence
from pars.prove.engine.fast_engine import FastEngine
from pars.prove.engine.simulate import simulate
from pars.prove.engine.stepping import Step
from pars.prove.report.times import RequestTimes
from pars.prove.workload.line import START_S
from pars.prove.workload.workload import WorkloadRequest
from pars.scheduling.demand import Demand
from pars.scheduling.policies.fair_tenants import FairTenants
from pars.scheduling.policies.fcfs import FCFS
from pars.scheduling.policies.max_slowdown import MaxSlowdown
from pars.scheduling.policies.policy import Place, Policy
from virtual_load import PRESET, capacity, rounded

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))
NAMES = ("a", "b", "c", "d")
SEEDS = (0, 1, 2)
WITHIN, FLOOD, BEYOND = 0.2, 2.5, 0.3  # of what the engine gets done, that one tenant sends
BY_WEIGHT = {"a": 4.0, "b": 2.0, "c": 1.0, "d": 1.0}
ALIKE = dict.fromkeys(NAMES, 1.0)
WARM_S, MINUTE_S = 60.0, 60.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one sends, as a share of what the engine gets done."""

    name: str
    load: float


def lengths() -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the trace's prompts and of its answers, each [num_requests]."""
    with (SHARED / "data/traces/azure2023_conv.csv").open() as file:
        rows = list(csv.DictReader(file))[:8000]
    prompts, outputs = (
        np.array([int(float(row[name])) for row in rows])
        for name in ("input_tokens", "output_tokens")
    )
    return prompts, np.maximum(outputs, 1)


def sent(tenants: list[Tenant], seconds: float, seed: int) -> list[tuple[str, WorkloadRequest]]:
    """(tenant, request) by arrival; Poisson arrivals, lengths drawn from the trace."""
    prompts, outputs = lengths()
    rate = capacity(outputs, prompts)
    rng = np.random.default_rng(seed)
    rows = []
    for tenant in tenants:
        at_s = rng.exponential(1 / (tenant.load * rate), int(2 * tenant.load * rate * seconds) + 9)
        at_s = np.cumsum(at_s)
        chosen = rng.integers(len(outputs), size=len(at_s))
        rows += [
            (at, tenant.name, int(prompts[row]), int(outputs[row]))
            for at, row in zip(at_s.tolist(), chosen.tolist(), strict=True)
            if at < seconds
        ]
    return [
        (name, WorkloadRequest(f"{name}{number:06d}", at, None, prompt, output))
        for number, (at, name, prompt, output) in enumerate(sorted(rows))
    ]


class VTC(FastEngine):
    """
    The engine with Virtual Token Counters (Sheng et al., OSDI 2024, algorithm 2) as its queue.

    A tenant's counter grows by each token computed for it, by its weight; the next request is that
    of the tenant whose counter is least. A token of a prompt and one of an answer count alike, as
    in the work that all orders here are measured by.
    """

    def __init__(self, weights: dict[str, float]) -> None:
        super().__init__(PRESET.limits)
        self._weights = weights
        self._counters = dict.fromkeys(weights, 0.0)
        self._queues: dict[str, deque[Sequence]] = {name: deque() for name in weights}
        self._num_running: Counter[str] = Counter()
        self._last_left = next(iter(weights))

    def step(self) -> Step:
        self._count(1)
        return super().step()

    def skip(self, num_steps: int) -> None:
        self._count(num_steps)
        super().skip(num_steps)

    def _count(self, num_steps: int) -> None:
        for name, num in self._num_running.items():
            self._counters[name] += num * num_steps / self._weights[name]

    def _enqueue(self, sequence: Sequence, *, at_front: bool = False) -> None:
        name = sequence.request_id[0]
        queue = self._queues[name]
        if not queue and not at_front:
            known = [self._counters[it] for it, others in self._queues.items() if others]
            least = min(known, default=self._counters[self._last_left])
            self._counters[name] = max(self._counters[name], least)
        queue.appendleft(sequence) if at_front else queue.append(sequence)

    def _head(self, budget: int) -> Sequence | None:
        if len(self._running) >= self.limits.max_num_seqs or budget <= 0:
            return None
        waiting = [name for name, queue in self._queues.items() if queue]
        if not waiting:
            return None
        sequence = self._queues[min(waiting, key=lambda it: self._counters[it])][0]
        fits = self._num_blocks(0, sequence.num_tokens) <= self._num_free_blocks
        return sequence if fits else None

    def _admit(self, budget: int) -> list[Sequence]:
        admitted = []
        while (sequence := self._head(budget)) is not None:
            name = sequence.request_id[0]
            self._queues[name].popleft()
            self._last_left = name
            self._counters[name] += sequence.num_tokens / self._weights[name]
            self._num_running[name] += 1
            budget -= self._start(sequence, budget)
            admitted.append(sequence)
        return admitted

    def _release(self, sequence: Sequence) -> None:
        self._num_running[sequence.request_id[0]] -= 1
        super()._release(sequence)


def run(
    rows: list[tuple[str, WorkloadRequest]],
    policies: list[Policy],
    engine: FastEngine,
    *,
    gateway_of: Callable[[int, str], int] = lambda number, tenant: 0,
    bias: dict[str, float] | None = None,
) -> list[RequestTimes]:
    """
    The times of all, as they end.

    Args:
        policies: One for each gateway before the engine; `gateway_of` says by which one goes.
        bias: By tenant, what all that is predicted for it is times too long.
    """
    rng, places = np.random.default_rng(1), {}
    times: list[RequestTimes] = []

    def keyed() -> Iterator[tuple[WorkloadRequest, int]]:
        for number, (tenant, request) in enumerate(rows):
            expected = max(1.0, request.output_tokens * float(np.exp(rng.normal(0, 0.7))))
            expected *= (bias or {}).get(tenant, 1.0)
            demand = Demand(
                (expected * (expected + request.prompt_tokens)) ** 0.5,
                expected + request.prompt_tokens,
            )
            policy = policies[gateway_of(number, tenant)].for_tenant(tenant)
            place = policy.place(demand, START_S + request.arrival_s)
            places[request.request_id] = policy, place
            yield request, place.key

    def began(name: str, _: float) -> None:
        policy, place = places[name]
        policy.began(place)

    def ended(it: RequestTimes) -> None:
        policy, place = places.pop(it.request_id)
        policy.ended(place, it.finished_s or 0.0)
        policy.correct(place, float(it.output_tokens + it.prompt_tokens), it.output_tokens)
        times.append(it)

    simulate(
        keyed(),
        engine,
        PRESET.step_time,
        policy="tenants",
        on_finished=ended,
        on_first_token=began,
    )
    return times


def figures(times: list[RequestTimes], names: set[str], until_s: float) -> dict[str, float]:
    """Of the requests of some tenants that came while the flood was on, after the first minute."""
    chosen = [it for it in times if it.request_id[0] in names and WARM_S <= it.arrival_s < until_s]
    wait = np.array([it.first_token_s - it.arrival_s for it in chosen])
    e2e = np.array([it.finished_s - it.arrival_s for it in chosen])
    tokens = np.array([it.output_tokens for it in chosen])
    return {
        "p99_ttft_s": float(np.quantile(wait, 0.99)),
        "p99_e2e_s": float(np.quantile(e2e, 0.99)),
        "p99_ntpot_s": float(np.quantile(e2e / tokens, 0.99)),
        "ntpot_s": float((e2e / tokens).mean()),
        "longest_ttft_s": float(wait.max()),
    }


def work_by_minute(times: list[RequestTimes], until_s: float) -> list[dict[str, float]]:
    """
    The work that each tenant got, minute by minute while all have requests waiting.

    A prompt counts when it was computed, an answer's tokens evenly from its first to its last.
    """
    minutes = [dict.fromkeys(NAMES, 0.0) for _ in range(int((until_s - WARM_S) // MINUTE_S))]
    for it in times:
        for at, minute in enumerate(minutes):
            begin_s = WARM_S + at * MINUTE_S
            end_s = begin_s + MINUTE_S
            minute[it.request_id[0]] += it.prompt_tokens * (begin_s <= it.first_token_s < end_s)
            both_s = min(end_s, it.finished_s) - max(begin_s, it.first_token_s)
            if both_s > 0 and it.finished_s > it.first_token_s:
                part = both_s / (it.finished_s - it.first_token_s)
                minute[it.request_id[0]] += part * it.output_tokens
    return minutes


def unfairness(minutes: list[dict[str, float]], weights: dict[str, float]) -> list[float]:
    """By how much each tenant's work in each minute is off its weight: 0.05 is 5%."""
    whole = sum(weights.values())
    return [
        abs(minute[name] / sum(minute.values()) / (weights[name] / whole) - 1)
        for minute in minutes
        for name in weights
    ]


class AlwaysFirst(FCFS):
    """The flood behind everybody else, whenever it came."""

    class Last(FCFS):
        def place(self, demand: Demand, arrival_s: float, **known: object) -> Place:
            return super().place(demand, arrival_s + 1e6)

    def for_tenant(self, tenant: str | None) -> Policy:
        return self.Last() if tenant == "d" else self


BOUND = MaxSlowdown().suffix


def order_of(name: str, weights: dict[str, float]) -> tuple[list[Policy], FastEngine]:
    engine = FastEngine(PRESET.limits)
    if name == "VTC":
        return [FCFS()], VTC(weights)
    policies: dict[str, Callable[[], Policy]] = {
        "always first": AlwaysFirst,
        "fcfs": FCFS,
        f"{BOUND}, no tenants": MaxSlowdown,
        "tenants, fcfs inside": lambda: FairTenants(weights, MaxSlowdown(1.0)),
        f"tenants, {BOUND} inside": lambda: FairTenants(weights, MaxSlowdown()),
    }
    return [policies[name]()], engine


ORDERS = (
    "fcfs",
    f"{BOUND}, no tenants",
    "tenants, fcfs inside",
    f"tenants, {BOUND} inside",
    "VTC",
)
OURS = ORDERS[3]
GOOD = set("abc")


def flood(case: tuple[str, int, float]) -> dict[str, float]:
    """The three within their shares, and the mean of the one that floods."""
    name, seed, seconds = case
    tenants = [Tenant(it, WITHIN) for it in "abc"]
    if name != "alone":
        tenants.append(Tenant("d", FLOOD))
    rows = sent(tenants, seconds, seed)
    times = run(rows, *order_of("fcfs" if name == "alone" else name, ALIKE))
    found = figures(times, GOOD, seconds)
    if name != "alone":
        found["flood_ntpot_s"] = figures(times, {"d"}, seconds)["ntpot_s"]
    return found


def by_weight(case: tuple[str, int, float]) -> dict[str, float]:
    """All flood, by their weights: how far off a minute's work is, and everybody's figures."""
    name, seed, seconds = case
    whole = sum(BY_WEIGHT.values())
    rows = sent([Tenant(it, FLOOD * w / whole) for it, w in BY_WEIGHT.items()], seconds, seed)
    times = run(rows, *order_of(name, BY_WEIGHT))
    off = unfairness(work_by_minute(times, seconds), BY_WEIGHT)
    return {"most_off": max(off), "mean_off": float(np.mean(off))} | figures(
        times, set(NAMES), seconds
    )


def beyond(case: tuple[str, int, float]) -> dict[str, float]:
    """All a little beyond their shares."""
    name, seed, seconds = case
    rows = sent([Tenant(it, BEYOND) for it in NAMES], seconds, seed)
    return figures(run(rows, *order_of(name, ALIKE)), set(NAMES), seconds)


def odd(case: tuple[str, float]) -> dict[str, float]:
    """Ours, where something is not as it should be: predictions, gateways, a flood that turns."""
    name, seconds = case
    rows = sent([*(Tenant(it, WITHIN) for it in "abc"), Tenant("d", FLOOD)], seconds, SEEDS[0])
    if name == "the flood's answers are long, then short":
        rows = [(who, _turned(it, seconds) if who == "d" else it) for who, it in rows]
    known = {
        "the flood's answers are predicted a fifth as long": {"bias": {"d": 0.2}},
        "the flood's answers are predicted five times as long": {"bias": {"d": 5.0}},
        "two gateways, half of the requests each": {"gateway_of": lambda number, who: number % 2},
        "two gateways, the flood has its own": {"gateway_of": lambda number, who: who == "d"},
        "two gateways, one has a tenth of the requests": {
            "gateway_of": lambda number, who: number % 10 == 0
        },
    }
    num_gateways = 2 if name.startswith("two") else 1
    policies: list[Policy] = [FairTenants(ALIKE, MaxSlowdown()) for _ in range(num_gateways)]
    times = run(rows, policies, FastEngine(PRESET.limits), **known.get(name, {}))
    return figures(times, GOOD, seconds)


ODD = (
    "the flood's answers are predicted a fifth as long",
    "the flood's answers are predicted five times as long",
    "the flood's answers are long, then short",
    "two gateways, half of the requests each",
    "two gateways, the flood has its own",
    "two gateways, one has a tenth of the requests",
)


def _turned(request: WorkloadRequest, seconds: float) -> WorkloadRequest:
    output = 600 if request.arrival_s < seconds / 3 else 10
    return replace(request, prompt_tokens=100, output_tokens=output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seconds", type=float, default=300.0, help="That everybody sends.")
    seconds = parser.parse_args().seconds
    if not (SHARED / "data/traces").is_dir():
        sys.exit(f"{SHARED}/data/traces is not there: set PARS_SHARED")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        floods = measured(pool, flood, ("alone", "always first", *ORDERS), seconds)
        weights = measured(pool, by_weight, ORDERS, seconds)
        rest = measured(pool, beyond, ORDERS, seconds)
        oddities = dict(zip(ODD, pool.map(odd, [(it, seconds) for it in ODD]), strict=True))
    columns = ("p99_ttft_s", "p99_ntpot_s", "p99_e2e_s", "longest_ttft_s")
    show("A flood of ten times a share: the three others", floods, (*columns, "flood_ntpot_s"))
    show("The same with ours, where something is amiss", oddities, columns)
    show(
        "All flood: by how much a minute's work is off its weight",
        weights,
        ("most_off", "mean_off", "ntpot_s"),
    )
    show("All a little beyond their shares", rest, ("ntpot_s", "p99_ttft_s"))
    verdict(floods, weights)
    print(json.dumps(rounded({"flood": floods, "odd": oddities, "weights": weights, "all": rest})))


def measured(
    pool: ProcessPoolExecutor,
    measure: Callable[[tuple[str, int, float]], dict[str, float]],
    names: tuple[str, ...],
    seconds: float,
) -> dict[str, dict[str, float]]:
    """By order, the mean over seeds; of what is off, the most."""
    cases = [(name, seed, seconds) for name in names for seed in SEEDS]
    found = list(zip(cases, pool.map(measure, cases), strict=True))
    rows = {}
    for name in names:
        runs = [it for case, it in found if case[0] == name]
        rows[name] = {
            key: max(it[key] for it in runs)
            if key == "most_off"
            else float(np.mean([it[key] for it in runs]))
            for key in runs[0]
        }
    return rows


def show(title: str, rows: dict[str, dict[str, float]], columns: tuple[str, ...]) -> None:
    print(f"\n{title}\n{'':<54}" + "".join(f"{it:>16}" for it in columns))
    for name, row in rows.items():
        cells = (f"{row[it]:>16.3g}" if it in row else f"{'':>16}" for it in columns)
        print(f"{name:<54}" + "".join(cells))


def verdict(floods: dict[str, dict[str, float]], weights: dict[str, dict[str, float]]) -> None:
    """The targets, met or missed."""
    print()
    for reference in ("always first", "alone"):
        for measure in ("p99_ttft_s", "p99_ntpot_s", "p99_e2e_s"):
            ratio = floods[OURS][measure] / floods[reference][measure]
            vtc = floods["VTC"][measure] / floods[reference][measure]
            met = "met" if ratio <= 1.2 else "MISSED"
            told = f"{measure[:-2]} of the others, of that {reference}"
            print(f"{told:<54}{ratio:>7.2f}, VTC {vtc:.2f}; target 1.2: {met}")
    off = weights[OURS]["most_off"]
    met = "met" if off <= 0.05 else "MISSED"
    told = "work of a minute off its weight, at most"
    print(f"{told:<54}{off:>7.1%}, VTC {weights['VTC']['most_off']:.1%}; target 5%: {met}")


if __name__ == "__main__":
    main()
