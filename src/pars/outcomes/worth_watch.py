"""Follows what a server's order is worth, and shows it: as metrics, and for the page."""

import asyncio
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pars.errors import one_line
from pars.outcomes.decision import Decision
from pars.outcomes.holdout import HoldoutWatch
from pars.outcomes.queue_order import tells_wait
from pars.outcomes.records import Outcome
from pars.outcomes.spans import Spans
from pars.outcomes.worth import Compared, Gain, Seen, Worth
from pars.outcomes.worth_metrics import WorthMetrics, class_label
from pars.scheduling.policies.max_slowdown import BUCKET_S

log = logging.getLogger("vllm.pars" if "vllm" in sys.modules else "pars")  # vLLM shows its own

LOOK_EVERY_S = 5.0
NUM_MINUTES = 60


@dataclass(slots=True)
class Minute:
    """
    Sums over the requests that ended in one minute.

    Attributes:
        fcfs_ntpot_s, fcfs_wait_s: By first come, first served.
        tau_b: Of the predictions, at the last look in it.
    """

    num_requests: int = 0
    ntpot_s: float = 0.0
    fcfs_ntpot_s: float = 0.0
    wait_s: float = 0.0
    fcfs_wait_s: float = 0.0
    tau_b: float | None = None


class WorthWatch:
    """
    One server process's. On one event loop.

    Args:
        max_slowdown: The bound that is promised at this moment.
        tau_b: Of the predictions by now; nan: not known.
        holdout: Compares windows that are held out; None: none are.
        spans: Hear of each request too; None: nobody asked.

    Attributes:
        gain: Of the last hour, at the last look; None: nothing is known.
        shadow_gain: What the order would have gained that is only thought of; None: there is none.
    """

    def __init__(
        self,
        metrics: WorthMetrics,
        max_slowdown: Callable[[], float] = lambda: math.inf,
        *,
        tau_b: Callable[[], float] = lambda: math.nan,
        holdout: HoldoutWatch | None = None,
        spans: Spans | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._worth = Worth(clock)
        self._holdout = holdout
        self._spans = spans
        self.gain: Gain | None = None
        self.shadow_gain: Gain | None = None
        self._metrics = metrics
        self._max_slowdown = max_slowdown
        self._tau_b = tau_b
        self._clock = clock
        self._minutes: dict[int, Minute] = {}

    def arrived(self, decision: Decision) -> None:
        """A request goes on to the engine."""
        self._worth.arrived(decision)
        if self._spans is not None:
            self._spans.arrived(decision)

    def began(self, decision: Decision) -> None:
        """The engine begins to answer it."""
        self._worth.began(decision)
        if self._spans is not None:
            wait_s = time.perf_counter() - decision.began_s
            self._spans.began(decision, wait_s, self._worth.num_passed(decision))

    def ended(self, decision: Decision, outcome: Outcome) -> None:
        """A request ended."""
        self._worth.ended(decision, outcome)
        if self._spans is not None:
            self._spans.ended(decision, outcome)
        wait_s = outcome.wait_s
        if outcome.is_answered and wait_s is not None:
            self._metrics.ended(
                class_label(None if decision.place is None else decision.place.is_express),
                outcome.expected_tokens,
                outcome.model or "",
                wait_s=wait_s if tells_wait(outcome) else None,
                e2e_s=outcome.total_s or 0.0,
                tokens=outcome.answer_tokens or 0,
                request_id=decision.request_id,
            )
            if self._holdout is not None:
                self._holdout.ended(decision, outcome)

    async def keep_looking(self, every_s: float = LOOK_EVERY_S) -> None:
        """Look every so often, in a thread, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                self.take(await asyncio.to_thread(self._worth.look))
            except Exception as error:  # a figure is missing, and no request
                log.warning("what the order is worth is not known: %s", one_line(error))

    def take(self, seen: Seen) -> None:
        """Show what became known."""
        self.gain, self.shadow_gain = seen.gain, seen.shadow_gain
        for it in seen.new:
            longest_s = self._max_slowdown() * (it.fcfs_wait_s + 2 * BUCKET_S)
            self._metrics.compared(
                class_label(it.passed.is_express),
                it.wait_s,
                it.fcfs_wait_s,
                is_exceeded=it.wait_s > longest_s,
            )
            self._count(it)
        tau_b = self._tau_b()
        if math.isfinite(tau_b):
            self._minute(int(self._clock() // 60)).tau_b = tau_b
        gain = self.gain
        ratios = (math.nan, math.nan) if gain is None else (gain.ntpot_ratio, gain.wait_ratio)
        self._metrics.show(*ratios)
        self._metrics.queue(self._worth.num_waiting, self._worth.longest_waiting_s)
        if self._holdout is not None:
            self._holdout.look()

    def as_json(self) -> dict[str, Any]:
        """For the page: the gain, who waits now, and the last hour by minutes, oldest first."""
        first = self._first_minute()
        minutes = [self._minutes.get(first + at) for at in range(NUM_MINUTES)]
        return {
            "gain": None if self.gain is None else self.gain.as_json(),
            "shadow_gain": None if self.shadow_gain is None else self.shadow_gain.as_json(),
            "holdout": None if self._holdout is None else self._holdout.as_json(),
            "num_waiting": self._worth.num_waiting,
            "num_running": self._worth.num_running,
            "longest_waiting_s": self._worth.longest_waiting_s,
            "minutes": [None if it is None else asdict(it) for it in minutes],
        }

    def _count(self, it: Compared) -> None:
        at = int(it.passed.end_s // 60)
        if at < self._first_minute():
            return
        minute = self._minute(at)
        answer_s, tokens = it.passed.end_s - it.passed.begin_s, it.passed.tokens
        minute.num_requests += 1
        minute.ntpot_s += (it.wait_s + answer_s) / tokens
        minute.fcfs_ntpot_s += (it.fcfs_wait_s + answer_s) / tokens
        minute.wait_s += it.wait_s
        minute.fcfs_wait_s += it.fcfs_wait_s

    def _minute(self, at: int) -> Minute:
        """That minute's sums; with a new one those older than an hour are forgotten."""
        if (found := self._minutes.get(at)) is None:
            first = self._first_minute()
            self._minutes = {old: it for old, it in self._minutes.items() if old >= first}
            found = self._minutes[at] = Minute()
        return found

    def _first_minute(self) -> int:
        return int(self._clock() // 60) - NUM_MINUTES + 1
