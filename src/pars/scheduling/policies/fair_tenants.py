"""
Tenants share an engine by weight; inside each, the shortest go first within the bound.

    policy = FairTenants({"search": 3.0, "batch": 1.0}, MaxSlowdown(1.5))
    lane = policy.for_tenant("search")          # a policy of its own, by the same clock
    place = lane.place(demand, arrival_s)

Start-time fair queueing (Goyal, Vin, Cheng 1996, doi:10.1145/248156.248171) over predicted work,
as one static integer, so that an engine's stock priority heap is enough:

    start  = max(virtual time - credit, the tenant's last finish)     the key
    finish = start + work / weight                                    where its next request starts

A tenant that sends more than its share queues behind itself: its starts run ahead of virtual time,
which is where the others come in. Work is charged as predicted, at arrival, and corrected by the
truth when the answer ends. An express request stands just before the first of its own tenant's that
wait, so that it passes nobody else. These pay for it beforehand: each is charged for what it stands
for, which is its own work and the tenant's express work beside it, as seen.
"""

import math
from collections.abc import Mapping
from typing import Self

from pars.errors import ParsError
from pars.scheduling.demand import Demand
from pars.scheduling.keys import Keys
from pars.scheduling.policies.max_slowdown import MaxSlowdown
from pars.scheduling.policies.policy import LONG_TOKENS, Place, Policy
from pars.scheduling.policies.tenant_lane import SharedQueue, TenantLane
from pars.scheduling.policies.virtual_time import VirtualTime

OTHERS = "other"  # the tenant of everybody whom the file does not name


class FairTenants(Policy):
    """
    Tenants by weight: start-time fair queueing over predicted work, express inside each.

        key = max(virtual time - credit, the tenant's last finish)     ordinary
        key = just before the first of its tenant's that wait          express, shortest first

    It needs to be told when requests begin and end, as `MaxSlowdown`. On one thread.

    Bound: of two tenants that both have requests waiting, the work that each gets by its weight
    differs by no more than a constant: a largest request of each, the work under way, and the
    express buckets. Inside a tenant it is that of `inside`, against first come, first served at
    the tenant's share. Source: start-time fair queueing (Goyal, Vin, Cheng 1996,
    doi:10.1145/248156.248171); over predicted work it is to a static key what VTC (Sheng et al.,
    OSDI 2024) is to an engine's own scheduler.

    Several processes before one engine each keep their own clock. It is real time whenever nobody
    waits there; while somebody does, each is fair over the requests that it sees.

    Args:
        weights: By tenant, above 0. Whoever is not named shares the tenant "other", of weight 1
            unless it is among them.
        inside: What orders each tenant's own requests: one of them each.
        bits: Of the engine's integer: 64, or 32.

    Attributes:
        weights: By tenant, "other" among them.
        lanes: Each tenant's own policy.

    Raises:
        ParsError: A weight is not above 0, or `bits` is neither.
    """

    hears_engine = True

    def __init__(
        self, weights: Mapping[str, float], inside: MaxSlowdown, *, bits: int = 64
    ) -> None:
        self.weights = {OTHERS: 1.0, **weights}
        for name, weight in self.weights.items():
            if not 0 < weight < math.inf:
                raise ParsError(f"weights: that of {name} must be above 0, not {weight}")
        self.time = VirtualTime()
        self._bits = bits
        self._inside = inside
        whole = sum(self.weights.values())
        queue = SharedQueue(self.time, Keys(bits))
        self.lanes = {
            name: TenantLane(queue, name, weight / whole, inside.fresh())
            for name, weight in self.weights.items()
        }

    def __repr__(self) -> str:
        return f"FairTenants({self.weights}, {self._inside!r})"

    def fresh(self) -> Self:
        return self.with_weights(self.weights)

    def with_weights(self, weights: Mapping[str, float]) -> Self:
        """The same for other tenants, or by other weights; nothing is known of it yet."""
        return type(self)(weights, self._inside, bits=self._bits)

    def for_tenant(self, tenant: str | None) -> "TenantLane":
        """That tenant's own policy; of nobody known, that of the others."""
        return self.lanes.get(tenant or OTHERS, self.lanes[OTHERS])

    def place(
        self,
        demand: Demand,
        arrival_s: float,
        *,
        long_tokens: float = LONG_TOKENS,
        offset_s: float = 0.0,
        is_ordered: bool = True,
    ) -> Place:
        """The place of a request of nobody known, as this policy hears of it."""
        return self.lanes[OTHERS].place(
            demand, arrival_s, long_tokens=long_tokens, offset_s=offset_s, is_ordered=is_ordered
        )

    def began(self, place: Place) -> None:
        self.lanes[OTHERS].began(place)

    def ended(self, place: Place, now_s: float) -> None:
        self.lanes[OTHERS].ended(place, now_s)

    def correct(self, place: Place, true_work: float, answers: float | None = None) -> None:
        self.lanes[OTHERS].correct(place, true_work, answers)

    @property
    def in_words(self) -> str:
        return f"{len(self.lanes)} tenants by weight; inside each {self._inside.in_words}"

    @property
    def suffix(self) -> str:
        return f"{self._inside.suffix}, by tenant"

    @property
    def bucket_ratio(self) -> float | None:
        """Of the tenant whose express bucket is emptiest."""
        return min(lane.bucket_ratio for lane in self.lanes.values())
