"""
What a policy's order was worth beside first come, first served, and beside perfect knowledge.

    found = compared(result, "ranker@30")        # at the highest load
    print(found.speedup, found.share)            # 2.2, 0.71 [0.64, 0.77]

Policies are compared on the same requests: those that ended well under each of them, in the same
repeat. The share is (fcfs - policy) / (fcfs - oracle) of the means. Its interval is a percentile
bootstrap over repeats and requests at once (Owen 2007, "The pigeonhole bootstrap",
doi:10.1214/07-AOAS122): resampling one of them only would call a noisy machine certain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pars.prove.report.latency import columns, ended_well
from pars.prove.report.times import RequestTimes, Result
from pars.ranking.intervals import Estimate

FloatArray = NDArray[np.float64]

BASELINE, BEST = "fcfs", "oracle"
NUM_RESAMPLES = 1000
MAX_GROUPS = 2000  # of requests, for the bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """
    One policy beside fcfs and the oracle, over the requests that ended well under all of them.

    Attributes:
        best_mean, share: None where no oracle ran; the share is nan where fcfs was no worse.
    """

    policy: str
    rate: float | None
    measure: str
    num_requests: int
    base_mean: float
    policy_mean: float
    best_mean: float | None
    share: Estimate | None

    @property
    def speedup(self) -> float:
        return self.base_mean / self.policy_mean if self.policy_mean > 0 else float("inf")


def best_of(policies: Sequence[str]) -> str | None:
    """The oracle to compare with: without aging if it ran, else the first."""
    found = [policy for policy in policies if policy.partition("@")[0] == BEST]
    return BEST if BEST in found else next(iter(found), None)


def compared(
    result: Result,
    policy: str,
    *,
    rate: float | None = None,
    measure: str = "ntpot_s",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Gain | None:
    """
    What `policy` made of fcfs's mean at one load; None if they have no request in common.

    Args:
        measure: One of `latency.columns`.
    """
    best = best_of(result.policies())
    names = [BASELINE, policy] + ([best] if best else [])
    values = _paired(result.requests, names, rate, measure)
    known: NDArray[np.bool_] = np.logical_not(np.isnan(values).any(axis=0))
    if not known.any():
        return None
    values = np.where(known, values, 0.0)
    means = (values.sum(axis=(1, 2)) / known.sum()).tolist()
    share = None
    if best is not None:
        share = Estimate(_share(*means), *_interval(values, known, num_resamples, seed))
    return Gain(
        policy=policy,
        rate=rate,
        measure=measure,
        num_requests=int(known.sum()),
        base_mean=means[0],
        policy_mean=means[1],
        best_mean=means[2] if best else None,
        share=share,
    )


def _paired(
    requests: Sequence[RequestTimes], policies: Sequence[str], rate: float | None, measure: str
) -> FloatArray:
    """[num_policies, num_repeats, num_requests], nan where a request did not end well."""
    good = [r for r in requests if r.policy in policies and r.rate == rate and ended_well(r)]
    rows = {repeat: i for i, repeat in enumerate(sorted({r.repeat for r in good}))}
    places = {name: i for i, name in enumerate(dict.fromkeys(r.request_id for r in good))}
    table = np.full((len(policies), len(rows), len(places)), np.nan)
    for request, value in zip(good, columns(good)[measure].tolist(), strict=True):
        for index, policy in enumerate(policies):  # a policy may stand twice: oracle beside itself
            if policy == request.policy:
                table[index, rows[request.repeat], places[request.request_id]] = value
    return table


def _share(base: float, policy: float, best: float) -> float:
    return (base - policy) / (base - best) if base > best else float("nan")


def _interval(
    values: FloatArray, known: NDArray[np.bool_], num_resamples: int, seed: int
) -> tuple[float, float]:
    """
    The 95% interval of the share. Draws in which fcfs was no worse than the oracle have none, and
    when one in forty is such, neither has the whole.
    """
    values, counts = _grouped(values), _grouped(known.astype(np.float64))
    _, num_repeats, num_requests = values.shape
    undefined = (float("nan"), float("nan"))
    if num_requests < 2:
        return undefined
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(num_resamples):
        of_repeats = _weights(rng, num_repeats)
        of_requests = _weights(rng, num_requests)
        if float(of_repeats @ counts @ of_requests) > 0:
            base, policy, best = (of_repeats @ (values @ of_requests).T).tolist()
            draws.append(_share(base, policy, best))
    shares = np.array(draws)
    if not len(shares) or np.isnan(shares).mean() > 0.025:
        return undefined
    low, high = np.nanpercentile(shares, [2.5, 97.5]).tolist()
    return low, high


def _grouped(table: FloatArray) -> FloatArray:
    """
    The last axis summed into at most MAX_GROUPS groups of every MAX_GROUPS-th request.

    Resampling groups gives the same interval in expectation, and costs the same however many
    requests there are.
    """
    missing = -table.shape[-1] % MAX_GROUPS
    if table.shape[-1] <= MAX_GROUPS:
        return table
    padded = np.pad(table, [(0, 0)] * (table.ndim - 1) + [(0, missing)])
    summed: FloatArray = padded.reshape(*table.shape[:-1], -1, MAX_GROUPS).sum(axis=-2)
    return summed


def _weights(rng: np.random.Generator, count: int) -> FloatArray:
    """How often each of `count` is drawn in a sample of that size."""
    return np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
