"""
What the order was worth: each request's wait beside the one that first come, first served gives it.

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
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pars.outcomes.decision import Decision
from pars.outcomes.queue_order import tells_wait
from pars.outcomes.records import Outcome

WINDOW_S = 3600.0
MOST_REQUESTS = 20_000  # looked at: the newest of the window
LONGEST_S = 1800.0  # a request that is under way for longer is not waited for
TPOT_MEMORY = 0.05  # of the running time per output token

FloatArray = NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Passed:
    """
    One request, as far as it has come.

    Attributes:
        work: Of prompt and answers in answer tokens: expected, and true once it has ended.
        begin_s: When the engine began to answer; infinite: not yet.
        end_s: When it ended; nan: it has not.
        tokens: Of its answers.
        is_express: Its class; None: there is none.
        is_told: Whether it is among those that were told as finally known.
    """

    arrival_s: float
    work: float
    is_express: bool | None = None
    begin_s: float = math.inf
    end_s: float = math.nan
    tokens: int = 0
    is_told: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """
    A request's wait, and the one that first come, first served would have made of it.

    Attributes:
        fcfs_wait_s: By `fcfs_begins_s`.
    """

    passed: Passed
    fcfs_wait_s: float

    @property
    def wait_s(self) -> float:
        """Until the engine began to answer."""
        return self.passed.begin_s - self.passed.arrival_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """
    What the order was worth in the last hour, over the requests whose both waits are known.

    Attributes:
        ntpot_s, wait_s, e2e_s: Means: seconds per output token with the wait, the wait until the
            answer began, and the whole. With `fcfs_`: had it been first come, first served.
        p99_wait_s, longest_wait_s: Of the waits, and of those by first come, first served.
        share_sooner, share_later: Of requests, that began more than a second sooner or later.
    """

    num_requests: int
    ntpot_s: float
    fcfs_ntpot_s: float
    wait_s: float
    fcfs_wait_s: float
    e2e_s: float
    fcfs_e2e_s: float
    p99_wait_s: float
    fcfs_p99_wait_s: float
    longest_wait_s: float
    fcfs_longest_wait_s: float
    share_sooner: float
    share_later: float

    @property
    def ntpot_ratio(self) -> float:
        """By how much the mean time per output token fell: 0.4 is by 40%."""
        return 1 - self.ntpot_s / self.fcfs_ntpot_s if self.fcfs_ntpot_s > 0 else 0.0

    @property
    def wait_ratio(self) -> float:
        """By how much the mean wait fell."""
        return 1 - self.wait_s / self.fcfs_wait_s if self.fcfs_wait_s > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """Its fields and ratios."""
        return asdict(self) | {"ntpot_ratio": self.ntpot_ratio, "wait_ratio": self.wait_ratio}


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


class Worth:
    """
    Follows the requests of one server process. On one event loop, but for `look`.

    Several processes before one engine each see their own part only.

    Args:
        clock: Unix time, as arrivals were taken by.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._open: dict[int, Passed] = {}  # by the decision's id
        self._ended: deque[Passed] = deque(maxlen=MOST_REQUESTS)
        self._tpot_s = math.nan

    @property
    def num_waiting(self) -> int:
        """Requests that the engine has not begun to answer."""
        return sum(math.isinf(it.begin_s) for it in self._open.values())

    @property
    def num_running(self) -> int:
        """Requests that the engine is answering, as far as their streams tell."""
        return len(self._open) - self.num_waiting

    @property
    def longest_waiting_s(self) -> float:
        """How long the one that waits longest has waited by now."""
        arrivals_s = [it.arrival_s for it in self._open.values() if math.isinf(it.begin_s)]
        return max(0.0, self._clock() - min(arrivals_s)) if arrivals_s else 0.0

    def arrived(self, decision: Decision) -> None:
        """A request goes on to the engine."""
        if len(self._open) >= MOST_REQUESTS:
            self._open.pop(next(iter(self._open)))
        place = decision.place
        self._open[id(decision)] = Passed(
            decision.outcome.arrival_s,
            max(decision.work, 1.0),
            None if place is None else place.is_express,
        )

    def began(self, decision: Decision) -> None:
        """The engine begins to answer it."""
        if (passed := self._open.get(id(decision))) is not None:
            since_s = time.perf_counter() - decision.began_s
            passed.begin_s = passed.arrival_s + since_s

    def ended(self, decision: Decision, outcome: Outcome) -> None:
        """It ended. One that failed, or of which nothing is known, has taken no work."""
        passed = self._open.pop(id(decision), None)
        tokens, total_s = outcome.answer_tokens, outcome.total_s
        failed = outcome.status is None or outcome.status >= 400
        if passed is None or failed or not tokens or total_s is None:
            return
        wait_s = self._wait_s(outcome, tokens, total_s)
        if wait_s is None:
            return
        passed.begin_s, passed.end_s = passed.arrival_s + wait_s, passed.arrival_s + total_s
        passed.tokens = tokens
        passed.work = decision.true_work(outcome)
        self._ended.append(passed)

    def look(self) -> tuple[Gain | None, list[Compared]]:
        """
        The gain of the last hour, None if nothing is known; and what is known since the last look.

        May run in another thread than the rest, one look at a time.
        """
        now_s = self._clock()
        ended = [it for it in list(self._ended) if it.end_s > now_s - WINDOW_S]
        under_way = [it for it in list(self._open.values()) if it.arrival_s > now_s - LONGEST_S]
        if not ended:
            return None, []
        compared = _compared(ended, under_way)
        new = [it for it in compared if not it.passed.is_told]
        for it in new:
            it.passed.is_told = True
        return _gain_of(compared), new

    def _wait_s(self, outcome: Outcome, tokens: int, total_s: float) -> float | None:
        """Until the engine began; of an answer that came whole by the time that others take."""
        if tells_wait(outcome) and outcome.wait_s is not None:
            if tokens > 1:
                tpot_s = (total_s - outcome.wait_s) / (tokens - 1)
                known = self._tpot_s if math.isfinite(self._tpot_s) else tpot_s
                self._tpot_s = known + TPOT_MEMORY * (tpot_s - known)
            return outcome.wait_s
        if math.isnan(self._tpot_s):
            return None
        return max(0.0, total_s - tokens * self._tpot_s / max(1, outcome.num_answers))


