"""Requests become outcomes: on real sockets, byte for byte, and with an engine's own lengths."""

import asyncio
import gzip
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from gateways import (
    connect,
    counted,
    exchange,
    gateway_to,
    post,
    read_head,
    read_request,
    scripted_upstream,
)
from pars.outcomes.decision import Decision
from pars.outcomes.engine_lengths import Desk, Finished
from pars.outcomes.metrics import OutcomeMetrics
from pars.outcomes.recorder import Recorder
from pars.outcomes.records import Outcome, read_outcomes
from pars.ranking.live_ranker import fingerprint_of
from pars.serving.gateway import Gateway

from fake_engine import FakeEngine
from serving import DEADLINE_S, eventually


def completion(prompt: str = "four", **fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": prompt, **fields}).encode()


def ask(url: str, body: bytes, path: str = "/v1/completions") -> bytes:
    return exchange(url, post(path, body))


@contextmanager
def recording(
    upstream_url: str, tmp_path: Path, **settings: Any
) -> Iterator[tuple[str, Gateway, Path]]:
    """A gateway that keeps outcomes, and their folder."""
    folder, ranker = tmp_path / "outcomes", tmp_path / "ranker"
    ranker.mkdir()
    with gateway_to(upstream_url, ranker, settings={"outcomes": str(folder), **settings}) as (
        url,
        app,
    ):
        yield url, app, folder


def written(app: Gateway, folder: Path, num: int = 1) -> list[Outcome]:
    """The outcomes, once there are so many."""
    eventually(lambda: counted(app, "pars_outcomes_written_total") >= num)
    return read_outcomes(folder).outcomes


# Through the gateway


def test_an_outcome_tells_what_was_decided_and_what_came(tmp_path: Path):
    """Every field of a scored completion, worked out by hand."""
    with FakeEngine().served() as upstream, recording(upstream, tmp_path) as (url, app, folder):
        answer = ask(url, completion(max_tokens=7))
        [outcome] = written(app, folder)

    assert b'"completion_tokens": 7' in answer
    known = {
        name: getattr(outcome, name)
        for name in ("path", "decision", "model", "score", "expected_tokens", "max_tokens")
    }
    assert known == {
        "path": "/v1/completions",
        "decision": "scored",
        "model": "m",
        "score": 4.0,  # "four" has four characters
        "expected_tokens": 4.0,
        "max_tokens": 7,
    }
    assert (outcome.num_prompts, outcome.num_answers) == (1, 1)
    assert (outcome.prompt_tokens, outcome.answer_tokens, outcome.is_exact) == (1, 7, True)
    assert (outcome.finish_reason, outcome.status) == ("length", 200)
    assert outcome.wait_s is not None
    assert outcome.total_s is not None
    assert 0 < outcome.wait_s <= outcome.total_s
    assert outcome.ranker == fingerprint_of(tmp_path / "ranker")
    assert re.fullmatch("[0-9a-f]{16}", outcome.prompt_key or "")
    assert outcome.prompt is None
    assert counted(app, "pars_answers_total", length="usage") == 1


def test_a_stream_without_usage_is_counted(tmp_path: Path):
    """Five events are five tokens, and said to be no exact count."""
    with FakeEngine().served() as upstream, recording(upstream, tmp_path) as (url, app, folder):
        ask(url, completion(max_tokens=5, stream=True))
        [outcome] = written(app, folder)

    assert (outcome.answer_tokens, outcome.is_exact) == (5, False)
    assert counted(app, "pars_answers_total", length="events") == 1


def test_prompts_are_kept_when_asked_for(tmp_path: Path):
    """The text that was scored is there; equal texts have equal keys in any case."""
    with (
        FakeEngine().served() as upstream,
        recording(upstream, tmp_path, outcome_prompts=True) as (url, app, folder),
    ):
        for prompt in ("a", "b", "a"):
            ask(url, completion(prompt))
        first, second, third = written(app, folder, 3)

    assert [it.prompt for it in (first, second, third)] == ["a", "b", "a"]
    assert first.prompt_key == third.prompt_key != second.prompt_key


def test_several_prompts_and_answers_are_told_apart_from_one(tmp_path: Path):
    """Of a list the outcome says how many there were, so that its sum is taken for no length."""
    with FakeEngine().served() as upstream, recording(upstream, tmp_path) as (url, app, folder):
        ask(url, completion(["a", "bcd"], n=2))  # type: ignore[arg-type]
        [outcome] = written(app, folder)

    assert (outcome.num_prompts, outcome.num_answers) == (2, 2)
    assert outcome.score == 1.0  # of the first prompt


def test_requests_that_cannot_be_scored_have_outcomes_too(tmp_path: Path):
    """Token ids, broken JSON: the decision says why there is no score; the engine refuses one."""
    with FakeEngine().served() as upstream, recording(upstream, tmp_path) as (url, app, folder):
        ask(url, completion([1, 2, 3]))  # type: ignore[arg-type]
        ask(url, b'{"prompt": ')
        ids, broken = written(app, folder, 2)

    assert (ids.decision, ids.score, ids.prompt_key, ids.status) == ("no_text", None, None, 200)
    assert (broken.decision, broken.status, broken.answer_tokens) == ("undecodable", 400, None)
    assert counted(app, "pars_answers_total", length="refused") == 1


def test_other_requests_leave_no_trace(tmp_path: Path):
    """What is no generation is relayed and not recorded."""
    with FakeEngine().served() as upstream, recording(upstream, tmp_path) as (url, app, folder):
        exchange(url, post("/echo", b"hello"))
        ask(url, completion())
        [outcome] = written(app, folder)

    assert outcome.path == "/v1/completions"


def reply(content_type: str, *pieces: bytes, **headers: str) -> bytes:
    """A whole response whose body ends with the connection."""
    lines = ["HTTP/1.1 200 OK", f"content-type: {content_type}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + b"".join(pieces)


EVENT = b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%s}}\n\n'


