"""
A permanent holdout: in some windows of time the queue is first come, first served.

    schedule = Schedule(0.05)                      # one window of twenty
    schedule.arm(arrival_s)                        # FCFS or ORDERED
    HoldoutWatch(schedule, metrics).ended(decision, outcome)

Whole windows, and not requests one by one: a request that is held out alone stands in a queue whose
others are ordered, and passes or is passed by them. Its wait beside theirs tells what *a* request
gains from being ordered, and not what all gain, for what the short ones gain the long ones wait.
benchmarks/holdout.py has both beside the truth. `switchback` makes the intervals.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Histogram

from pars.outcomes.decision import Decision
from pars.outcomes.queue_order import tells_wait
from pars.outcomes.records import Outcome
from pars.outcomes.switchback import (
    E2E,
    FEWEST_BLOCKS,
    GUARD,
    NTPOT,
    WAIT,
    Effect,
    Sums,
    Window,
    report_of,
)
from pars.outcomes.worth_metrics import NTPOT_BUCKETS_S, WAIT_BUCKETS_S, expected_label

FCFS, ORDERED = "fcfs", "ordered"
WINDOW_S = 300.0
MOST_BLOCKS = 400  # that are remembered: four weeks of a holdout of 5%


@dataclass(frozen=True, slots=True)
class Schedule:
    """
    Which windows are held out: one of each block, drawn by a hash of the block's number.

    All processes with one clock draw alike, before and after a restart, and no request has a say.

    Args:
        share: Of the windows; the nearest 1/n is taken.
    """

    share: float
    window_s: float = WINDOW_S

    @property
    def num_windows(self) -> int:
        """Of a block."""
        return max(2, round(1 / self.share))

    def block(self, at_s: float) -> int:
        """The number of the block at a time."""
        return int(at_s // self.window_s) // self.num_windows

    def arm(self, at_s: float) -> str:
        """How requests are ordered that come at a time."""
        at = int(at_s // self.window_s) % self.num_windows
        drawn = blake2b(b"%d" % self.block(at_s), digest_size=8, person=b"pars holdout").digest()
        return FCFS if int.from_bytes(drawn) % self.num_windows == at else ORDERED

    def is_settled(self, at_s: float) -> bool:
        """Whether what came in the window before has hardly a say any more."""
        return at_s % self.window_s >= GUARD * self.window_s


class HoldoutMetrics:
    """What Prometheus sees of a holdout; one per registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, documentation, ["arm"], buckets=buckets, registry=registry)

        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(name, documentation, registry=registry, multiprocess_mode="mostrecent")

        self.ntpot = histogram(
            "pars_holdout_time_per_output_token_seconds",
            "NTPOT of requests that came in windows held out (fcfs), and in the others.",
            NTPOT_BUCKETS_S,
        )
        self.wait = histogram("pars_holdout_wait_seconds", "And their waits.", WAIT_BUCKETS_S)
        self._blocks = gauge("pars_holdout_blocks", "Blocks of windows that are compared.")
        self._gain = gauge(
            "pars_holdout_gain_ratio",
            "By how much the time per output token is shorter in order than in held-out windows.",
        )
        self._low = gauge("pars_holdout_gain_ratio_low", "Lower end of its 95% interval.")
        self._high = gauge("pars_holdout_gain_ratio_high", "Upper end of its 95% interval.")
        self.show([])

    def show(self, effects: list[Effect]) -> None:
        """What is known by now."""
        found = next((it for it in effects if it.measure == NTPOT), None)
        self._blocks.set(0 if found is None else found.num_blocks)
        told = (math.nan,) * 3 if found is None else (found.ratio, found.low, found.high)
        for metric, value in zip((self._gain, self._low, self._high), told, strict=True):
            metric.set(value)


class HoldoutWatch:
    """
    Compares held-out windows with the others. On one event loop; forgets all at a restart.

    Args:
        clock: Unix time, as arrivals are taken by.

    Attributes:
        effects: Of the order beside first come, first served, over the blocks that are over.
    """

    def __init__(
        self,
        schedule: Schedule,
        metrics: HoldoutMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.schedule = schedule
        self.effects: list[Effect] = []
        self._metrics = metrics
        self._clock = clock
        self._sums: dict[int, dict[str, Sums]] = {}  # by block and arm

    def ended(self, decision: Decision, outcome: Outcome) -> None:
        """A request was answered. Where its window had just begun, it says nothing of either."""
        arm, at_s, tokens = decision.arm, outcome.arrival_s, outcome.answer_tokens
        if arm is None or not tokens or not self.schedule.is_settled(at_s):
            return
        took_s = outcome.total_s or 0.0
        told = {
            NTPOT: took_s / tokens,
            E2E: took_s,
            f"{NTPOT}, expected {expected_label(outcome.expected_tokens)}": took_s / tokens,
        }
        self._metrics.ntpot.labels(arm).observe(took_s / tokens)
        if tells_wait(outcome) and outcome.wait_s is not None:
            told[WAIT] = outcome.wait_s
            self._metrics.wait.labels(arm).observe(outcome.wait_s)
        sums = self._sums.setdefault(self.schedule.block(at_s), {}).setdefault(arm, {})
        for measure, seconds in told.items():
            total, count = sums.get(measure, (0.0, 0.0))
            sums[measure] = (total + seconds, count + 1)

    def look(self) -> None:
        """Compare what is over; the oldest blocks are forgotten."""
        now = self.schedule.block(self._clock())
        for old in sorted(self._sums)[:-MOST_BLOCKS]:
            del self._sums[old]
        self.effects = report_of(
            [
                Window(block, arm, 0.0, sums)
                for block, by_arm in self._sums.items()
                if block < now
                for arm, sums in by_arm.items()
            ]
        )
        self._metrics.show(self.effects)

    def as_json(self) -> dict[str, Any]:
        """For the page: the share, and each measure's effect with its interval."""
        effects = [
            {
                "measure": it.measure,
                "num_blocks": it.num_blocks,
                "num_requests": it.num_requests,
                "fcfs_s": it.base_s,
                "ordered_s": it.mean_s,
                "ratio": it.ratio,
                "low": None if math.isnan(it.low) else it.low,
                "high": None if math.isnan(it.high) else it.high,
                "is_enough": it.num_blocks >= FEWEST_BLOCKS,
            }
            for it in self.effects
        ]
        return {"share": 1 / self.schedule.num_windows, "effects": effects}


def watch_of(
    schedule: Schedule | None, registry: CollectorRegistry, clock: Callable[[], float]
) -> HoldoutWatch | None:
    """Who compares the windows of a schedule; None: none are held out."""
    return None if schedule is None else HoldoutWatch(schedule, HoldoutMetrics(registry), clock)
