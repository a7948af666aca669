"""
Whether the engine admits by priority, seen from who began before whom.

    contests = contests_of(outcomes)          # Contests(num=812, num_won=809)
    contests.obeys                            # True; False: first come, first served; None: unclear

No engine tells over HTTP whether it looks at priorities: vLLM takes each with a 200 and ignores it
unless it was started with --scheduling-policy priority. But where two requests wait and the later
one is to go first, it is seen which one does.
"""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from pars.outcomes.metrics import ServeMetrics
from pars.outcomes.records import Outcome

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

LEAST_CONTESTS = 50
LEAST_SHARE, MOST_SHARE = 0.2, 0.8  # of contests won: below, priorities are ignored; above, obeyed
APART_S = 0.05  # what begins closer together began as one: a step of the engine, a busy event loop
LEAST_SECONDS_A_TOKEN = 1e-3  # an answer that comes faster came whole: its wait is not known
WINDOW, JUDGE_EVERY = 400, 50
LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Contests:
    """
    Pairs of requests that waited together, of which the later one was to go first.

    Attributes:
        num_won: In which it did. First come, first served it never does.
    """

    num: int = 0
    num_won: int = 0

    @property
    def obeys(self) -> bool | None:
        """Whether the engine goes by priority; None: too few contests, or no clear picture."""
        if self.num < LEAST_CONTESTS:
            return None
        share = self.num_won / self.num
        return True if share > MOST_SHARE else False if share < LEAST_SHARE else None

    def __add__(self, other: Self) -> "Contests":
        return Contests(self.num + other.num, self.num_won + other.num_won)

    def __str__(self) -> str:
        return (
            f"of {self.num:,} times that a later request was to go first while both waited, it did"
            f" {self.num_won:,} times"
        )


def tells_wait(one: Outcome) -> bool:
    """Whether it is known when the request began: of one answered in one piece it is not."""
    if one.wait_s is None or one.total_s is None:
        return False
    return one.total_s - one.wait_s >= LEAST_SECONDS_A_TOKEN * (one.answer_tokens or 0)


def contests_of(outcomes: Iterable[Outcome]) -> Contests:
    """The contests among requests; those of one model share a queue."""
    by_model: dict[str | None, list[Outcome]] = {}
    for one in outcomes:
        if one.key is not None and tells_wait(one):
            by_model.setdefault(one.model, []).append(one)
    return sum(map(_contests_in, by_model.values()), Contests())


def _contests_in(queue: Sequence[Outcome]) -> Contests:
    arrivals_s = np.array([one.arrival_s for one in queue])
    begins_s = arrivals_s + np.array([one.wait_s for one in queue])
    keys = np.array([one.key for one in queue], dtype=object).astype(np.float64)
    # Row: came earlier. Column: came later, before the other began, and is to go first.
    is_contest = (
        (arrivals_s[:, None] < arrivals_s)
        & (arrivals_s + APART_S < begins_s[:, None])
        & (keys[:, None] > keys)
        & (np.abs(begins_s[:, None] - begins_s) > APART_S)
    )
    is_won = is_contest & (begins_s[:, None] > begins_s)
    return Contests(int(is_contest.sum()), int(is_won.sum()))


class OrderJudge:
    """
    Looks at the latest requests as they end, and says once it is clear what the engine does.

    Shown as pars_engine_schedules_by_priority. On one event loop.
    """

    def __init__(self, metrics: ServeMetrics) -> None:
        self.obeys: bool | None = None
        self._metrics = metrics
        self._latest: deque[Outcome] = deque(maxlen=WINDOW)
        self._num_new = 0

    def observe(self, outcome: Outcome) -> None:
        """A request is finished."""
        if outcome.key is not None and tells_wait(outcome):
            self._latest.append(outcome)
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
        if self.obeys is not None:
            self.obeys = None
            self._metrics.priority_scheduling.set(-1)

    async def keep_judging(self, every_s: float = LOOK_EVERY_S) -> None:
        """Judge in a thread whenever there is enough that is new."""
        while True:
            await asyncio.sleep(every_s)
            if self._num_new >= JUDGE_EVERY:
                self._num_new = 0
                self.take(await asyncio.to_thread(contests_of, list(self._latest)))

    def take(self, contests: Contests) -> None:
        """What the latest requests show; said where it is clear and new."""
        obeys = contests.obeys
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