@pytest.mark.parametrize(
    ("response", "known", "tokens", "reason"),
    [
        (reply("text/html", b"<html>try later</html>"), "not_json", None, None),
        (reply("application/json", b"<html>try later</html>"), "not_json", None, None),
        (reply("application/json", b'{"choices": [{"text": "a"}]}'), "no_usage", None, None),
        (
            reply("application/json", b'{"usage": {"completion_tokens": -3}}'),
            "bad_usage",
            None,
            None,
        ),
        (reply("text/event-stream", EVENT, EVENT), "cut_short", 2, "error"),
        (reply("text/event-stream", EVENT, LAST), "events", 2, "stop"),
        (reply("text/event-stream", EVENT, LAST, USAGE % b"3"), "usage", 3, "stop"),
        (reply("text/event-stream", EVENT, LAST, USAGE % b"null"), "bad_usage", 2, "stop"),
        (reply("application/json", b"{", content_length="100"), "cut_short", None, "error"),
        (
            reply("application/json", gzip.compress(b"{}"), content_encoding="gzip"),
            "compressed",
            None,
            None,
        ),
    ],
)
def test_an_upstream_that_answers_wrongly_is_relayed_and_named(
    tmp_path: Path, response: bytes, known: str, tokens: int | None, reason: str | None
):
    """The client gets the upstream's bytes, and the outcome says what can be known."""

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.sendall(response)

    with scripted_upstream(serve) as upstream, recording(upstream, tmp_path) as (url, app, folder):
        answer = ask(url, completion())
        [outcome] = written(app, folder)

    assert _unchunked(answer) == response.partition(b"\r\n\r\n")[2]
    assert (outcome.answer_tokens, outcome.finish_reason) == (tokens, reason)
    assert counted(app, "pars_answers_total", length=known) == 1


def _unchunked(response: bytes) -> bytes:
    """The body, taken out of chunks if it is in any."""
    head, _, body = response.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return whole


