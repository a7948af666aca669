"""
Whether the engine admits by priority, seen from who began before whom.

    contests = contests_of(waits)             # Contests(num=812, num_won=809, ...)
    contests.obeys                            # True; False: first come, first served; None: unclear

No engine tells over HTTP whether it looks at priorities: vLLM takes each with a 200 and ignores it
unless it was started with --scheduling-policy priority. But where two requests wait and the later
one is to go first, it is seen which one does.

A first byte is late for other reasons than a queue: a long prompt, or a server that is too busy to
read. Such delays keep the order of arrival under any engine, so that an engine is blamed only for
contests that are *sure*: both requests stood in its queue while it ran as many as it ever does, and
the one that began second was in the queue still when the first began, even if its prompt took some
times as long as the fastest of its size.
"""

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pars.outcomes.decision import Decision
from pars.outcomes.metrics import ServeMetrics
from pars.outcomes.records import Outcome

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

LEAST_CONTESTS, LEAST_REQUESTS = 50, 50
FEW_REQUESTS, LEAST_FILLINGS = 20, 5  # are enough too, where they fill a small engine so often
MOST_SHARE = 0.8  # of contests won: above, priorities are obeyed
LEAST_SHARE, LEAST_SURE_SHARE = 0.02, 0.01  # below both, they are ignored
APART_S = 0.05  # what begins closer together began as one: a step of the engine, a busy event loop
FULL = 0.97  # of the most that ran; of what runs at once fewer than LEAST_REQUESTS are in the rest
SLOWER = 3.0  # than the fastest of its size a prompt may be read
ONE_STEP_TOKENS = 256.0  # of a prompt; fewer are not read faster
LEAST_SECONDS_A_TOKEN = 1e-3  # an answer that comes faster came whole: its wait is not known
WINDOW, JUDGE_EVERY = 1000, 50
LOOK_EVERY_S = 1.0

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Contests:
    """
    Pairs of requests that waited together, of which the later one was to go first.

    Attributes:
        num_won: In which it did. First come, first served it never does.
        num_sure, num_sure_won: Of those that say what the engine did.
        num_requests: That took part in sure ones: of the earlier or of the later, the fewer.
        num_fillings: How many times those fill the engine.
    """

    num: int = 0
    num_won: int = 0
    num_sure: int = 0
    num_sure_won: int = 0
    num_requests: int = 0
    num_fillings: float = 0.0

    @property
    def obeys(self) -> bool | None:
        """Whether the engine goes by priority; None: too few contests, or no clear picture."""
        is_sure = self.num_sure >= LEAST_CONTESTS and self._are_requests_enough
        share = self.num_won / max(self.num, 1)
        sure_share = self.num_sure_won / max(self.num_sure, 1)
        if (self.num >= LEAST_CONTESTS and share > MOST_SHARE) or (
            is_sure and sure_share > MOST_SHARE
        ):
            return True
        return False if is_sure and share < LEAST_SHARE and sure_share < LEAST_SURE_SHARE else None

    @property
    def _are_requests_enough(self) -> bool:
        are_often = self.num_requests >= FEW_REQUESTS and self.num_fillings >= LEAST_FILLINGS
        return are_often or self.num_requests >= LEAST_REQUESTS

    def __add__(self, other: Self) -> "Contests":
        return Contests(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        num, won = (self.num_sure, self.num_sure_won) if self.num_sure else (self.num, self.num_won)
        return (
            f"of {num:,} times that a later request was to go first while both waited, it did"
            f" {won:,} times"
        )


def tells_wait(one: Outcome) -> bool:
    """Whether it is known when the request began: of one answered in one piece it is not."""
    if one.wait_s is None or one.total_s is None:
        return False
    return one.total_s - one.wait_s >= LEAST_SECONDS_A_TOKEN * (one.answer_tokens or 0)


@dataclass(frozen=True, slots=True)
class Waited:
    """
    An answered request before the engine: Unix times at which it was handed on, began and ended.

    Attributes:
        prompt_tokens: nan: not known, so it is not known either how long its prompt was read.
    """

    model: str | None
    key: int
    prompt_tokens: float
    sent_s: float
    begin_s: float
    end_s: float

    @classmethod
    def of(cls, one: Outcome) -> Self | None:
        """What an outcome shows of the engine's queue; None: nothing, as an error does."""
        if one.key is None or not one.is_answered or not tells_wait(one):
            return None
        if one.engine_wait_s is None or one.wait_s is None or one.total_s is None:
            return None
        told = one.known_prompt_tokens
        begin_s = one.arrival_s + one.wait_s
        return cls(
            one.model,
            one.key,
            np.nan if told is None else told,
            begin_s - one.engine_wait_s,
            begin_s,
            one.arrival_s + one.total_s,
        )


def contests_of(
    waits: Iterable[Waited], running: Iterable[tuple[str | None, float]] = ()
) -> Contests:
    """
    The contests among requests; those of one model share a queue.

    Args:
        running: Requests that have not ended yet: model, and when each began.
    """
    begun: dict[str | None, list[float]] = {}
    for model, begin_s in running:
        begun.setdefault(model, []).append(begin_s)
    by_model: dict[str | None, list[Waited]] = {}
    for one in waits:
        by_model.setdefault(one.model, []).append(one)
    found = (_contests_in(queue, begun.get(model, ())) for model, queue in by_model.items())
    return sum(found, Contests())


def _contests_in(queue: Sequence[Waited], running_since_s: Sequence[float]) -> Contests:
    sent_s, begin_s, end_s, prompt_tokens = np.array(
        [(one.sent_s, one.begin_s, one.end_s, one.prompt_tokens) for one in queue]
    ).T
    keys = np.array([one.key for one in queue], dtype=object).astype(np.float64)
    # Row: came earlier. Column: came later, before the other began, and is to go first.
    is_contest = (
        (sent_s[:, None] < sent_s)
        & (sent_s + APART_S < begin_s[:, None])
        & (keys[:, None] > keys)
        & (np.abs(begin_s[:, None] - begin_s) > APART_S)
    )
    is_won = begin_s[:, None] > begin_s
    reading_s = _reading_s(begin_s - sent_s, prompt_tokens)
    joined_s = sent_s + APART_S + reading_s  # by then it stood in the queue
    left_s = begin_s - APART_S - SLOWER * reading_s  # until then it did
    all_begin_s = np.append(begin_s, running_since_s)
    # An end may be seen some time after the next one's beginning, though it came first.
    early_s = np.minimum(APART_S, (end_s - begin_s) / 2)
    times_s, running = _running(all_begin_s, end_s - early_s)
    full_s = _last_full(times_s, running, left_s)
    is_first_queued = np.where(is_won, full_s, full_s[:, None]) > np.maximum(
        joined_s[:, None], joined_s
    )
    is_second_queued = np.where(is_won, left_s[:, None] > begin_s, left_s > begin_s[:, None])
    is_sure = is_contest & is_first_queued & is_second_queued
    num_requests = min(is_sure.any(axis=0).sum(), is_sure.any(axis=1).sum())
    return Contests(
        int(is_contest.sum()),
        int((is_contest & is_won).sum()),
        int(is_sure.sum()),
        int((is_sure & is_won).sum()),
        int(num_requests),
        float(num_requests / running.max()),
    )


def _reading_s(waits_s: FloatArray, prompt_tokens: FloatArray) -> FloatArray:
    """At most how long a prompt of that size is read by itself: others waited no longer."""
    size = np.maximum(prompt_tokens, ONE_STEP_TOKENS)
    by_others: FloatArray = waits_s * np.maximum(1.0, size[:, None] / size)
    known = np.where(np.isnan(by_others), np.inf, by_others)
    return known.min(axis=1)  # type: ignore[no-any-return]


def _running(begin_s: FloatArray, end_s: FloatArray) -> tuple[FloatArray, NDArray[np.int64]]:
    """The times at which a request began or ended, and how many ran from each of them on."""
    times_s = np.concatenate((end_s, begin_s))
    changes = np.repeat((-1, 1), (len(end_s), len(begin_s)))
    order = np.argsort(times_s, kind="stable")
    return times_s[order], np.cumsum(changes[order])


def _last_full(times_s: FloatArray, running: NDArray[np.int64], until_s: FloatArray) -> FloatArray:
    """When the engine last ran about as many as ever, until each of those times; -inf: never."""
    at = np.flatnonzero(running >= FULL * running.max())
    times_s = np.append(times_s, np.inf)
    last = np.searchsorted(times_s[at], until_s, side="right") - 1
    return np.where(last < 0, -np.inf, np.minimum(until_s, times_s[at[last] + 1]))


class OrderJudge:
    """
    Looks at the latest requests as they end, and says once it is clear what the engine does.

    Shown as pars_engine_schedules_by_priority. On one event loop.
    """

    def __init__(self, metrics: ServeMetrics) -> None:
        self.obeys: bool | None = None
        self._is_suspected = False
        self._metrics = metrics
        self._latest: deque[Waited] = deque(maxlen=WINDOW)
        self._running: dict[int, tuple[str | None, float]] = {}  # by the decision's id
        self._num_new = 0

    def began(self, decision: Decision) -> None:
        """The engine begins to answer."""
        one = decision.outcome
        begin_s = one.arrival_s + time.perf_counter() - decision.began_s
        self._running[id(decision)] = one.model, begin_s

    def ended(self, decision: Decision, outcome: Outcome) -> None:
        """A request is finished."""
        self._running.pop(id(decision), None)
        waited = Waited.of(outcome)
        if waited is not None:
            self._latest.append(waited)
            self._num_new += 1

    def told(self, policy: str) -> None:
        """The vLLM in this process says how it schedules, so that nothing is to be judged."""
        self._metrics.priority_scheduling.set(policy == "priority")
        if policy == "priority":
            log.info("vLLM schedules by priority")
        else:
            log.error(
                "vLLM runs with --scheduling-policy %s and IGNORES every priority: requests are"
                " scored for nothing. Restart it with --scheduling-policy priority.",
                policy,
            )

    def start_afresh(self) -> None:
        """Another engine may be there."""
        self._latest.clear()
        self._num_new = 0
        self._is_suspected = False
        if self.obeys is not None:
            self.obeys = None
            self._metrics.priority_scheduling.set(-1)

    async def keep_judging(self, every_s: float = LOOK_EVERY_S) -> None:
        """Judge in a thread whenever there is enough that is new."""
        while True:
            await asyncio.sleep(every_s)
            if self._num_new >= JUDGE_EVERY:
                self._num_new = 0
                running = list(self._running.values())
                self.take(await asyncio.to_thread(contests_of, list(self._latest), running))

    def take(self, contests: Contests) -> None:
        """What the latest requests show; said where it is clear and new, if bad only once again."""
        obeys = contests.obeys
        if obeys is False and not self._is_suspected:
            self._is_suspected = True
            return
        self._is_suspected = obeys is False
        if obeys is None or obeys is self.obeys:
            return
        self.obeys = obeys
        self._metrics.priority_scheduling.set(obeys)
        if obeys:
            log.info("the engine orders its queue by priority: %s", contests)
        else:
            log.error(
                "the engine IGNORES priorities: %s. vLLM needs --scheduling-policy priority,"
                " SGLang --enable-priority-scheduling",
                contests,
            )
