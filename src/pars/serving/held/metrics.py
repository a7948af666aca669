"""What the held queue shows of itself, for Prometheus."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pars.serving.held.queue import HeldQueue

WAIT_BUCKETS_S = (0.001, 0.01, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class HoldMetrics:
    """One per registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.refused = Counter(
            "pars_held_refused_total",
            "Requests that found the held queue full, or waited in it for too long.",
            ["reason"],
            registry=registry,
        )
        for reason in ("full", "too_long"):  # so that the first one is seen as a rise
            self.refused.labels(reason)
        self.sent_back = Counter(
            "pars_held_sent_back_total",
            "Times that the engine had no room for a request, which went back to its place.",
            registry=registry,
        )
        self.moved = Counter(
            "pars_held_moved_total",
            "Times that a server failed a request, which went to another.",
            registry=registry,
        )
        self.waits = Histogram(
            "pars_held_seconds",
            "Time that a request was held before it went to the engine.",
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self._waiting = Gauge("pars_held_requests", "That wait here.", registry=registry)
        labels = ["upstream"]
        self._slots = Gauge(
            "pars_engine_slots",
            "Requests that the engine answers at once, as far as is known; nan: it is not.",
            labels,
            registry=registry,
        )
        self._sent = Gauge(
            "pars_engine_requests",
            "Requests there now, of those that may be held.",
            labels,
            registry=registry,
        )
        self._is_well = Gauge(
            "pars_engine_up",
            "1: requests go there; 0: not as long as another is well.",
            labels,
            registry=registry,
        )

    def show(self, queue: HeldQueue) -> None:
        """What it is like now."""
        self._waiting.set(queue.num_waiting)
        for number, replica in enumerate(queue.replicas, 1):  # not its URL: all may read this page
            self._slots.labels(str(number)).set(replica.slots.num or math.nan)
            self._sent.labels(str(number)).set(replica.slots.num_sent)
            self._is_well.labels(str(number)).set(not replica.problem)