def test_a_stream_that_comes_byte_by_byte_is_read_like_any(tmp_path: Path):
    """A slow upstream that sends each byte by itself changes neither bytes nor outcome."""
    body = EVENT + EVENT + LAST + USAGE % b"3"

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(reply("text/event-stream"))
        for start in range(len(body)):
            connection.sendall(body[start : start + 1])

    with scripted_upstream(serve) as upstream, recording(upstream, tmp_path) as (url, app, folder):
        answer = ask(url, completion(stream=True))
        [outcome] = written(app, folder)

    assert _unchunked(answer) == body
    assert (outcome.answer_tokens, outcome.is_exact, outcome.finish_reason) == (3, True, "stop")


def test_a_client_that_leaves_is_an_abort_with_what_came(tmp_path: Path):
    """After two events the client hangs up: at least two tokens, not known how many more."""
    gone = []

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.sendall(reply("text/event-stream", EVENT, EVENT))
        gone.append(connection.recv(1))  # nothing: the gateway hangs up in turn

    with scripted_upstream(serve) as upstream, recording(upstream, tmp_path) as (url, app, folder):
        with connect(url) as connection:
            connection.sendall(post("/v1/completions", completion(stream=True)))
            data = read_head(connection)
            while data.count(b"data:") < 2:
                data += connection.recv(65536)
        [outcome] = written(app, folder)

    assert gone == [b""]
    assert (outcome.finish_reason, outcome.answer_tokens) == ("abort", 2)
    assert outcome.is_censored
    assert counted(app, "pars_answers_total", length="client_left") == 1


def test_no_upstream_is_a_refusal(tmp_path: Path):
    """The gateway's own 502 is the outcome's status."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with recording(f"http://127.0.0.1:{port}", tmp_path) as (url, app, folder):
        ask(url, completion())
        [outcome] = written(app, folder)

    assert (outcome.status, outcome.answer_tokens, outcome.is_censored) == (502, None, True)


def test_a_folder_that_vanishes_costs_outcomes_and_no_request(tmp_path: Path):
    """Requests are answered, what is lost is counted, and it goes on when the folder is back."""
    with FakeEngine().served() as upstream, recording(upstream, tmp_path) as (url, app, folder):
        shutil.rmtree(folder)
        for _ in range(3):
            assert b"200 OK" in ask(url, completion())
        reason = {"reason": "write_failed"}
        eventually(lambda: counted(app, "pars_outcomes_dropped_total", **reason) == 3)
        folder.mkdir()

        def goes_on() -> bool:
            ask(url, completion())
            return counted(app, "pars_outcomes_written_total") > 0

        eventually(goes_on)
        assert len(read_outcomes(folder).outcomes) >= 1


def test_a_full_disk_costs_outcomes_and_no_request(tmp_path: Path):
    """In a process whose files may not pass 1,024 bytes twenty requests are answered."""
    folder = tmp_path / "outcomes"
    with FakeEngine(num_slots=4).served() as upstream:
        command = f'ulimit -f 1; exec {sys.executable} -m pars gateway "$@"'
        options = ["--upstream", upstream, "--port", "0", "--outcomes", str(folder)]
        process = subprocess.Popen(
            ["bash", "-c", command, "bash", *options], stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            url = re.search(r"served at (\S+),", process.stdout.readline())[1]  # type: ignore[index]
            answers = [ask(url, completion()) for _ in range(20)]
            process.terminate()
            process.wait(DEADLINE_S)

    assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers)
    read = read_outcomes(folder)
    assert 0 < len(read.outcomes) < 20
    assert read.num_damaged == 0


def test_outcomes_that_wait_are_written_before_the_end(tmp_path: Path):
    """A gateway that is stopped writes what it has."""
    with FakeEngine().served() as upstream:
        with recording(upstream, tmp_path) as (url, _, folder):
            for _ in range(20):
                ask(url, completion())

        assert len(read_outcomes(folder).outcomes) == 20


# In the engine's process

STREAM = [(b"content-type", b"text/event-stream")]


class Bench:
    """A recorder with a desk of its own around an app that streams two events, or does as told."""

    def __init__(self, *, grace_s: float = DEADLINE_S, clock: Any = lambda: 1000.0) -> None:
        self.desk = Desk()
        self.desk.is_open = True
        self.registry = CollectorRegistry()
        self.outcomes: list[Outcome] = []
        self.has_outcome = asyncio.Event()
        self.recorder = Recorder(
            [self.observe],
            OutcomeMetrics(self.registry),
            clock=clock,
            desk=self.desk,
            grace_s=grace_s,
        )

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.has_outcome.set()

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def follow(
        self,
        *,
        path: str = "/v1/chat/completions",
        headers: Any = (),
        before_end: Any = lambda request_id: None,
        request_id: str | None = None,
        raises: bool = False,
        began_s: float = 0.0,
        **fields: Any,
    ) -> str:
        """One request; `before_end` is called with its id, in mid-answer. Returns the id."""
        seen: list[bytes] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.extend(value for name, value in scope["headers"] if name == b"x-request-id")
            if raises:
                raise RuntimeError("the engine is dead")
            await send({"type": "http.response.start", "status": 200, "headers": STREAM})
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
            before_end(seen[0].decode() if seen else None)
            await send({"type": "http.response.body", "body": LAST, "more_body": False})

        async def receive() -> Any:
            raise AssertionError("the app does not ask")

        async def send(message: Any) -> None:
            pass

        outcome = Outcome(arrival_s=1000.0, path=path, decision="scored", **fields)
        decision = Decision(outcome=outcome, began_s=began_s, request_id=request_id)
        scope = {"path": path, "headers": list(headers)}
        await self.recorder.follow(app, decision, scope, receive, send)
        return seen[0].decode() if seen else ""

    def tell(self, engine_id: str, tokens: int, reason: str = "stop", prompt: int = 9) -> None:
        self.desk.tell(
            Finished(
                request_id=engine_id,
                num_prompt_tokens=prompt,
                num_answer_tokens=tokens,
                queued_s=0.25,
                finish_reason=reason,
            )
        )


def test_the_engine_s_own_count_goes_before_what_the_answer_shows():
    """Two events, three tokens by the engine: three, and the engine's time in the queue."""
    bench = Bench()

    asyncio.run(bench.follow(before_end=lambda name: bench.tell(f"chatcmpl-{name}", 3)))

    [outcome] = bench.outcomes
    assert (outcome.answer_tokens, outcome.prompt_tokens, outcome.is_exact) == (3, 9, True)
    assert (outcome.finish_reason, outcome.wait_s) == ("stop", 0.25)
    assert bench.count("pars_answers_total", length="engine") == 1


