"""Where a request stands in the engine's queue: by what is expected of it, within the bound."""

import time
from collections.abc import Callable

from pars.outcomes.decision import Decision
from pars.outcomes.metrics import ServeMetrics
from pars.outcomes.records import Outcome
from pars.scheduling.demand import Demand
from pars.scheduling.engines import Engine
from pars.scheduling.policies.policy import Place
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
        self._policy = settings.policy()
        self._metrics = metrics
        self._clock = clock

    @property
    def bucket_ratio(self) -> float | None:
        """The express bucket's level, of its capacity; None: there is none."""
        return self._policy.bucket_ratio

    def place(
        self,
        engine: Engine,
        demand: Demand,
        prediction: Prediction,
        wish: Wish,
        arrival_s: float,
    ) -> tuple[int, Place | None]:
        """The request's priority as the engine takes it, and its place by the policy."""
        if wish.priority is not None:
            return min(max(wish.priority, -(2**63)), 2**63 - 1), None
        scale = prediction.scale
        if not prediction.is_ordered:  # the same for all: first come, first served
            demand = demand._replace(cost=scale.neutral_tokens)
        self._metrics.cost_tokens.observe(demand.cost)
        place = self._policy.place(
            demand,
            arrival_s,
            long_tokens=scale.long_tokens,
            offset_s=wish.offset_s,
            is_ordered=prediction.is_ordered,
        )
        if (bucket_ratio := self._policy.bucket_ratio) is not None:
            self._metrics.place(is_express=bool(place.is_express), bucket_ratio=bucket_ratio)
        return (-place.key if engine.larger_first else place.key), place

    def began(self, decision: Decision) -> None:
        """The engine begins to answer."""
        if decision.place is not None:
            self._policy.began(decision.place)

    def ended(self, decision: Decision) -> None:
        """The request is done, or gone."""
        if decision.place is not None:
            self._policy.ended(decision.place, self._clock())

    def correct(self, decision: Decision, outcome: Outcome) -> None:
        """What an answer truly took is known."""
        if decision.place is not None and outcome.answer_tokens is not None:
            self._policy.correct(decision.place, decision.true_work(outcome))
