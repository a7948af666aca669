"""What was expected of a request, its class and its wait, on OpenTelemetry's spans."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateways import gateway_to
from pars.cli.serve import setting_option
from pars.errors import ParsError
from pars.outcomes.spans import Spans
from pars.serving.gateway import Gateway
from pars.serving.settings import Settings

from fake_engine import FakeEngine
from serving import eventually

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=t61rcWkgMzE,other=1"}
BODY = {"prompt": "x" * 12, "max_tokens": 40, "stream": True}


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """The process's one provider, as whoever runs it sets it up."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    return kept


@pytest.fixture(autouse=True)
def clear(exporter: InMemorySpanExporter) -> None:
    exporter.clear()


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[tuple[str, Gateway, FakeEngine]]:
    engine = FakeEngine(num_slots=1, token_s=0.001)
    chosen = {"state": "none", "learn": "off", **settings}
    with engine.served() as to, gateway_to(to, folder, settings=chosen) as (url, app):
        yield url, app, engine


def ask(url: str, **headers: str) -> None:
    post = httpx.post(f"{url}/v1/completions", json=BODY, headers=headers, trust_env=False)
    post.raise_for_status()


def test_a_span_says_what_was_expected_and_how_long_it_waited(
    tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    """The ranker expects a token a character, so twelve; the caller's span is the parent."""
    with served(tmp_path, otel=True) as (url, _, _):
        ask(url, **TRACED)
        eventually(lambda: len(exporter.get_finished_spans()) == 1)
    [span] = exporter.get_finished_spans()
    told = dict(span.attributes or {})

    assert span.name == "pars gateway"
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == f"{TRACE}-{PARENT}"
    assert told["pars.decision"] == "scored"
    assert told["pars.expected_tokens"] == pytest.approx(12.0)
    assert told["pars.class"] == "none"  # under a bound in seconds there are no classes
    assert isinstance(told["pars.priority"], int)
    assert told["pars.requests_passed"] == 0
    assert told["pars.answer_tokens"] == 40
    assert 0 < float(str(told["pars.wait_s"])) < 20


def test_it_says_how_many_it_passed() -> None:
    """Of three that wait, the one that came last begins first: it passed two."""
    from pars.outcomes.decision import Decision
    from pars.outcomes.records import Outcome
    from pars.outcomes.worth import Worth

    worth = Worth()
    decisions = [
        Decision(outcome=Outcome(arrival_s=at_s, path="/", decision="scored"), began_s=0.0)
        for at_s in (1.0, 2.0, 3.0)
    ]
    for decision in decisions:
        worth.arrived(decision)
    worth.began(decisions[2])

    assert [worth.num_passed(it) for it in decisions] == [0, 1, 2]


def test_the_current_span_is_taken_where_there_is_one(exporter: InMemorySpanExporter) -> None:
    """As somebody else's instrumentation has opened it."""
    spans, tracer = Spans(), trace.get_tracer("test")
    with tracer.start_as_current_span("theirs") as theirs, spans.around([]):
        assert trace.get_current_span() is theirs

    assert [it.name for it in exporter.get_finished_spans()] == ["theirs"]


def test_off_by_default(tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    """No span is opened, and none is written to."""
    with served(tmp_path) as (url, app, _):
        ask(url)
        assert app.middleware.spans is None

    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize("otel", [True, False])
def test_the_caller_s_trace_passes_untouched(tmp_path: Path, otel: bool) -> None:
    """The engine sees the very bytes, whether spans are made here or not."""
    with served(tmp_path, otel=otel) as (url, _, engine):
        ask(url, **TRACED)
        [asked] = [it for it in engine.asked if it.path == "/v1/completions"]
        seen = dict(asked.headers)

    assert {name: seen[name.encode()].decode() for name in TRACED} == TRACED


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, at the start, with the command that installs it."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ParsError, match=r"pip install 'pars-llm\[otel\]'"):
        Spans()


def test_the_option_turns_it_on_and_its_absence_leaves_it_to_the_variable() -> None:
    """A switch without a value, as people type it."""

    @click.command()
    @setting_option("otel")
    def show(otel: bool | None) -> None:
        click.echo(repr(otel))

    assert CliRunner().invoke(show, ["--otel"]).output == "True\n"
    assert CliRunner().invoke(show, []).output == "None\n"


def test_the_variable_turns_it_on() -> None:
    """As for vLLM, where no option reaches the middleware."""
    assert Settings.from_env({"PARS_OTEL": "1"}).otel
    assert not Settings.from_env({}).otel