def test_an_engine_that_tells_after_the_last_byte_is_waited_for():
    """The outcome is made when the engine has told, not when the answer has ended."""
    bench = Bench()

    async def story() -> None:
        name = await bench.follow()
        assert bench.outcomes == []
        bench.tell(f"chatcmpl-{name}", 3)

    asyncio.run(story())

    assert [it.answer_tokens for it in bench.outcomes] == [3]


def test_an_engine_that_tells_nothing_is_not_waited_for_for_ever():
    """After the grace time the events count; the same at once when the server stops."""

    async def grace(bench: Bench) -> None:
        await bench.follow()
        await asyncio.wait_for(bench.has_outcome.wait(), DEADLINE_S)

    async def stop(bench: Bench) -> None:
        await bench.follow()
        bench.recorder.close()

    for bench, story in ((Bench(grace_s=0.0), grace), (Bench(), stop)):
        asyncio.run(story(bench))
        assert [(it.answer_tokens, it.is_exact) for it in bench.outcomes] == [(2, False)]


def test_answers_to_several_prompts_add_up():
    """Two prompts with two answers each: 1 + 2 + 3 + 4 tokens, and each prompt counts once."""
    bench = Bench()

    def tell(name: str) -> None:
        for index, tokens, reason in ((0, 1, "stop"), (0, 2, "stop"), (1, 3, "length")):
            bench.tell(f"cmpl-{name}-{index}", tokens, reason, prompt=10 + index)

    async def story() -> None:
        name = await bench.follow(
            path="/v1/completions", num_prompts=2, num_answers=2, before_end=tell
        )
        assert bench.outcomes == []
        bench.tell(f"cmpl-{name}-1", 4, prompt=11)

    asyncio.run(story())

    [outcome] = bench.outcomes
    assert (outcome.answer_tokens, outcome.prompt_tokens) == (10, 21)
    assert outcome.finish_reason == "length"


