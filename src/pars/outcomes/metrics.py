"""What the middleware counts, as Prometheus metrics; inside vLLM they appear on its /metrics."""

import math
from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric

from pars.outcomes.answers import KNOWN, UNKNOWN
from pars.ranking.intervals import Estimate

# A priority was chosen from the prompt, or there was a good reason not to.
DECIDED = ("scored", "no_text", "trusted")
# The request went on with a neutral priority.
FAILED_OPEN = (
    "learning",
    "unordered",
    "drifted",
    "over_budget",
    "queue_full",
    "scorer_failed",
    "no_ranker",
    "undecodable",
    "too_large",
    "buffers_full",
    "client_left",
    "error",
)
DECISION_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0)
TOKEN_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384)


class Exposed:
    """
    A registry as a page shows it: without a `_created` series beside each counter and histogram.

    Prometheus makes nothing of them, and they are a third of the page. prometheus_client's own
    switch is the whole process's, which may be another's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Each family of metrics."""
        for family in self._registry.collect():
            family.samples = [it for it in family.samples if not it.name.endswith("_created")]
            yield family


class ServeMetrics:
    """One per registry; the default is the one that vLLM serves on /metrics."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        decisions = Counter(
            "pars_decisions_total",
            "Generation requests, by how their priority came about.",
            ["outcome"],
            registry=registry,
        )
        self._decisions = {name: decisions.labels(name) for name in DECIDED + FAILED_OPEN}
        self.decision_seconds = Histogram(
            "pars_decision_seconds",
            "Time added to a request between its last body byte and its passing on.",
            buckets=DECISION_BUCKETS_S,
            registry=registry,
        )
        self.cost_tokens = Histogram(
            "pars_expected_cost_tokens",
            "Expected cost of a request, in answer tokens.",
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )
        self.reloads = Counter(
            "pars_ranker_loads_total", "Rankers loaded.", ["result"], registry=registry
        )
        self.priority_scheduling = Gauge(
            "pars_engine_schedules_by_priority",
            "1: the engine orders its queue by priority; 0: it ignores or refuses it; -1: not"
            " known.",
            multiprocess_mode="min",
            registry=registry,
        )
        self.priority_scheduling.set(-1)
        self.refusals = Counter(
            "pars_priority_refusals_total",
            "Requests whose priority the engine refused, and which were repeated without it.",
            registry=registry,
        )

        self._ranker = Gauge(
            "pars_ranker_info",
            "1 for the ranker that serves: what it is, and a fingerprint of its files.",
            ["model", "ranker"],
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._served: tuple[str, str] | None = None
        self._gone_by: str | None = None
        self._policy = Gauge(
            "pars_policy_info",
            "1 for the bound on waiting that requests are ordered by.",
            ["policy"],
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        classes = Counter(
            "pars_requests_by_class_total",
            "Requests by the class that the bound on waiting gave them.",
            ["class"],
            registry=registry,
        )
        self._classes = {True: classes.labels("express"), False: classes.labels("ordinary")}
        self._bucket = Gauge(
            "pars_express_bucket_ratio",
            "Level of the express bucket, 1: full; 0 and less: nobody goes first.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )

    def go_by(self, policy: str) -> None:
        """The policy that requests are ordered by."""
        if self._gone_by is not None:
            self._policy.labels(self._gone_by).set(0)
        self._gone_by = policy
        self._policy.labels(policy).set(1)

    def place(self, *, is_express: bool, bucket_ratio: float) -> None:
        """A request got its class; `bucket_ratio` is the bucket's level, of its capacity."""
        self._classes[is_express].inc()
        self._bucket.set(bucket_ratio)

    def count(self, outcome: str) -> None:
        """Count one request with the outcome, one of DECIDED or FAILED_OPEN."""
        self._decisions[outcome].inc()

    def serve(self, model: str, ranker: str) -> None:
        """Another ranker serves; `ranker` is its fingerprint."""
        if self._served is not None:
            self._ranker.labels(*self._served).set(0)
        self._served = (model, ranker)
        self._ranker.labels(*self._served).set(1)


