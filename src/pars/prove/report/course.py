"""
How a run went on: what a policy that learns had gained by each part of it.

    for part in course(result, "gateway"):
        print(part.share)                       # of the oracle's gain: 0.41, 0.77, 0.85, 0.86

Requests are parted by when they were due, so that each part holds the same requests under every
policy.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pars.prove.report.gain import Gain, compared
from pars.prove.report.latency import columns, ended_well
from pars.prove.report.times import RequestTimes, Result

NUM_PARTS = 4
LEARNS = ("online", "gateway")  # policies that know more at the end than at the beginning

FloatArray = NDArray[np.float64]


def learns(policy: str) -> bool:
    """Whether what it does changes as answers end."""
    return policy.partition("@")[0] in LEARNS


def course(
    result: Result, policy: str, *, rate: float | None = None, measure: str = "ntpot_s"
) -> list[Gain]:
    """What `policy` gained in each quarter of the requests, in the order in which they were due."""
    there = [it for it in result.requests if it.rate == rate]
    parts = _parts(there)
    found = []
    for part in range(NUM_PARTS):
        its = [it for it in there if parts[it.request_id] == part]
        gain = compared(replace(result, requests=its), policy, rate=rate, measure=measure)
        if gain is not None:
            found.append(gain)
    return found


def _parts(requests: Sequence[RequestTimes]) -> dict[str, int]:
    """In which part a request is due; the same request is in the same part under all policies."""
    due = {it.request_id: it.arrival_s for it in requests}
    in_order = sorted(due, key=lambda name: due[name])
    return {name: NUM_PARTS * place // len(in_order) for place, name in enumerate(in_order)}


def gaps(
    result: Result, policy: str, base: str, rate: float | None
) -> tuple[list[int], FloatArray]:
    """
    What `policy` has saved by each request, on average of those up to it.

    Returns:
        Numbers of requests, and seconds a token [num_requests] that `policy` took less than `base`.
    """
    of = {name: _ntpot_s(result, name, rate) for name in (policy, base)}
    due = {it.request_id: it.arrival_s for it in result.requests if it.rate == rate}
    both = [it for it in sorted(due, key=lambda name: due[name]) if all(it in of[k] for k in of)]
    saved = np.array([of[base][it] - of[policy][it] for it in both])
    counts = np.arange(1, len(both) + 1)
    return counts.tolist(), np.cumsum(saved) / counts


def _ntpot_s(result: Result, policy: str, rate: float | None) -> dict[str, float]:
    """Mean over repeats, by request."""
    good = [
        it for it in result.requests if (it.policy, it.rate) == (policy, rate) and ended_well(it)
    ]
    found: dict[str, list[float]] = {}
    for request, value in zip(good, columns(good)["ntpot_s"].tolist(), strict=True):
        found.setdefault(request.request_id, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}