def _compared(ended: list[Passed], under_way: list[Passed]) -> list[Compared]:
    """Of those that ended, the ones before which no request came that is still under way."""
    everybody = ended + under_way
    begins_s = fcfs_begins_s(
        np.array([it.arrival_s for it in everybody]),
        np.array([it.begin_s for it in everybody]),
        np.array([it.work for it in everybody]),
        math.nan if under_way else max(it.end_s for it in ended),
    )
    horizon_s = min((it.arrival_s for it in under_way), default=math.inf)
    return [
        Compared(it, begin_s - it.arrival_s)
        for it, begin_s in zip(ended, begins_s.tolist(), strict=False)
        if it.arrival_s < horizon_s and not math.isnan(begin_s)
    ]


def _gain_of(compared: list[Compared]) -> Gain | None:
    if not compared:
        return None
    waits_s = np.array([it.wait_s for it in compared])
    fcfs_waits_s = np.array([it.fcfs_wait_s for it in compared])
    answers_s = np.array([it.passed.end_s - it.passed.begin_s for it in compared])
    tokens = np.array([it.passed.tokens for it in compared])
    sooner_s = fcfs_waits_s - waits_s
    return Gain(
        num_requests=len(compared),
        ntpot_s=float(((waits_s + answers_s) / tokens).mean()),
        fcfs_ntpot_s=float(((fcfs_waits_s + answers_s) / tokens).mean()),
        wait_s=float(waits_s.mean()),
        fcfs_wait_s=float(fcfs_waits_s.mean()),
        e2e_s=float((waits_s + answers_s).mean()),
        fcfs_e2e_s=float((fcfs_waits_s + answers_s).mean()),
        p99_wait_s=float(np.quantile(waits_s, 0.99)),
        fcfs_p99_wait_s=float(np.quantile(fcfs_waits_s, 0.99)),
        longest_wait_s=float(waits_s.max()),
        fcfs_longest_wait_s=float(fcfs_waits_s.max()),
        share_sooner=float((sooner_s > 1).mean()),
        share_later=float((sooner_s < -1).mean()),
    )
