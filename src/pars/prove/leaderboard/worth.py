"""
What a predictor's order is worth in a queue: its share of the oracle's gain over first come, first
served, at several loads and under several policies, in virtual time.

    found = worth(test, {"ltr": scores}, Queue())
    found["ltr"]["@1.33x"][0.9]                 # an Estimate

A share is (fcfs - predictor) / (fcfs - oracle) of the mean time per output token (NTPOT), the
oracle under the same policy. Its interval is from resampled runs of neighbouring requests, since
those share a queue.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pars.prove.engine.step_time import EnginePreset
from pars.prove.report.sweep import capacity_rps
from pars.prove.report.times import RequestTimes
from pars.prove.rivals.predictor import Answered, FloatArray
from pars.prove.simulation import simulate
from pars.prove.workload.workload import Workload
from pars.ranking.intervals import Estimate
from pars.scheduling.policies.max_slowdown import DEFAULT_MAX_SLOWDOWN

LOADS = (0.8, 1.0, 1.2)
BOUNDS = ("", f"@{DEFAULT_MAX_SLOWDOWN:g}x", "@30")
NUM_BLOCKS, NUM_RESAMPLES = 100, 1000
ORACLE, BASE = "oracle", "fcfs"

Shares = dict[str, dict[float, Estimate]]  # by bound, then load


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """
    The queue that is simulated.

    Attributes:
        loads: Of the engine's capacity on these requests.
        bounds: How a policy is spelled behind its name: "" has none.
        slots: Requests that the engine answers at once: few, so that some hundred requests wait.
        seed: Of the Poisson arrivals.
    """

    loads: tuple[float, ...] = LOADS
    bounds: tuple[str, ...] = BOUNDS
    engine: str = "h100-8b"
    slots: int = 32
    seed: int = 0


def worth(
    requests: Sequence[Answered],
    scores: Mapping[str, FloatArray],
    queue: Queue,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Shares]:
    """
    Of each predictor, its share by bound and load.

    Args:
        scores: By predictor, [num_requests]; names are those of `pars.simulate`'s `scores`.

    Raises:
        ParsError: the engine or a bound is not known.
    """
    preset = EnginePreset.named(queue.engine)
    preset = replace(preset, limits=replace(preset.limits, max_num_seqs=queue.slots))
    workload = Workload.of(
        answer_tokens=[max(1, round(it.tokens)) for it in requests],
        prompt_tokens=[it.prompt_tokens for it in requests],
        prompts=[it.prompt for it in requests],
        rate=1.0,
        seed=queue.seed,
    )
    capacity = capacity_rps(workload.requests, preset)
    labels = {name: f"p{number}" for number, name in enumerate(scores)}
    orders = [*labels.values(), ORACLE]
    found: dict[str, Shares] = {name: {bound: {} for bound in queue.bounds} for name in scores}
    for load in queue.loads:
        say(f"a queue at {load:g} of capacity")
        policies = [BASE, *(order + bound for bound in queue.bounds for order in orders)]
        result = simulate(
            workload,
            policies,
            scores={labels[name]: it for name, it in scores.items()},
            rates=[load * capacity],
            engine=preset,
        )
        times = _ntpot_s(result.requests, policies, len(requests))
        for name, label in labels.items():
            for bound in queue.bounds:
                three = (times[it] for it in (BASE, label + bound, ORACLE + bound))
                found[name][bound][load] = share_of(*three)
    return found


def _ntpot_s(
    times: Sequence[RequestTimes], policies: Sequence[str], count: int
) -> dict[str, FloatArray]:
    """Seconds a token of each request, [num_requests], by policy."""
    found = {policy: np.full(count, np.nan) for policy in policies}
    for it in times:
        if it.finished_s is not None:
            took_s = it.finished_s - it.arrival_s
            found[it.policy][int(it.request_id)] = took_s / it.output_tokens
    return found


def share_of(base: FloatArray, policy: FloatArray, best: FloatArray) -> Estimate:
    """(base - policy) / (base - best) of the means, and its interval; nan where no gain is."""
    rows = np.stack([base, policy, best], axis=1)
    rows = rows[~np.isnan(rows).any(axis=1)]
    blocks = np.stack([it.sum(axis=0) for it in np.array_split(rows, min(NUM_BLOCKS, len(rows)))])
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(blocks), size=(NUM_RESAMPLES, len(blocks)))
    values = [_share(*sums) for sums in blocks[drawn].sum(axis=1)]
    low, high = (np.nan, np.nan) if np.isnan(values).any() else np.percentile(values, [2.5, 97.5])
    return Estimate(_share(*blocks.sum(axis=0)), float(low), float(high))


def _share(base: float, policy: float, best: float) -> float:
    return float((base - policy) / (base - best)) if base > best else float("nan")
