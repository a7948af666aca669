"""A gateway that is given nothing learns from its first answers, and orders by what it learned."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from gateways import counted, exchange, post
from pars.outcomes.learner import Learner
from pars.outcomes.metrics import LearnMetrics
from pars.outcomes.records import Outcome
from pars.ranking.online.state import Learned, State
from pars.request.conversation import Before
from pars.request.features import Signals
from pars.serving.asked import Asked, Shown, read_asked
from pars.serving.gateway import UVICORN_OPTIONS, Gateway
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream

from fake_engine import FakeEngine
from serving import DEADLINE_S, eventually, serve_in_thread

ESSAY, TRANSLATION = "Write an essay about thing{}", "Translate to French: thing{}"


@contextmanager
def learning_gateway(engine: FakeEngine, **settings: object) -> Iterator[tuple[str, Gateway]]:
    """Without a ranker, so that all is learned; limits do not count by themselves."""
    chosen = {"engine": "vllm", "ranker": "none", "obey_limits": False, **settings}
    with engine.served() as upstream:
        app = Gateway(Upstream(upstream, timeout_s=DEADLINE_S), Settings(**chosen))  # type: ignore[arg-type]
        with serve_in_thread(app, **UVICORN_OPTIONS) as url:
            yield url, app


def ask(url: str, text: str, num_tokens: int) -> None:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": num_tokens}
    answer = exchange(url, post("/v1/chat/completions", json.dumps(body).encode()))
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]


def teach(url: str, num_requests: int) -> None:
    for number in range(num_requests):
        if number % 2:
            ask(url, ESSAY.format(number), 60 + number % 7)
        else:
            ask(url, TRANSLATION.format(number), 5 + number % 3)


def test_the_bundled_ranker_orders_the_first_requests(tmp_path: Path):
    """By default: its word is all that the ranker that learns has to go by."""
    with learning_gateway(FakeEngine(), ranker="", state=str(tmp_path)) as (url, app):
        costs = []
        for text in ("Write a detailed essay on the First World War.", "Is tea hot? Yes or no?"):
            before = counted(app, "pars_expected_cost_tokens_sum")
            ask(url, text, 9)
            costs.append(counted(app, "pars_expected_cost_tokens_sum") - before)
        assert counted(app, "pars_decisions_total", outcome="scored") == 2
    assert costs[0] > costs[1]


def test_what_is_learned_orders_the_queue(tmp_path: Path):
    """First come, first served until the order is better than chance; then essays go last."""
    with learning_gateway(FakeEngine(), state=str(tmp_path), max_overtake_s=float("inf")) as (
        url,
        app,
    ):
        ask(url, ESSAY.format("x"), 60)
        assert counted(app, "pars_decisions_total", outcome="learning") == 1
        teach(url, 60)
        eventually(lambda: counted(app, "pars_online_in_use") == 1)
        assert counted(app, "pars_answers_learned_total") == 61
        assert counted(app, "pars_online_tau_b_low") > 0

        costs, num_scored = [], counted(app, "pars_decisions_total", outcome="scored")
        for text in (ESSAY, TRANSLATION):
            before = counted(app, "pars_expected_cost_tokens_sum")
            ask(url, text.format("never named"), 9)
            costs.append(counted(app, "pars_expected_cost_tokens_sum") - before)
        assert counted(app, "pars_decisions_total", outcome="scored") == num_scored + 2
        assert costs[0] > 2 * costs[1]


class Whole:
    """A body that is there."""

    outcome = None

    def __init__(self, content: bytes) -> None:
        self.num_bytes = len(content)
        self.content = lambda: content


@pytest.mark.parametrize("limits", [True, False])
def test_limits_that_do_not_count_are_no_signal_either(limits: bool):
    """Two requests that differ by their limits look alike then, and only then."""
    told = []
    for num_tokens in (5, 60):
        request = {"prompt": "Hello", "max_tokens": num_tokens, "min_tokens": num_tokens}
        asked, body = Asked(), Whole(json.dumps(request).encode())
        shown = Shown(signals=True, limits=limits)
        asyncio.run(read_asked(asked, "/v1/completions", [], body, shown))
        told.append(asked.signals)

    assert None not in told
    assert (told[0] == told[1]) is not limits


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path):
    """And the health page says where it lies, and how much it is."""
    for num_learned in (20, 40):
        with learning_gateway(FakeEngine(), state=str(tmp_path)) as (url, app):
            teach(url, 20)
            eventually(lambda app=app: counted(app, "pars_answers_learned_total") == 20)
            page = exchange(
                url, b"GET /pars/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            told = json.loads(page.partition(b"\r\n\r\n")[2])["learning"]
            assert told["num_learned"] == num_learned
            assert told["folder"] == str(tmp_path)


def test_the_order_is_told_by_model_and_of_few_models():
    """Two models have a gauge each; of names that a client makes up only so many are told."""
    learner = Learner(None, LearnMetrics(CollectorRegistry()))
    signals = Signals("Hello", ("path=x",), Before(), 1.0)
    for number in range(60):
        outcome = Outcome(
            arrival_s=0.0, path="/v1/completions", decision="scored", answer_tokens=number + 1
        )
        for model in ("a", "b", f"made up {number}"):
            learner.learn(learner.ranker.expect(signals), replace(outcome, model=model))

    told = learner.as_json()["tau_b_by_model"]
    assert told["a"]["num_answers"] == told["b"]["num_answers"] == 60
    assert told["other models"]["num_answers"] == 46
    assert len(told) == 17


def test_without_a_folder_it_learns_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`--state none` leaves no file, and `--learn off` learns nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with learning_gateway(FakeEngine(), state="none") as (url, app):
        teach(url, 2)
        eventually(lambda: counted(app, "pars_answers_learned_total") == 2)
    with learning_gateway(FakeEngine(), ranker="", learn="off") as (url, app):
        teach(url, 2)
        assert app.middleware.predictor.learner is None

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used_costs_no_request(tmp_path: Path):
    """It is counted, and learning goes on in memory."""
    (tmp_path / "file").write_text("")
    with learning_gateway(FakeEngine(), state=str(tmp_path / "file" / "state")) as (url, app):
        teach(url, 2)
        eventually(lambda: counted(app, "pars_answers_learned_total") == 2)
        assert counted(app, "pars_learning_failures_total") == 1


def test_a_full_disk_is_said_once_and_once_when_it_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Each look that fails is counted. Between, looks with nothing to write say nothing."""
    turns = iter([OSError(28, "No space left"), False, OSError(28, "No space left"), True, False])
    is_over = asyncio.Event()

    def flush(_: State) -> bool:
        turn = next(turns, None)
        if turn is None:
            is_over.set()
        if isinstance(turn, OSError):
            raise turn
        return bool(turn)

    async def learn() -> None:
        learner = Learner(tmp_path, LearnMetrics(CollectorRegistry()))
        keeping = asyncio.create_task(learner.keep_learning(every_s=0.0))
        await asyncio.wait_for(is_over.wait(), DEADLINE_S)
        keeping.cancel()

    monkeypatch.setattr(State, "flush", flush)
    asyncio.run(learn())

    assert caplog.messages == [
        "what was learned is not kept: [Errno 28] No space left",
        "what is learned is kept again",
    ]


def test_others_files_are_read_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They may be long and damaged, and requests wait for the loop."""
    threads: list[threading.Thread] = []

    def news(_: State) -> Iterator[Learned]:
        threads.append(threading.current_thread())
        yield from ()

    async def learn() -> None:
        learner = Learner(tmp_path, LearnMetrics(CollectorRegistry()))
        threads.clear()
        keeping = asyncio.create_task(learner.keep_learning(every_s=0.0))
        await asyncio.to_thread(eventually, lambda: bool(threads))
        keeping.cancel()

    monkeypatch.setattr(State, "news", news)
    asyncio.run(learn())

    assert threading.main_thread() not in threads


def test_the_start_says_where_it_is_kept(tmp_path: Path):
    """One line, before the address."""
    from click.testing import CliRunner

    from pars.cli.main import commands

    told = CliRunner().invoke(commands, ["gateway", "--help"])

    assert re.search(r"--state DIR", told.output)
    assert re.search(r"--learn \[on\|off\]", told.output)
