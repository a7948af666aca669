"""What the fake engine counts, under vLLM's names and with its labels, as a page for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LABELS = ("engine", "model_name")
BUCKETS_S = (
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    600.0,
)


class FakeMetrics:
    """One per engine."""

    def __init__(self, model: str) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, told: str) -> Counter:
            return Counter(name, told, LABELS, registry=registry).labels("0", model)

        def gauge(name: str, told: str) -> Gauge:
            return Gauge(name, told, LABELS, registry=registry).labels("0", model)

        def histogram(name: str, told: str) -> Histogram:
            histogram = Histogram(name, told, LABELS, buckets=BUCKETS_S, registry=registry)
            return histogram.labels("0", model)

        self._running = gauge("vllm:num_requests_running", "Requests in the batch.")
        self._waiting = gauge("vllm:num_requests_waiting", "Requests in the queue.")
        self.preemptions = counter("vllm:num_preemptions", "Requests put back into the queue.")
        self.generated = counter("vllm:generation_tokens", "Tokens made.")
        self._prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of ended requests.")
        success = Counter(
            "vllm:request_success",
            "Ended requests.",
            (*LABELS, "finished_reason"),
            registry=registry,
        )
        self._success = success.labels("0", model, "length")
        self.ttft = histogram("vllm:time_to_first_token_seconds", "From arrival to first token.")
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "From arrival to last token.")
        self._late = gauge("pars:step_most_late_seconds", "The latest that a step ended so far.")
        self._most_late_s = 0.0

    def ended(self, num_prompt_tokens: int) -> None:
        """Count a request that came to its end."""
        self._success.inc()
        self._prompt_tokens.inc(num_prompt_tokens)

    def note_late_s(self, late_s: float) -> None:
        """A step ended so late: this machine is too slow, or stood still."""
        if late_s > self._most_late_s:
            self._most_late_s = late_s
            self._late.set(late_s)

    def page(self, num_running: int, num_waiting: int) -> bytes:
        self._running.set(num_running)
        self._waiting.set(num_waiting)
        return generate_latest(self._registry)
