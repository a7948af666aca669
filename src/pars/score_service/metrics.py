"""What the score service counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ScoreMetrics:
    """The Prometheus metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "pars_requests",
            "Answered HTTP requests",
            ["path", "status"],
            registry=self.registry,
        )
        self._by_path_and_status: dict[tuple[str, int], Counter] = {}
        self.prompts = Counter("pars_prompts_scored", "Scored prompts", registry=self.registry)
        self.batch_prompts = Histogram(
            "pars_batch_prompts",
            "Prompts a batch",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.scoring_seconds = Histogram(
            "pars_scoring_seconds",
            "Seconds the ranker took for a batch",
            buckets=(1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
            registry=self.registry,
        )
        self.queued_prompts = Gauge(
            "pars_queued_prompts", "Prompts that wait", registry=self.registry
        )
        self.rejected = Counter(
            "pars_rejected", "Calls refused because the queue was full", registry=self.registry
        )
        self.cancelled = Counter(
            "pars_cancelled",
            "Calls dropped because the client left",
            registry=self.registry,
        )

    def observe_batch(self, num_prompts: int, scoring_s: float) -> None:
        self.prompts.inc(num_prompts)
        self.batch_prompts.observe(num_prompts)
        self.scoring_seconds.observe(scoring_s)

    def count_answer(self, path: str, status: int) -> None:
        """Count a request; `path` must be one of few, since each makes a time series."""
        counter = self._by_path_and_status.get((path, status))
        if counter is None:  # labels() costs more than inc()
            counter = self._requests.labels(path, str(status))
            self._by_path_and_status[path, status] = counter
        counter.inc()
