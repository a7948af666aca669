"""
When requests arrive: Poisson, gamma with a coefficient of variation, one burst, or a trace.

    poisson(1000, rate=20.0, seed=0)          # seconds, rising, the first after an interval
    read_trace(Path("trace.csv"))             # arrival_s,input_tokens,output_tokens

Drawn with the standard library's generator, whose sequence is fixed: the same seed gives the same
arrivals everywhere. Another rate only stretches them.
"""

import csv
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pars.errors import DataError, ParsError

TRACE_COLUMNS = ("arrival_s", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Trace:
    """Recorded requests: seconds from the first of them (rising) and tokens, [num_requests]."""

    arrivals_s: list[float]
    input_tokens: list[int]
    output_tokens: list[int]


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


def read_trace(path: Path) -> Trace:
    """
    A CSV with the columns arrival_s,input_tokens,output_tokens, in order of arrival.

    Raises:
        DataError: the file or a column is missing, a value is no number, or time goes back.
    """
    trace = Trace([], [], [])
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            columns = [name.strip() for name in next(rows, [])]
            missing = [name for name in TRACE_COLUMNS if name not in columns]
            if missing:
                wanted = ",".join(TRACE_COLUMNS)
                problem = f"lacks {', '.join(missing)}: its first line must name {wanted}"
                raise DataError.at(path, problem, row=1)
            places = [columns.index(name) for name in TRACE_COLUMNS]
            for number, row in enumerate(rows, 2):
                if row:
                    cells = [row[place] for place in places if place < len(row)]
                    _add(trace, cells, path, number)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError.at(path, f"cannot be read: {reason}") from error
    if not trace.arrivals_s:
        raise DataError.at(path, "has no requests")
    first_s = trace.arrivals_s[0]
    return Trace([at - first_s for at in trace.arrivals_s], trace.input_tokens, trace.output_tokens)


def _add(trace: Trace, cells: list[str], path: Path, number: int) -> None:
    try:
        at_s, inputs, outputs = float(cells[0]), int(cells[1]), int(cells[2])
    except (ValueError, IndexError):
        problem = (
            f"{', '.join(TRACE_COLUMNS)} must be seconds and two whole numbers,"
            f" not {', '.join(cells)!r}"
        )
        raise DataError.at(path, problem, row=number) from None
    if not math.isfinite(at_s) or (trace.arrivals_s and at_s < trace.arrivals_s[-1]):
        problem = f"arrives at {at_s} s: arrivals must be in order"
        raise DataError.at(path, problem, row=number)
    if inputs < 0 or outputs < 0:
        raise DataError.at(path, "token counts must be 0 or more", row=number)
    trace.arrivals_s.append(at_s)
    trace.input_tokens.append(inputs)
    trace.output_tokens.append(outputs)


def _check_rate(rate: float) -> None:
    if not 0 < rate < math.inf:
        raise ParsError(f"the rate must be more than 0 requests a second, not {rate}")