def test_a_request_keeps_the_id_that_its_client_gave():
    """By header or in the body it is the client's; only a request without one gets ours."""
    bench = Bench()
    header = [(b"x-request-id", b"mine")]

    async def story() -> list[str]:
        return [
            await bench.follow(headers=header, before_end=lambda _: bench.tell("chatcmpl-mine", 3)),
            await bench.follow(
                request_id="body", before_end=lambda _: bench.tell("chatcmpl-body", 4)
            ),
            await bench.follow(before_end=lambda name: bench.tell(f"chatcmpl-{name}", 5)),
        ]

    mine, body, ours = asyncio.run(story())

    assert (mine, body) == ("mine", "")
    assert re.fullmatch("[0-9a-f]{16}", ours)
    assert [it.answer_tokens for it in bench.outcomes] == [3, 4, 5]


def test_two_requests_with_one_id_are_not_mixed_up():
    """While both are under way nobody knows whose length it is: then the events count."""
    bench = Bench(grace_s=0.0)
    header = [(b"x-request-id", b"same")]

    def tell(_: str) -> None:
        bench.desk.wait("chatcmpl-same", lambda finished: None)  # the other one
        bench.tell("chatcmpl-same", 99)

    async def story() -> None:
        await bench.follow(headers=header, before_end=tell)
        await asyncio.wait_for(bench.has_outcome.wait(), DEADLINE_S)

    asyncio.run(story())

    assert [(it.answer_tokens, it.is_exact) for it in bench.outcomes] == [(2, False)]


def test_an_engine_elsewhere_gets_no_ids():
    """With nobody at the desk, as in the gateway, no header is added."""
    bench = Bench()
    bench.desk.is_open = False

    assert asyncio.run(bench.follow()) == ""
    assert [it.answer_tokens for it in bench.outcomes] == [2]


def test_an_app_that_fails_is_an_outcome_and_still_fails():
    """The exception goes on to whoever answers it; the outcome is an error."""
    bench = Bench()

    with pytest.raises(RuntimeError, match="the engine is dead"):
        asyncio.run(bench.follow(raises=True))

    assert [(it.status, it.finish_reason) for it in bench.outcomes] == [(None, "error")]
    assert bench.count("pars_answers_total", length="no_answer") == 1


@pytest.mark.parametrize("obeys", [True, False])
def test_where_limits_stand_for_the_models_own_end_none_is_cut_short(tmp_path: Path, obeys: bool):
    """As in benchmarks that impose lengths by `max_tokens`."""
    with (
        FakeEngine().served() as upstream,
        recording(upstream, tmp_path, obey_limits=obeys) as (url, app, folder),
    ):
        ask(url, completion(max_tokens=7))
        [outcome] = written(app, folder)

    assert outcome.is_censored is obeys


def test_an_observer_that_fails_costs_neither_the_request_nor_the_others():
    """Its exception is counted, and the next observer hears of the outcome."""
    bench = Bench()
    registry = CollectorRegistry()

    def fails(outcome: Outcome) -> None:
        raise RuntimeError

    bench.recorder = Recorder(
        [fails, bench.observe], OutcomeMetrics(registry), clock=lambda: 1000.0, desk=Desk()
    )

    asyncio.run(bench.follow())

    assert len(bench.outcomes) == 1
    assert registry.get_sample_value("pars_outcomes_dropped_total", {"reason": "error"}) == 1


def test_a_clock_that_is_set_is_counted_and_changes_no_duration():
    """An hour's jump in a request's time shows in the counter and not in `total_s`."""
    bench = Bench(clock=lambda: 1000.0 + 3600.0)
    bench.desk.is_open = False
    asyncio.run(bench.follow(began_s=time.perf_counter()))

    [outcome] = bench.outcomes
    assert bench.count("pars_clock_jumps_total") == 1
    assert outcome.total_s is not None
    assert outcome.total_s < 1800
