"""
Says on OpenTelemetry's spans what was made of a request: expected tokens, class, wait.

    spans = Spans()                 # needs opentelemetry-api; sets attributes on the current span
    with spans.around(headers):     # a server span of our own, where there is no current one
        ...

Only through the standard API: where spans go is set up by whoever runs the process, and without
that nothing happens. How many seconds a request gained is not among them: it is known only once
those that it passed have begun, and by then its span has ended.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pars.errors import MissingExtra
from pars.outcomes.decision import Decision
from pars.outcomes.records import Outcome
from pars.outcomes.worth_metrics import class_label

SPAN_NAME = "pars gateway"
MOST_REQUESTS = 20_000  # whose spans are held


class Spans:
    """
    One server process's. On one event loop.

    Raises:
        MissingExtra: opentelemetry-api is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            raise MissingExtra("otel", "otel") from None
        self._trace, self._propagate = trace, propagate
        self._tracer = trace.get_tracer("pars")
        self._open: dict[int, Any] = {}  # by the decision's id

    @contextmanager
    def around(self, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[None]:
        """Open a span for a request, its parent the caller's, unless one is current."""
        if self._trace.get_current_span().is_recording():
            yield
            return
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        parent, kind = self._propagate.extract(carrier), self._trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(SPAN_NAME, context=parent, kind=kind):
            yield

    def arrived(self, decision: Decision) -> None:
        """A request goes on to the engine."""
        span, outcome, place = self._trace.get_current_span(), decision.outcome, decision.place
        if not span.is_recording():
            return
        if len(self._open) >= MOST_REQUESTS:
            self._open.pop(next(iter(self._open)))
        self._open[id(decision)] = span
        told: dict[str, Any] = {
            "pars.decision": outcome.decision,
            "pars.class": class_label(None if place is None else place.is_express),
            "pars.priority": decision.priority,
        }
        if outcome.expected_tokens is not None:
            told["pars.expected_tokens"] = outcome.expected_tokens
        if decision.tenant is not None:
            told["pars.tenant"] = decision.tenant
        span.set_attributes(told)

    def began(self, decision: Decision, wait_s: float, num_passed: int) -> None:
        """The engine begins to answer it, before so many that came earlier and wait still."""
        if (span := self._open.get(id(decision))) is not None and span.is_recording():
            span.set_attributes({"pars.wait_s": wait_s, "pars.requests_passed": num_passed})

    def ended(self, decision: Decision, outcome: Outcome) -> None:
        """It ended; where that is told late, its span has ended too."""
        span = self._open.pop(id(decision), None)
        if span is not None and span.is_recording() and outcome.answer_tokens is not None:
            span.set_attribute("pars.answer_tokens", outcome.answer_tokens)
