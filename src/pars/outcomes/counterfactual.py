"""
When another order would have begun each request, told from what an engine did.

An engine with a queue is busy, so in any order it has begun about as much work by any time. So
first come, first served begins a request when the work that was begun in truth reaches the work
that had arrived before it:

    A(t)          work of all requests begun by t, as it happened
    S(i)          work of all requests that arrived before i
    fcfs begin    the later of i's arrival and the time when A reaches S(i)

That is work conservation (Kleinrock 1976, Queueing Systems II, 3.4), and needs to know neither the
engine's slots nor its speed. Where it was first come, first served the two agree exactly;
benchmarks/worth.py holds the rest against a simulated truth.
"""

import math
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def fcfs_begins_s(
    arrivals_s: FloatArray, begins_s: FloatArray, work: FloatArray, idle_s: float = math.nan
) -> FloatArray:
    """
    When first come, first served would have begun each request, on an engine that did this.

    Args:
        arrivals_s: [num_requests], in any order.
        begins_s: [num_requests]; infinite for those that wait still.
        work: [num_requests], in any unit.
        idle_s: When all of it was done; nan: it is not.

    Returns:
        [num_requests]; nan where it is not known yet: more work came before than has begun.
    """
    by_arrival = np.argsort(arrivals_s, kind="stable")
    has_begun = np.flatnonzero(np.isfinite(begins_s))
    by_begin = has_begun[np.argsort(begins_s[has_begun], kind="stable")]
    if not len(by_begin):
        return np.full(len(arrivals_s), math.nan)
    # Middle to middle: a request stands for its work, of which half has begun at its begin.
    begun = np.cumsum(work[by_begin]) - work[by_begin] / 2
    times_s = begins_s[by_begin]
    if not math.isnan(idle_s):
        begun, times_s = np.append(begun, work.sum()), np.append(times_s, idle_s)
    due = np.empty(len(work))
    due[by_arrival] = np.cumsum(work[by_arrival]) - work[by_arrival] / 2
    found = np.interp(due, begun, times_s)
    found[due > begun[-1] * (1 + 1e-12)] = math.nan
    return np.maximum(found, arrivals_s)


def ordered_begins_s(
    arrivals_s: FloatArray, begins_s: FloatArray, work: FloatArray, keys: FloatArray
) -> FloatArray:
    """
    When an order by `keys` would have begun each request, on an engine that did this.

    At each begin in truth the engine took some work up. In thought it takes up the same work of
    those that wait then, smallest key first.

    Args:
        arrivals_s, begins_s, work: As of `fcfs_begins_s`.
        keys: [num_requests], smaller first.

    Returns:
        [num_requests]; nan where it is not known yet.
    """
    found = np.full(len(arrivals_s), math.nan)
    by_begin = np.argsort(begins_s, kind="stable")
    arrived = iter(np.argsort(arrivals_s, kind="stable").tolist())
    coming = next(arrived, None)
    waiting: list[tuple[float, float, int]] = []
    credit = 0.0
    for begun in by_begin.tolist():
        now_s = begins_s[begun]
        if math.isinf(now_s):
            break
        while coming is not None and arrivals_s[coming] <= now_s:
            heappush(waiting, (keys[coming], arrivals_s[coming], coming))
            coming = next(arrived, None)
        credit += work[begun]
        while waiting and credit >= work[waiting[0][2]] / 2:
            _, _, first = heappop(waiting)
            found[first] = now_s
            credit -= work[first]
        if not waiting:
            credit = min(credit, 0.0)
    return found
