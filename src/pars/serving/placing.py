"""Where a request stands in the engine's queue: by what is expected of it, within the bound."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pars.outcomes import holdout
from pars.outcomes.decision import Decision
from pars.outcomes.metrics import ServeMetrics
from pars.outcomes.records import Outcome
from pars.scheduling.demand import Demand
from pars.scheduling.engines import Engine
from pars.scheduling.policies.fair_tenants import FairTenants
from pars.scheduling.policies.fcfs import FCFS
from pars.scheduling.policies.policy import Place, Policy
from pars.scheduling.policies.tenant_lane import TenantLane
from pars.scheduling.trust import Wish
from pars.serving.prediction import Prediction
from pars.serving.settings import Settings


class Placed(NamedTuple):
    """
    Attributes:
        priority: As the engine takes it.
        place: None: by nobody's policy.
        policy: Whose place that is.
        shadow_key: What it would have had as a key, were its policy not only thought of.
        arm: Of the holdout; None: there is none, or the request has no part in it.
    """

    priority: int
    place: Place | None = None
    policy: Policy | None = None
    shadow_key: int | None = None
    arm: str | None = None


class Placing:
    """
    The policy of one server process. On one event loop.

    Args:
        clock: Unix time, as arrivals are taken by.
    """

    def __init__(
        self, settings: Settings, metrics: ServeMetrics, clock: Callable[[], float] = time.time
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._arrival = FCFS(bits=settings.priority_bits)
        self._holdout = settings.holdout_schedule()
        self.go_by(settings.policy())

    def go_by(self, policy: Policy, *, is_shadow: bool = False) -> None:
        """
        Order what comes from now on by `policy`; what waits keeps its place.

        Args:
            is_shadow: Only in thought: requests get the key of their arrival.
        """
        self._policy, self._is_shadow = policy, is_shadow
        self._metrics.go_by(self.in_words)

    def share_by(self, weights: Mapping[str, float]) -> None:
        """Give tenants other weights from now on, if requests are ordered by tenant."""
        if isinstance(self._policy, FairTenants):
            self.go_by(self._policy.with_weights(weights), is_shadow=self._is_shadow)

    @property
    def lanes(self) -> list[TenantLane]:
        """Each tenant's own policy; none: requests are not ordered by tenant."""
        return list(self._policy.lanes.values()) if isinstance(self._policy, FairTenants) else []

    @property
    def in_words(self) -> str:
        """The bound on waiting, for people."""
        if self._is_shadow:
            return f"shadow: first come, first served; in thought {self._policy.in_words}"
        return self._policy.in_words

    @property
    def max_slowdown(self) -> float:
        """The bound as a ratio; infinite where there is none."""
        return self._policy.max_slowdown

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
        tenant: str | None = None,
    ) -> Placed:
        """The request's priority as the engine takes it, and its place by the policy."""
        if wish.priority is not None:
            return Placed(min(max(wish.priority, -(2**63)), 2**63 - 1))
        scale, arm = prediction.scale, self._arm(arrival_s)
        is_ordered = prediction.is_ordered and arm != holdout.FCFS
        if not is_ordered:  # the same for all: first come, first served
            demand = demand._replace(cost=scale.neutral_tokens)
        self._metrics.cost_tokens.observe(demand.cost)
        policy = self._policy.for_tenant(tenant)
        policy.is_preempting = engine.is_preempting
        place = policy.place(
            demand,
            arrival_s,
            long_tokens=scale.long_tokens,
            offset_s=wish.offset_s,
            is_ordered=is_ordered,
        )
        if (bucket_ratio := policy.bucket_ratio) is not None:
            self._metrics.place(is_express=bool(place.is_express), bucket_ratio=bucket_ratio)
        key, shadow_key = place.key, None
        if self._is_shadow:
            shadow_key = key
            key = self._arrival.place(demand, arrival_s, offset_s=wish.offset_s).key
        return Placed(-key if engine.larger_first else key, place, policy, shadow_key, arm)

    def _arm(self, arrival_s: float) -> str | None:
        """The holdout's; None: there is none, or nothing is in order that could be held out."""
        if self._holdout is None or self._is_shadow or isinstance(self._policy, FCFS):
            return None
        return self._holdout.arm(arrival_s)

    def began(self, decision: Decision) -> None:
        """The engine begins to answer."""
        if decision.place is not None and decision.policy is not None:
            decision.policy.began(decision.place)

    def ended(self, decision: Decision) -> None:
        """The request is done, or gone."""
        if decision.place is not None and decision.policy is not None:
            decision.policy.ended(decision.place, self._clock())

    def correct(self, decision: Decision, outcome: Outcome) -> None:
        """What an answer truly took is known."""
        policy, place = decision.policy, decision.place
        if policy is not None and place is not None and outcome.answer_tokens is not None:
            policy.correct(place, decision.true_work(outcome), outcome.answer_tokens)
