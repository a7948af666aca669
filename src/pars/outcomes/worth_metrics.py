"""What requests waited and took, and what their order was worth, as Prometheus metrics."""

import math

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

WAIT_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
NTPOT_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SLOWDOWN_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 3, 5)
CLASSES = ("express", "ordinary", "none")  # none: there is no bound in shares
EXPECTED = ((64, "to_64"), (256, "to_256"), (1024, "to_1024"), (math.inf, "more"))
MOST_MODELS = 32  # with a label of their own; clients write what they like
OTHER_MODELS = "other"


def expected_label(tokens: float | None) -> str:
    """The name of the lengths among which an expected one is; None: nothing was expected."""
    return "unknown" if tokens is None else next(name for most, name in EXPECTED if tokens <= most)


def class_label(is_express: bool | None) -> str:
    """The name of a request's class; None: its policy has none."""
    return "none" if is_express is None else "express" if is_express else "ordinary"


class WorthMetrics:
    """What requests waited and took, and what the order was worth to them; one per registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        labels = ["class", "expected"]

        def histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, documentation, labels, buckets=buckets, registry=registry)

        self._wait = histogram(
            "pars_wait_seconds",
            "Until the engine began to answer, by class and expected tokens.",
            WAIT_BUCKETS_S,
        )
        self._ntpot = histogram(
            "pars_time_per_output_token_seconds",
            "End-to-end time by output tokens (NTPOT), by class and expected tokens.",
            NTPOT_BUCKETS_S,
        )
        self._e2e = histogram(
            "pars_request_seconds", "From arrival to the last byte of the answer.", WAIT_BUCKETS_S
        )
        self._by_model = Histogram(
            "pars_model_time_per_output_token_seconds",
            "End-to-end time by output tokens (NTPOT), by model; rare models are one.",
            ["model"],
            buckets=NTPOT_BUCKETS_S,
            registry=registry,
        )
        self._models: dict[str, Histogram] = {}
        self._groups: dict[tuple[str, str], tuple[Histogram, Histogram, Histogram]] = {}
        slowdown = Histogram(
            "pars_slowdown_ratio",
            "A request's wait by the one that first come, first served would have made of it, each"
            " with a second added.",
            ["class"],
            buckets=SLOWDOWN_BUCKETS,
            registry=registry,
        )
        saved = Counter(
            "pars_wait_saved_seconds_total",
            "Seconds that requests waited less than first come, first served would have made them.",
            ["class"],
            registry=registry,
        )
        added = Counter(
            "pars_wait_added_seconds_total", "And more, of others.", ["class"], registry=registry
        )
        self._by_class = {
            it: (slowdown.labels(it), saved.labels(it), added.labels(it)) for it in CLASSES
        }
        self._exceeded = Counter(
            "pars_bound_exceeded_total",
            "Requests that waited longer than the bound says.",
            registry=registry,
        )

        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(name, documentation, registry=registry, multiprocess_mode="mostrecent")

        self._gain = gauge(
            "pars_gain_ratio",
            "By how much the order shortened the mean time per output token in the last hour.",
        )
        self._wait_gain = gauge("pars_wait_gain_ratio", "And the mean wait.")
        self._waiting = gauge("pars_requests_waiting", "That the engine has not begun to answer.")
        self._longest = gauge("pars_longest_waiting_seconds", "How long one of them waits by now.")
        self._gain.set(math.nan)
        self._wait_gain.set(math.nan)

    def ended(
        self,
        class_: str,
        expected_tokens: float | None,
        model: str,
        *,
        wait_s: float | None,
        e2e_s: float,
        tokens: int,
        request_id: str | None = None,
    ) -> None:
        """A request ended; `wait_s` None: not known; `request_id` is shown as an exemplar."""
        shown = {"request_id": request_id[:64]} if request_id else None
        wait, e2e, ntpot = self._group(class_, expected_label(expected_tokens))
        if wait_s is not None:
            wait.observe(wait_s, shown)
        e2e.observe(e2e_s, shown)
        ntpot.observe(e2e_s / tokens, shown)
        self._model(model).observe(e2e_s / tokens, shown)

    def _group(self, class_: str, expected: str) -> tuple[Histogram, Histogram, Histogram]:
        """Wait, end to end and NTPOT of one class and expected length; labels() costs most."""
        if (found := self._groups.get((class_, expected))) is None:
            one, two, three = (
                it.labels(class_, expected) for it in (self._wait, self._e2e, self._ntpot)
            )
            found = self._groups[class_, expected] = (one, two, three)
        return found

    def _model(self, name: str) -> Histogram:
        """Of a model with a label of its own, while there are labels left."""
        if name not in self._models and len(self._models) >= MOST_MODELS:
            name = OTHER_MODELS
        if (found := self._models.get(name)) is None:
            found = self._models[name] = self._by_model.labels(name)
        return found

    def compared(
        self, class_: str, wait_s: float, fcfs_wait_s: float, *, is_exceeded: bool
    ) -> None:
        """What first come, first served would have made of a request became known."""
        slowdown, saved, added = self._by_class[class_]
        slowdown.observe((wait_s + 1) / (fcfs_wait_s + 1))
        saved_s = fcfs_wait_s - wait_s
        (saved if saved_s > 0 else added).inc(abs(saved_s))
        self._exceeded.inc(is_exceeded)

    def show(self, ntpot_ratio: float, wait_ratio: float) -> None:
        """The gain of the last hour; nan: not known."""
        self._gain.set(ntpot_ratio)
        self._wait_gain.set(wait_ratio)

    def queue(self, num_waiting: int, longest_s: float) -> None:
        """Who waits now."""
        self._waiting.set(num_waiting)
        self._longest.set(longest_s)
