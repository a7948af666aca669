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
