"""
The experiment of PARS on one log: three rankers trained alike, their tau-b, and their latency.

    found = experiment(data, Setting())
    found.taus["pairwise"], found.points[0].measures["mean"]

Pairwise is PARS's margin loss on pairs at least 0.2 apart, pointwise squared error on the log
length, listwise listMLE; all with the same network, prompts and steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pars.prove.engine.step_time import EnginePreset
from pars.prove.leaderboard.records import Data
from pars.prove.report.sweep import capacity_rps
from pars.prove.report.times import RequestTimes
from pars.prove.rivals.network import LITE, TrainedNetwork
from pars.prove.rivals.predictor import Answered, FloatArray
from pars.prove.simulation import simulate
from pars.prove.workload.workload import Workload
from pars.ranking.intervals import Estimate, bootstrap, bootstrap_difference
from pars.ranking.order_metrics import PairSums, pair_sums

OBJECTIVES = {"pairwise": "pairwise-margin", "pointwise": "pointwise", "listwise": "listmle"}
PARS = "pairwise"
POLICIES = ("fcfs", "pointwise", "listwise", "pairwise", "oracle")
NUM_BLOCKS, NUM_RESAMPLES = 100, 1000
P90 = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """
    How it is run.

    Attributes:
        loads: Poisson arrivals, as shares of what the engine can do.
        seeds: Trainings of each objective; tau-b is their mean, the queue goes by the first.
        slots: Requests that the engine answers at once.
    """

    network: str = LITE
    seeds: int = 3
    loads: tuple[float, ...] = (0.6, 0.8, 1.0, 1.2, 1.5)
    engine: str = "h100-8b"
    slots: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tau:
    """An objective's tau-b: the mean over trainings, and each."""

    objective: str
    tau_b: Estimate
    by_seed: tuple[float, ...]
    pairwise_less: Estimate  # PARS's tau-b less this one; nan of PARS's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """
    Time per output token (NTPOT, seconds) of one policy under one arrival process.

    Attributes:
        rate: Requests a second; None: all at once.
        times_lower: How many times lower its mean is than that of first come, first served.
    """

    policy: str
    arrivals: str
    load: float | None
    rate: float | None
    mean: Estimate
    p90: Estimate
    times_lower: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of one log."""

    name: str
    num_train: int
    num_test: int
    taus: Mapping[str, Tau]
    points: Sequence[Point]
    scores: Mapping[str, FloatArray]  # of the first training, [num_test]


def experiment(data: Data, setting: Setting, say: Callable[[str], None] = lambda _: None) -> Found:
    """
    Train, order, and run the queue.

    Raises:
        ParsError: the network or the engine is not what it must be.
    """
    sums: dict[str, list[PairSums]] = {name: [] for name in OBJECTIVES}
    scores: dict[str, FloatArray] = {}
    for name, objective in OBJECTIVES.items():
        for seed in range(setting.seeds):
            say(f"{data.name}: {name}, training {seed + 1} of {setting.seeds}")
            options = {"threshold": 0.2} if name == PARS else {}
            ranker = TrainedNetwork(objective, setting.network, seed=42 + seed, **options)
            ranker.fit(data.train)
            told = ranker.predict(data.test).scores
            scores.setdefault(name, told)
            sums[name].append(_sums(told, data.test))
    return Found(
        name=data.name,
        num_train=len(data.train),
        num_test=len(data.test),
        taus={name: _tau(name, sums, data.test) for name in OBJECTIVES},
        points=_points(data, scores, setting, say),
        scores=scores,
    )


def workload_of(requests: Sequence[Answered], rate: float | None, seed: int) -> Workload:
    """The held-out requests as they arrive: Poisson at a rate, or all at once."""
    return Workload.of(
        answer_tokens=[max(1, round(it.tokens)) for it in requests],
        prompt_tokens=[it.prompt_tokens for it in requests],
        prompts=[it.prompt for it in requests],
        rate=rate,
        seed=seed,
    )


def _sums(scores: FloatArray, requests: Sequence[Answered]) -> PairSums:
    return pair_sums(
        scores,
        [it.tokens for it in requests],
        strata=[it.model for it in requests],
        is_censored=[it.is_censored for it in requests],
    )


def _tau(name: str, sums: Mapping[str, list[PairSums]], requests: Sequence[Answered]) -> Tau:
    clusters = [it.conversation for it in requests]
    own = tuple(it.tau_b() for it in sums[name])
    first = bootstrap(sums[name][0], "tau_b", clusters=clusters)
    mean = float(np.mean(own))
    shift = mean - first.value  # the interval of one training, around the mean of all
    undefined = Estimate(float("nan"), float("nan"), float("nan"))
    less = (
        undefined
        if name == PARS
        else bootstrap_difference(sums[PARS], sums[name], "tau_b", clusters=clusters)
    )
    return Tau(
        objective=OBJECTIVES[name],
        tau_b=Estimate(mean, first.low + shift, first.high + shift),
        by_seed=own,
        pairwise_less=less,
    )


def _points(
    data: Data, scores: Mapping[str, FloatArray], setting: Setting, say: Callable[[str], None]
) -> list[Point]:
    preset = EnginePreset.named(setting.engine)
    preset = replace(preset, limits=replace(preset.limits, max_num_seqs=setting.slots))
    burst = workload_of(data.test, None, setting.seed)
    poisson = workload_of(data.test, 1.0, setting.seed)
    capacity = capacity_rps(burst.requests, preset)
    found: list[Point] = []
    for load in (None, *setting.loads):
        say(f"{data.name}: {'a burst' if load is None else f'{load:g} of capacity'}")
        rate = None if load is None else load * capacity
        result = simulate(
            burst if rate is None else poisson,
            POLICIES,
            scores=scores,
            rates=[] if rate is None else [rate],
            engine=preset,
        )
        times = {policy: _ntpot_s(result.requests, policy) for policy in POLICIES}
        for policy in POLICIES:
            mean, p90, lower = _measured(times[policy], times["fcfs"])
            found.append(
                Point(
                    policy=policy,
                    arrivals="burst" if load is None else "poisson",
                    load=load,
                    rate=rate,
                    mean=mean,
                    p90=p90,
                    times_lower=lower,
                )
            )
    return found


def _ntpot_s(times: Sequence[RequestTimes], policy: str) -> FloatArray:
    """Of all requests, in the order of their arrival."""
    own = sorted(
        (int(it.request_id), (it.finished_s - it.arrival_s) / it.output_tokens)
        for it in times
        if it.policy == policy and it.finished_s is not None
    )
    return np.array([seconds for _, seconds in own])


def _measured(own: FloatArray, base: FloatArray) -> tuple[Estimate, Estimate, Estimate]:
    """
    Mean, p90, and base mean over own mean, with 95% intervals.

    Runs of neighbouring requests are drawn together, the same for both, since they share a queue.
    """
    blocks = np.array_split(np.arange(len(own)), min(NUM_BLOCKS, len(own)))
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(NUM_RESAMPLES):
        rows = np.concatenate([blocks[it] for it in rng.integers(len(blocks), size=len(blocks))])
        mean = own[rows].mean()
        draws.append((mean, np.percentile(own[rows], P90), base[rows].mean() / mean))
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)
    values = (own.mean(), np.percentile(own, P90), base.mean() / own.mean())
    one, two, three = (
        Estimate(float(value), float(a), float(b))
        for value, a, b in zip(values, low, high, strict=True)
    )
    return one, two, three