# Outcomes that were not written.
DROPPED = ("queue_full", "disk_full", "write_failed", "shutdown", "error")
# Prompts that were not written though their outcomes may have been.
DROPPED_PROMPTS = ("redacted", "redact_failed", "disk_full", "write_failed")


class OutcomeMetrics:
    """What those count that make outcomes and write them; one per registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        answers = Counter(
            "pars_answers_total",
            "Generation requests that ended, by how the answer's length came to be known or not.",
            ["length"],
            registry=registry,
        )
        self._answers = {known: answers.labels(known) for known in KNOWN + UNKNOWN}
        self.clock_jumps = Counter(
            "pars_clock_jumps_total",
            "Requests in whose time the wall clock was set.",
            registry=registry,
        )
        self.written = Counter(
            "pars_outcomes_written_total", "Outcomes written.", registry=registry
        )
        dropped = Counter(
            "pars_outcomes_dropped_total", "Outcomes not written.", ["reason"], registry=registry
        )
        prompts = Counter(
            "pars_outcome_prompts_dropped_total",
            "Prompts not written beside their outcomes.",
            ["reason"],
            registry=registry,
        )
        self._dropped = {reason: dropped.labels(reason) for reason in DROPPED}
        self._dropped_prompts = {reason: prompts.labels(reason) for reason in DROPPED_PROMPTS}

    def answered(self, known: str) -> None:
        """Count a request that ended; `known` is one of KNOWN or UNKNOWN of outcomes.answers."""
        self._answers[known].inc()

    def dropped(self, reason: str) -> None:
        """Count an outcome that was not written; `reason` is one of DROPPED."""
        self._dropped[reason].inc()

    def dropped_prompt(self, reason: str) -> None:
        """Count a prompt that was not written; `reason` is one of DROPPED_PROMPTS."""
        self._dropped_prompts[reason].inc()


class LearnMetrics:
    """What the ranker that learns while it serves is worth by now; one per registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(name, documentation, registry=registry, multiprocess_mode="mostrecent")

        self.learned = Counter(
            "pars_answers_learned_total", "Answers learned from.", registry=registry
        )
        self.failures = Counter(
            "pars_learning_failures_total",
            "Times that what was learned could not be kept or read.",
            registry=registry,
        )
        self._tau_b = gauge(
            "pars_online_tau_b", "Between what was predicted before an answer and its length."
        )
        self._tau_b_low = gauge("pars_online_tau_b_low", "Lower end of its 95% interval.")
        self._tau_b_high = gauge("pars_online_tau_b_high", "Upper end of its 95% interval.")
        self._coverage = gauge(
            "pars_online_interval_coverage", "Share of answers inside their 80% interval."
        )
        self._in_use = gauge(
            "pars_online_in_use",
            "1: the queue is ordered by what was learned; 0: not yet, or no more.",
        )

    def show(self, tau_b: Estimate, coverage: float, *, is_in_use: bool) -> None:
        """Show the last judgement; nan where there is none."""
        self._tau_b.set(tau_b.value)
        self._tau_b_low.set(tau_b.low)
        self._tau_b_high.set(tau_b.high)
        self._coverage.set(coverage)
        self._in_use.set(is_in_use)


class DriftMetrics:
    """How well the ranker orders, by the answers that came; one per registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(name, documentation, registry=registry, multiprocess_mode="mostrecent")

        self.tau_b = gauge(
            "pars_ranker_tau_b", "Between expected and actual answer tokens, over a window."
        )
        self.tau_b_low = gauge("pars_ranker_tau_b_low", "Lower end of its 95% interval.")
        self.tau_b_high = gauge("pars_ranker_tau_b_high", "Upper end of its 95% interval.")
        self.in_use = gauge(
            "pars_ranker_in_use", "1: the ranker orders the queue; 0: none does, or it does harm."
        )
        self.show(None, is_in_use=False)

    def show(self, tau_b: Estimate | None, *, is_in_use: bool) -> None:
        """Show the last judgement; without one, or without a value, tau-b is nan."""
        self.tau_b.set(math.nan if tau_b is None else tau_b.value)
        self.tau_b_low.set(math.nan if tau_b is None else tau_b.low)
        self.tau_b_high.set(math.nan if tau_b is None else tau_b.high)
        self.in_use.set(is_in_use)
