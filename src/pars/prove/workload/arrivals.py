"""
When requests arrive: Poisson, gamma with a coefficient of variation, or one burst (`traces.py` has
recorded arrivals).

    poisson(1000, rate=20.0, seed=0)          # seconds, rising, the first after an interval

Drawn with the standard library's generator, whose sequence is fixed: the same seed gives the same
arrivals everywhere. Another rate only stretches them.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pars.errors import ParsError

if TYPE_CHECKING:
    from pars.prove.workload.workload import WorkloadRequest


def poisson(num_requests: int, rate: float, seed: int) -> list[float]:
    """Independent arrivals at `rate` a second on average."""
    return gamma(num_requests, rate, 1.0, seed)


def gamma(num_requests: int, rate: float, cv: float, seed: int) -> list[float]:
    """
    Arrivals with gamma-distributed intervals.

    Args:
        cv: Standard deviation of the intervals over their mean: 1 is Poisson, more is burstier.

    Raises:
        ParsError: rate or cv is not positive.
    """
    _check_rate(rate)
    if not 0 < cv < math.inf:
        raise ParsError(f"the coefficient of variation must be more than 0, not {cv}")
    rng = random.Random(seed)
    shape = 1 / (cv * cv)
    interval: Callable[[], float] = (
        (lambda: rng.expovariate(1.0)) if cv == 1 else (lambda: rng.gammavariate(shape, 1 / shape))
    )
    at, arrivals = 0.0, []
    for _ in range(num_requests):
        at += interval()
        arrivals.append(at / rate)
    return arrivals


def burst(num_requests: int) -> list[float]:
    """All at once."""
    return [0.0] * num_requests


def mean_rate(arrivals_s: Sequence[float]) -> float | None:
    """Requests a second over the span of the arrivals; None where they come all at once."""
    span_s = arrivals_s[-1] - arrivals_s[0] if arrivals_s else 0.0
    return (len(arrivals_s) - 1) / span_s if span_s > 0 else None


def scaled(arrivals_s: Sequence[float], rate: float) -> list[float]:
    """
    The same arrivals, stretched or squeezed to `rate` a second.

    Raises:
        ParsError: the rate is not positive, or they come all at once.
    """
    _check_rate(rate)
    own = mean_rate(arrivals_s)
    if own is None:
        raise ParsError("arrivals that come all at once have no rate to scale")
    return [at * own / rate for at in arrivals_s]


def at_rate(
    requests: Sequence["WorkloadRequest"], rate: float | None
) -> Sequence["WorkloadRequest"]:
    """
    The same requests with their arrivals stretched to `rate` a second on average.

    Raises:
        ParsError: they all arrive at once.
    """
    if rate is None:
        return requests
    arrivals_s = scaled([request.arrival_s for request in requests], rate)
    return [
        replace(request, arrival_s=arrival_s)
        for request, arrival_s in zip(requests, arrivals_s, strict=True)
    ]


def _check_rate(rate: float) -> None:
    if not 0 < rate < math.inf:
        raise ParsError(f"the rate must be more than 0 requests a second, not {rate}")
