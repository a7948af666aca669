"""
What the order was worth: each request's wait beside the one that first come, first served gives it.

From arrivals, begins and ends alone (`counterfactual`), live, for every request. In shadow mode,
where the order is only thought of, the same is told of what it would have been worth.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pars.outcomes.counterfactual import FloatArray, fcfs_begins_s, ordered_begins_s
from pars.outcomes.decision import Decision
from pars.outcomes.queue_order import tells_wait
from pars.outcomes.records import Outcome

WINDOW_S = 3600.0
MOST_REQUESTS = 20_000  # looked at: the newest of the window
LONGEST_S = 1800.0  # a request that is under way for longer is not waited for
TPOT_MEMORY = 0.05  # of the running time per output token


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
        key: Smaller goes first; in shadow mode, the one that was only thought of.
        is_told: Whether it is among those that were told as finally known.
    """

    arrival_s: float
    work: float
    is_express: bool | None = None
    key: int = 0
    is_shadow: bool = False
    begin_s: float = math.inf
    end_s: float = math.nan
    tokens: int = 0
    is_told: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """
    A request's wait, and the one that first come, first served would have made of it.

    Attributes:
        wait_s: Until the engine began to answer; in shadow mode, as it would have been.
    """

    passed: Passed
    wait_s: float
    fcfs_wait_s: float


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


@dataclass(frozen=True, slots=True)
class Seen:
    """
    One look.

    Attributes:
        gain: Of the last hour; None: nothing is known.
        shadow_gain: What the order that is only thought of would have gained; None: there is none.
        new: What became known since the look before.
    """

    gain: Gain | None = None
    shadow_gain: Gain | None = None
    new: list[Compared] = field(default_factory=list)


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

    def num_passed(self, decision: Decision) -> int:
        """Requests that came before it and wait still."""
        came_s = decision.outcome.arrival_s
        passed = (it.arrival_s < came_s and math.isinf(it.begin_s) for it in self._open.values())
        return sum(passed)

    def arrived(self, decision: Decision) -> None:
        """A request goes on to the engine."""
        if len(self._open) >= MOST_REQUESTS:
            self._open.pop(next(iter(self._open)))
        place, shadow_key = decision.place, decision.shadow_key
        self._open[id(decision)] = Passed(
            decision.outcome.arrival_s,
            max(decision.work, 1.0),
            None if place is None else place.is_express,
            key=(decision.outcome.key or 0) if shadow_key is None else shadow_key,
            is_shadow=shadow_key is not None,
        )

    def began(self, decision: Decision) -> None:
        """The engine begins to answer it."""
        if (passed := self._open.get(id(decision))) is not None:
            since_s = time.perf_counter() - decision.began_s
            passed.begin_s = passed.arrival_s + since_s

    def ended(self, decision: Decision, outcome: Outcome) -> None:
        """It ended. One that failed, or of which nothing is known, has taken no work."""
        passed = self._open.pop(id(decision), None)
        if passed is None or not outcome.is_answered:
            return
        tokens, total_s = outcome.answer_tokens or 0, outcome.total_s or 0.0
        wait_s = self._wait_s(outcome, tokens, total_s)
        if wait_s is None:
            return
        passed.begin_s, passed.end_s = passed.arrival_s + wait_s, passed.arrival_s + total_s
        passed.tokens = tokens
        passed.work = decision.true_work(outcome)
        self._ended.append(passed)

    def look(self) -> Seen:
        """
        What can be told by now.

        May run in another thread than the rest, one look at a time.
        """
        now_s = self._clock()
        ended = [it for it in list(self._ended) if it.end_s > now_s - WINDOW_S]
        under_way = [it for it in list(self._open.values()) if it.arrival_s > now_s - LONGEST_S]
        if not ended:
            return Seen()
        arrays = Arrays.of(ended + under_way)
        idle_s = math.nan if under_way else max(it.end_s for it in ended)
        horizon_s = min((it.arrival_s for it in under_way), default=math.inf)
        fcfs_s = fcfs_begins_s(arrays.arrivals_s, arrays.begins_s, arrays.work, idle_s)
        compared = [
            Compared(it, it.begin_s - it.arrival_s, begin_s - it.arrival_s)
            for it, begin_s in zip(ended, fcfs_s.tolist(), strict=False)
            if it.arrival_s < horizon_s and not math.isnan(begin_s)
        ]
        new = [it for it in compared if not it.passed.is_told]
        for it in new:
            it.passed.is_told = True
        return Seen(_gain_of(compared), self._shadow_gain(ended, arrays), new)

    @staticmethod
    def _shadow_gain(ended: list[Passed], arrays: "Arrays") -> Gain | None:
        """What the order that is only thought of would have been worth; None: it is in force."""
        if not any(it.is_shadow for it in ended):
            return None
        thought_s = ordered_begins_s(arrays.arrivals_s, arrays.begins_s, arrays.work, arrays.keys)
        return _gain_of(
            [
                Compared(it, begin_s - it.arrival_s, it.begin_s - it.arrival_s)
                for it, begin_s in zip(ended, thought_s.tolist(), strict=False)
                if it.is_shadow and not math.isnan(begin_s)
            ]
        )

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


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """Requests by columns, each [num_requests]."""

    arrivals_s: FloatArray
    begins_s: FloatArray
    work: FloatArray
    keys: FloatArray

    @classmethod
    def of(cls, requests: list[Passed]) -> "Arrays":
        """The columns of these."""
        rows = [(it.arrival_s, it.begin_s, it.work, it.key) for it in requests]
        return cls(*np.array(rows, dtype=np.float64).T)


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
