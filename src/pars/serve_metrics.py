"""What the middleware counts, as Prometheus metrics; inside vLLM they appear on its /metrics."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

# A priority was chosen from the prompt, or there was a good reason not to.
DECIDED = ("scored", "no_text", "trusted")
# The request went on with a neutral priority.
FAILED_OPEN = (
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
            "1: the engine orders its queue by priority; 0: it ignores it; -1: not known.",
            multiprocess_mode="min",
            registry=registry,
        )
        self.priority_scheduling.set(-1)

    def count(self, outcome: str) -> None:
        """Count one request with the outcome, one of DECIDED or FAILED_OPEN."""
        self._decisions[outcome].inc()


# Outcomes that were not written.
DROPPED = ("queue_full", "disk_full", "write_failed", "shutdown")
# Prompts that were not written though their outcomes may have been.
DROPPED_PROMPTS = ("redacted", "redact_failed", "disk_full", "write_failed")


class OutcomeMetrics:
    """What the writer of outcomes counts; one per registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
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

    def dropped(self, reason: str) -> None:
        """Count an outcome that was not written; `reason` is one of DROPPED."""
        self._dropped[reason].inc()

    def dropped_prompt(self, reason: str) -> None:
        """Count a prompt that was not written; `reason` is one of DROPPED_PROMPTS."""
        self._dropped_prompts[reason].inc()
