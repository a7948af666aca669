"""Where a request stands in the engine's queue: by what is expected of it, within the bound."""

import time
from collections.abc import Callable

from pars.outcomes.decision import Decision
from pars.outcomes.metrics import ServeMetrics
from pars.outcomes.records import Outcome
from pars.scheduling.engines import Engine
from pars.scheduling.priority import EPOCH_S, MAX_OFFSET_S, Demand
from pars.scheduling.slowdown import Place
from pars.scheduling.trust import Wish
from pars.serving.prediction import Prediction
from pars.serving.settings import Settings


class Placing:
    """
    The policy of one server process. On one event loop.

    Args:
        clock: Unix time, as arrivals are taken by.
    """

    def __init__(
        self, settings: Settings, metrics: ServeMetrics, clock: Callable[[], float] = time.time
    ) -> None:
        self._slowdown = settings.slowdown()
        self._policies = {way: settings.policy(larger_first=way) for way in (False, True)}
        self._metrics = metrics
        self._clock = clock

    def place(
        self,
        engine: Engine,
        demand: Demand,
        prediction: Prediction,
        wish: Wish,
        arrival_s: float,
    ) -> tuple[int, Place | None]:
        """The request's priority as the engine takes it, and its place towards the bound."""
        if wish.priority is not None:
            return min(max(wish.priority, -(2**63)), 2**63 - 1), None
        scale, policy = prediction.scale, self._policies[engine.larger_first]
        cost, work = demand
        if not prediction.is_ordered:
            cost = scale.neutral_tokens  # the same for all: first come, first served
        self._metrics.cost_tokens.observe(cost)
        if self._slowdown is None:
            long_tokens = scale.long_tokens
            key = policy.key(cost, arrival_s, long_tokens=long_tokens, offset_s=wish.offset_s)
            return key, None
        place = self._slowdown.place(cost, work, is_ordered=prediction.is_ordered)
        since_s = self._slowdown.key_s(place, cost, arrival_s - EPOCH_S)
        bucket_ratio = self._slowdown.bucket_ratio
        self._metrics.place(is_express=place.is_express, bucket_ratio=bucket_ratio)
        offset_s = min(max(wish.offset_s, -MAX_OFFSET_S), MAX_OFFSET_S)
        return policy.key_at(since_s + offset_s), place

    def began(self, decision: Decision) -> None:
        """The engine begins to answer."""
        if self._slowdown is not None and decision.place is not None:
            self._slowdown.began(decision.place)

    def ended(self, decision: Decision) -> None:
        """The request is done, or gone."""
        if self._slowdown is not None and decision.place is not None:
            self._slowdown.ended(decision.place, self._clock())

    def correct(self, decision: Decision, outcome: Outcome) -> None:
        """What an answer truly took is known."""
        is_known = outcome.answer_tokens is not None
        if self._slowdown is not None and decision.place is not None and is_known:
            self._slowdown.correct(decision.place, decision.true_work(outcome))
