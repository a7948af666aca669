"""What each tenant got and how long it waited: as metrics, and for the page."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from pars.outcomes.decision import Decision
from pars.outcomes.queue_order import tells_wait
from pars.outcomes.records import Outcome
from pars.outcomes.worth_metrics import NTPOT_BUCKETS_S, WAIT_BUCKETS_S
from pars.scheduling.policies.fair_tenants import OTHERS
from pars.scheduling.policies.tenant_lane import TenantLane

NUM_MINUTES = 10  # that the page looks back
MOST_LABELS = 64  # tenants with a label of their own; the rest have that of "other"


class TenantMetrics:
    """What Prometheus sees of tenants; one per registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, documentation, ["tenant"], buckets=buckets, registry=registry)

        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(
                name,
                documentation,
                ["tenant"],
                multiprocess_mode="mostrecent",
                registry=registry,
            )

        self._wait = histogram(
            "pars_tenant_wait_seconds", "Until the engine began to answer.", WAIT_BUCKETS_S
        )
        self._ntpot = histogram(
            "pars_tenant_time_per_output_token_seconds",
            "End-to-end time by output tokens (NTPOT).",
            NTPOT_BUCKETS_S,
        )
        self._work = Counter(
            "pars_tenant_work_tokens_total",
            "Tokens of prompts and answers, of requests that were answered.",
            ["tenant"],
            registry=registry,
        )
        self._share = gauge("pars_tenant_share_ratio", "Of the engine, by weight.")
        self._waiting = gauge(
            "pars_tenant_requests_waiting", "That the engine has not begun to answer."
        )
        self._labels = {OTHERS}
        # labels() costs more than all else here.
        self._answered: dict[str, tuple[Histogram, Histogram, Counter]] = {}
        self._present: dict[str, tuple[Gauge, Gauge]] = {}

    def ended(self, tenant: str, outcome: Outcome, work: float) -> None:
        """A request was answered."""
        label = tenant if self._has_label(tenant) else OTHERS
        if (found := self._answered.get(label)) is None:
            found = (self._wait.labels(label), self._ntpot.labels(label), self._work.labels(label))
            self._answered[label] = found
        wait, ntpot, done = found
        if tells_wait(outcome) and outcome.wait_s is not None:
            wait.observe(outcome.wait_s)
        if outcome.answer_tokens:
            ntpot.observe((outcome.total_s or 0.0) / outcome.answer_tokens)
        done.inc(work)

    def waits(self, lane: TenantLane) -> None:
        """How many of a tenant's requests wait now."""
        if not self._has_label(lane.name):
            return
        if (found := self._present.get(lane.name)) is None:
            found = (self._share.labels(lane.name), self._waiting.labels(lane.name))
            self._present[lane.name] = found
        share, waiting = found
        share.set(lane.share)
        waiting.set(lane.num_waiting)

    def _has_label(self, tenant: str) -> bool:
        if tenant not in self._labels and len(self._labels) < MOST_LABELS:
            self._labels.add(tenant)
        return tenant in self._labels


@dataclass(slots=True)
class TenantMinute:
    """Sums over the requests of a tenant that were answered in one minute; work in tokens."""

    at: int
    num_requests: int = 0
    work: float = 0.0
    wait_s: float = 0.0
    longest_s: float = 0.0


class TenantWatch:
    """
    Follows what tenants get. On one event loop.

    Args:
        clock: Unix time.
    """

    def __init__(self, metrics: TenantMetrics, clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._clock = clock
        self._minutes: dict[str, deque[TenantMinute]] = {}

    def moved(self, decision: Decision) -> None:
        """A request came, began or is gone."""
        if isinstance(decision.policy, TenantLane):
            self._metrics.waits(decision.policy)

    def ended(self, decision: Decision, outcome: Outcome) -> None:
        """A request ended; one that failed got nothing."""
        if decision.tenant is None or not outcome.is_answered:
            return
        lane = decision.policy  # under a policy without tenants they are counted all the same
        tenant = lane.name if isinstance(lane, TenantLane) else decision.tenant
        work, wait_s = decision.true_work(outcome), outcome.wait_s or 0.0
        self._metrics.ended(tenant, outcome, work)
        minutes = self._minutes.setdefault(tenant, deque(maxlen=NUM_MINUTES))
        now = int(self._clock() // 60)
        if not minutes or minutes[-1].at != now:
            minutes.append(TenantMinute(now))
        minute = minutes[-1]
        minute.num_requests += 1
        minute.work += work
        minute.wait_s += wait_s
        minute.longest_s = max(minute.longest_s, wait_s)

    def as_json(self, lanes: Iterable[TenantLane]) -> list[dict[str, Any]]:
        """For the page: each tenant's last ten minutes, the largest share first."""
        first = int(self._clock() // 60) - NUM_MINUTES + 1
        rows: list[dict[str, Any]] = []
        for lane in sorted(lanes, key=lambda it: -it.share):
            minutes = [it for it in self._minutes.get(lane.name, ()) if it.at >= first]
            num = sum(it.num_requests for it in minutes)
            rows.append(
                {
                    "tenant": lane.name,
                    "share": lane.share,
                    "num_waiting": lane.num_waiting,
                    "num_requests": num,
                    "work": sum(it.work for it in minutes),
                    "wait_s": sum(it.wait_s for it in minutes) / num if num else None,
                    "longest_wait_s": max((it.longest_s for it in minutes), default=None),
                }
            )
        whole = sum(row["work"] for row in rows)
        return [row | {"work_share": row["work"] / whole if whole else None} for row in rows]
