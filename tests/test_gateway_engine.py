"""The gateway before engines as they are: loading, restarted, mixed, foreign, or refusing."""

import errno
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import ClientConnectorError

from gateways import counted, gateway_to, read_request, scripted_upstream
from pars.serving.connections import Pool
from pars.serving.gateway import Gateway
from pars.serving.known_engine import NOT_KNOWN

from serving import (
    DEADLINE_S,
    answered_lifespan,
    eventually,
    serve_in_thread,
    whole_body,
)

COMPLETIONS = "/v1/completions"
Reply = tuple[int, str, bytes]  # status, content type, body

JSON = "application/json"
REFUSAL = b'{"object":"error","message":"Got priority 7 but Priority scheduling is not enabled."}'
BROKEN = b'{"error":{"message":"max_tokens must be at least 1, got -1.","code":400}}'
ANSWER = b'{"id":"c","choices":[{"index":0,"text":"sea","finish_reason":"stop"}]}'
STREAM = b'data: {"choices":[{"text":"sea"}]}\n\ndata: [DONE]\n\n'


class Engine:
    """
    An upstream whose pages and answers can be changed while it serves.

    Attributes:
        pages: By path; what is not there is `everything_else`.
        answer: What a generation gets, from its priority (None: none) and its body.
        asked: (path, priority, body) of each request.
    """

    def __init__(self, **pages: dict[str, Any]) -> None:
        self.pages: dict[str, Any] = {f"/{name}": page for name, page in pages.items()}
        self.everything_else: Reply = (404, JSON, b'{"detail":"Not Found"}')
        self.answer: Callable[[int | None, dict[str, Any]], Reply] = obliging
        self.asked: list[tuple[str, int | None, bytes]] = []

    @property
    def generations(self) -> list[int | None]:
        """The priorities of all generations so far."""
        return [priority for path, priority, _ in self.asked if path == COMPLETIONS]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if await answered_lifespan(scope, receive, send):
            return
        content = await whole_body(receive)
        fields = json.loads(content) if content else {}
        header = dict(scope["headers"]).get(b"x-vllm-priority")
        priority = fields.get("priority") if header is None else int(header)
        self.asked.append((scope["path"], priority, content))
        if scope["path"] == COMPLETIONS:
            reply = self.answer(priority, fields)
        elif scope["path"] in self.pages:
            reply = (200, JSON, json.dumps(self.pages[scope["path"]]).encode())
        else:
            reply = self.everything_else
        status, kind, body = reply
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def obliging(priority: int | None, fields: dict[str, Any]) -> Reply:
    """As an engine answers; a negative max_tokens is the client's fault."""
    if fields.get("max_tokens", 1) < 0:
        return 400, JSON, BROKEN
    return (200, "text/event-stream", STREAM) if fields.get("stream") else (200, JSON, ANSWER)


def refusing(priority: int | None, fields: dict[str, Any]) -> Reply:
    """As vLLM 0.6 answers without priority scheduling."""
    return (400, JSON, REFUSAL) if priority else obliging(priority, fields)


def refusing_in_streams(priority: int | None, fields: dict[str, Any]) -> Reply:
    """The same where the stream has begun before the engine refuses."""
    if priority and fields.get("stream"):
        return 200, "text/event-stream", b"data: " + REFUSAL + b"\n\ndata: [DONE]\n\n"
    return refusing(priority, fields)


def failing(priority: int | None, fields: dict[str, Any]) -> Reply:
    """As the first V1 engines answer: an assertion that nobody expected."""
    if priority:
        return 500, "text/plain", b"Internal Server Error"
    return obliging(priority, fields)


def unavailable(priority: int | None, fields: dict[str, Any]) -> Reply:
    """As SGLang answers with --abort-on-priority-when-disabled."""
    if priority is not None:
        told = "Using priority is disabled for this server. Please send a new request without one."
        return 503, JSON, json.dumps({"message": told}).encode()
    return obliging(priority, fields)


@contextmanager
def before(
    engine: Engine, folder: Path, named: str = "auto", **settings: Any
) -> Iterator[tuple[str, Gateway]]:
    with (
        serve_in_thread(engine) as url,
        gateway_to(
            url, folder, settings={"engine": named, **settings}, pauses_s=(0.02, 0.1)
        ) as opened,
    ):
        yield opened


def asked(url: str, at: str = "127.0.0.1", **fields: Any) -> httpx.Response:
    """The answer to a client whose address is `at`."""
    with httpx.Client(transport=httpx.HTTPTransport(local_address=at)) as client:
        return client.post(url + COMPLETIONS, json={"prompt": "Name a sea.", **fields})


# Until it is known


@pytest.mark.parametrize("while_loading", [(503, JSON, b"{}"), (404, "text/plain", b"404")])
def test_an_engine_that_loads_is_asked_until_it_tells(tmp_path: Path, while_loading: Reply) -> None:
    """Until then no priority is set; afterwards it is."""
    engine = Engine()
    engine.everything_else = while_loading
    with before(engine, tmp_path) as (url, _):
        asked(url)
        eventually(lambda: sum(path == "/version" for path, _, _ in engine.asked) > 2)
        assert engine.generations == [None]
        engine.pages["/version"] = {"version": "0.32.0"}
        eventually(lambda: asked(url).is_success and engine.generations[-1] is not None)


@pytest.mark.parametrize("named", ["auto", "none"])
def test_a_client_s_own_priority_does_not_pass_unknown(tmp_path: Path, named: str) -> None:
    """In header and body it is gone, also from a body that is too large to hold; no byte else."""
    engine = Engine()
    engine.everything_else = (503, JSON, b"{}")
    body = b'{"prompt":  "x" , "priority": -99999, "n": 1.0}'
    large = b'{"priority": -99999, "prompt": "%s"}' % (b"x" * 5000)
    with before(engine, tmp_path, named, max_body_bytes=4096) as (url, app):
        for content in (body, large):
            headers = {"x-vllm-priority": "-99999", "x_vllm_priority": "-99999"}
            assert httpx.post(url + COMPLETIONS, content=content, headers=headers).is_success
        num_unordered = counted(app, "pars_decisions_total", outcome="unordered")
        assert num_unordered == (2 if named == "auto" else 0)  # of "none" they are held here
    sent = [content for path, _, content in engine.asked if path == COMPLETIONS]
    assert sent[0] == b'{"prompt":  "x" , "n": 1.0}'
    assert json.loads(sent[1])["priority"] == 0
    assert [bool(priority) for priority in engine.generations] == [False, False]


def test_a_foreign_server_gets_bodies_as_they_came(tmp_path: Path) -> None:
    """Without a priority of the client's own no byte changes, however large."""
    engine = Engine()
    contents = [b'{"prompt":"x",  "n": 1.0}', b'{"prompt": "%s"}' % (b"x" * 5000)]
    with before(engine, tmp_path, max_body_bytes=4096) as (url, app):
        eventually(lambda: app.known.is_known)
        for content in contents:
            httpx.post(url + COMPLETIONS, content=content)
    sent = [content.rstrip() for path, _, content in engine.asked if path == COMPLETIONS]
    assert sent == contents


# When it changes


def test_an_engine_that_comes_back_as_another_is_asked_again(tmp_path: Path) -> None:
    """A vLLM before 0.28 reads the body, a newer one the header, SGLang the body turned round."""
    engine = Engine(version={"version": "0.20.0"})
    sglang = {"enable_priority_scheduling": True, "schedule_low_priority_values_first": False}
    with before(engine, tmp_path) as (url, app):
        eventually(lambda: app.known.state == "vllm-body")
        engine.pages["/version"] = {"version": "0.32.0"}
        eventually(lambda: app.known.state == "vllm")
        assert asked(url).is_success
        engine.pages = {"/server_info": sglang}
        eventually(lambda: app.known.state == "sglang")
        assert asked(url).is_success
    assert engine.generations[0] is not None
    assert engine.generations[0] > 0
    assert engine.generations[1] is not None
    assert engine.generations[1] < 0


def test_servers_behind_one_address_that_differ_get_what_all_read(tmp_path: Path) -> None:
    """They answer in turn: the priority goes into the body, which both look at."""
    turns = itertools.cycle(["0.32.0", "0.20.0"])

    class Turning(dict[str, Any]):
        def __getitem__(self, path: str) -> Any:
            return {"version": next(turns)}

    engine = Engine()
    engine.pages = Turning({"/version": None})
    with before(engine, tmp_path) as (url, app):
        eventually(lambda: app.known.state == "vllm-body")
        assert asked(url).is_success
    [sent] = [content for path, _, content in engine.asked if path == COMPLETIONS]
    assert json.loads(sent)["priority"] > 0


def test_an_engine_that_is_gone_is_not_known_any_more(tmp_path: Path) -> None:
    """What listens there next may be another."""
    with ExitStack() as stack:
        with serve_in_thread(Engine(version={"version": "0.32.0"})) as up:
            opened = gateway_to(up, tmp_path, settings={"engine": "auto"}, pauses_s=(0.02, 0.1))
            url, app = stack.enter_context(opened)
            eventually(lambda: app.known.state == "vllm")
        eventually(lambda: app.known.state == NOT_KNOWN)
        assert httpx.get(f"{url}/pars/health").json()["engine"] == NOT_KNOWN


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRNOTAVAIL])
def test_a_gateway_out_of_files_does_not_take_its_engine_for_gone(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens many connections would else turn the ordering off for all."""
    engine = Engine(version={"version": "0.32.0"})
    num_tried = 0

    async def line(self: Pool, *, is_new: bool = False) -> Any:
        nonlocal num_tried
        num_tried += 1
        raise ClientConnectorError(None, OSError(number, "none left"))  # type: ignore[arg-type]

    with before(engine, tmp_path) as (url, app):
        eventually(lambda: app.known.state == "vllm")
        monkeypatch.setattr(Pool, "line", line)
        answer = asked(url)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_connections_left")
        eventually(lambda: num_tried > 3)  # the watch has asked too
        assert app.known.state == "vllm"


# When it refuses


@pytest.mark.parametrize("answer", [refusing, refusing_in_streams, unavailable])
@pytest.mark.parametrize("stream", [False, True])
def test_no_client_sees_that_the_engine_refuses_priorities(
    tmp_path: Path, answer: Any, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The first request is repeated without, the others have none; log and metric say so."""
    engine = Engine(version={"version": "0.9.2"})
    engine.answer = answer
    with before(engine, tmp_path, "vllm-body") as (url, app):
        for _ in range(4):
            answer = asked(url, stream=stream)
            assert (answer.status_code, answer.content) == (200, STREAM if stream else ANSWER)
        assert httpx.get(f"{url}/pars/health").json()["engine"] == "refuses priorities"
        assert counted(app, "pars_priority_refusals_total") == 1
        assert counted(app, "pars_engine_schedules_by_priority") == 0
    assert [priority is not None for priority in engine.generations] == [True] + [False] * 4
    assert [it.levelname for it in caplog.records if "REFUSES" in it.message] == ["ERROR"]


def test_an_engine_that_does_not_say_why_it_fails_must_fail_two_clients(tmp_path: Path) -> None:
    """Each of one client's requests is repeated; once another met the same, none has a priority."""
    engine = Engine(version={"version": "0.9.2"})
    engine.answer = failing
    with before(engine, tmp_path, "vllm-body") as (url, app):
        for _ in range(3):
            assert asked(url).content == ANSWER
        assert not app.known.refuses
        for _ in range(2):
            assert asked(url, at="127.0.0.2").content == ANSWER
        assert app.known.refuses
    assert [priority is not None for priority in engine.generations] == [True, False] * 4 + [False]


@pytest.mark.parametrize(
    ("fault", "prompt"),
    [
        (b"Internal Server Error", b"x"),
        (b"cannot fetch http://a/: 503 no priority", b"http://a/"),
        (b"cannot fetch http://a/: 503 no priority", rb"http:\/\/a/"),
        (b"not allowed: priority", b"priority"),
        (b"not allowed: priority", rb"\u0070riority"),
    ],
)
def test_one_client_whose_request_fails_once_turns_no_ordering_off(
    tmp_path: Path, fault: bytes, prompt: bytes
) -> None:
    """Whatever its error says, as the client had a hand in that; others keep their places."""
    engine = Engine(version={"version": "0.20.0"})
    turns = itertools.cycle([True, False])

    def flaky(priority: int | None, fields: dict[str, Any]) -> Reply:
        if "n" in fields and next(turns):
            return 400, JSON, fault
        return obliging(priority, fields)

    engine.answer = flaky
    with before(engine, tmp_path, "vllm-body") as (url, app):
        for _ in range(3):
            body = b'{"prompt":"%s","n":1}' % prompt
            assert httpx.post(url + COMPLETIONS, content=body).is_success
        assert not app.known.refuses
        assert asked(url).is_success
    assert engine.generations[-1] is not None


@pytest.mark.parametrize("named", ["vllm", "vllm-body"])
def test_nobody_goes_first_by_a_request_that_fails_once(tmp_path: Path, named: str) -> None:
    """It would be repeated without a priority: at an engine that takes them it is not."""
    engine = Engine(version={"version": "0.32.0"})
    faults = iter([b"cannot fetch http://a/priority.png: 404"])

    def flaky(priority: int | None, fields: dict[str, Any]) -> Reply:
        if "n" in fields and (fault := next(faults, None)) is not None:
            return 400, JSON, fault
        return obliging(priority, fields)

    engine.answer = flaky
    with before(engine, tmp_path, named) as (url, _):
        assert asked(url).is_success
        assert asked(url, prompt="http://a/priority.png", n=1).status_code == 400
    assert len(engine.generations) == 2
    assert None not in engine.generations


def test_a_large_body_s_error_turns_no_ordering_off(tmp_path: Path) -> None:
    """It cannot be asked twice, so nobody knows whose fault it was: others keep their places."""
    engine = Engine(version={"version": "0.20.0"})
    engine.answer = lambda priority, fields: (
        (400, JSON, REFUSAL) if "n" in fields else obliging(priority, fields)
    )
    with before(engine, tmp_path, "vllm-body", max_body_bytes=4096) as (url, app):
        assert asked(url, prompt="x" * 5000, n=1).status_code == 503
        assert not app.known.refuses
        assert asked(url).is_success
        assert asked(url, prompt="x" * 5000).is_success
    assert None not in engine.generations


def test_a_stream_of_an_engine_that_reads_the_header_begins_at_once(tmp_path: Path) -> None:
    """Its head comes before the first event, which the engine still holds back."""
    release = threading.Event()

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(STREAM))
        assert release.wait(DEADLINE_S)
        connection.sendall(STREAM)

    body = {"prompt": "x", "stream": True}
    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path) as (url, _),
        httpx.stream("POST", url + COMPLETIONS, json=body) as answer,
    ):
        release.set()
        assert b"".join(answer.iter_raw()) == STREAM


def test_many_refused_at_once_are_all_answered(tmp_path: Path) -> None:
    """Each is repeated by itself."""
    engine = Engine(version={"version": "0.9.2"})
    engine.answer = refusing
    answers: list[int] = []
    with before(engine, tmp_path, "vllm-body") as (url, _):
        threads = [
            threading.Thread(target=lambda: answers.append(asked(url).status_code))
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [200] * 16


@pytest.mark.parametrize("named", ["vllm", "vllm-body"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault", [BROKEN, BROKEN.replace(b"max_tokens", b"priority of max_tokens"), b"x" * 100_000]
)
def test_a_client_s_own_400_comes_as_it_is(
    tmp_path: Path, named: str, stream: bool, fault: bytes
) -> None:
    """Status and body byte for byte, whatever it says, and priorities go on."""
    engine = Engine(version={"version": "0.32.0"})
    engine.answer = lambda priority, fields: (
        (400, JSON, fault) if "max_tokens" in fields else obliging(priority, fields)
    )
    with before(engine, tmp_path, named) as (url, app):
        for _ in range(2):
            answer = asked(url, stream=stream, max_tokens=-1)
            assert (answer.status_code, answer.content) == (400, fault)
            assert asked(url, stream=stream).is_success
        assert counted(app, "pars_priority_refusals_total") == 0
    assert engine.generations[-1] is not None


@pytest.mark.parametrize("engine_name", ["vllm", "vllm-body"])
def test_a_client_s_own_priority_turns_no_ordering_off(tmp_path: Path, engine_name: str) -> None:
    """One that the engine would refuse never gets there, so the others keep their places."""

    def strict(priority: int | None, fields: dict[str, Any]) -> Reply:
        if not isinstance(fields.get("priority", 0), int):
            return 400, JSON, b'{"error":{"message":"body.priority: want an integer"}}'
        return obliging(priority, fields)

    engine = Engine(version={"version": "0.32.0"})
    engine.answer = strict
    with before(engine, tmp_path, engine_name) as (url, app):
        assert asked(url, priority="x").is_success
        assert asked(url).is_success
        assert counted(app, "pars_priority_refusals_total") == 0
    assert None not in engine.generations


def test_a_client_s_own_fault_behind_a_refusal_is_what_it_hears(tmp_path: Path) -> None:
    """The engine refuses the priority first; without it the client's own fault comes to light."""
    engine = Engine(version={"version": "0.9.2"})
    engine.answer = refusing
    with before(engine, tmp_path, "vllm-body") as (url, app):
        answer = asked(url, max_tokens=-1)
        assert (answer.status_code, answer.content) == (400, BROKEN)
        assert counted(app, "pars_priority_refusals_total") == 0


def test_an_error_that_an_engine_makes_of_anything_is_not_asked_for_ever(tmp_path: Path) -> None:
    """Once it has taken a priority, a 400 or 500 that does not speak of it costs no repeat."""
    engine = Engine(version={"version": "0.20.0"})
    with before(engine, tmp_path, "vllm-body") as (url, _):
        assert asked(url).is_success
        assert asked(url, max_tokens=-1).status_code == 400
        engine.answer = lambda priority, fields: (500, JSON, b"{}")
        assert asked(url).status_code == 500
    assert len(engine.generations) == 3


def test_a_body_that_is_not_held_is_told_to_come_again(tmp_path: Path) -> None:
    """It cannot be repeated here; a 503 is what clients repeat by themselves, a 400 is not."""
    engine = Engine(version={"version": "0.9.2"})
    engine.answer = refusing
    with before(engine, tmp_path, "vllm-body", max_body_bytes=4096) as (url, _):
        large = {"prompt": "x" * 5000}
        answer = httpx.post(url + COMPLETIONS, json=large)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "priority_refused"
        assert httpx.post(url + COMPLETIONS, json=large).content == ANSWER


def test_an_engine_that_was_updated_is_tried_again(tmp_path: Path) -> None:
    """Priorities are set from the next request on."""
    engine = Engine(version={"version": "0.9.2"})
    engine.answer = refusing
    with before(engine, tmp_path) as (url, app):
        eventually(lambda: app.known.is_known)
        assert asked(url).is_success
        assert app.known.refuses
        engine.answer = obliging
        engine.pages["/version"] = {"version": "0.32.0"}
        eventually(lambda: app.known.state == "vllm")
        assert asked(url).is_success
        assert counted(app, "pars_engine_schedules_by_priority") == -1
    assert engine.generations[-1] is not None


# SGLang's own options


def test_what_is_to_be_changed_in_sglang_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Preemption, which no request shows; on the health page too."""
    info = {"enable_priority_scheduling": True, "schedule_low_priority_values_first": True}
    engine = Engine(server_info=info | {"disable_priority_preemption": False})
    with before(engine, tmp_path) as (url, app):
        eventually(lambda: app.known.state == "sglang-low-first")
        [warning] = httpx.get(f"{url}/pars/health").json()["warnings"]
    assert "--disable-priority-preemption" in warning
    assert [it.message for it in caplog.records if it.levelname == "WARNING"] == [warning]


def test_an_order_that_would_be_reversed_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator's word counts, but larger values go first there."""
    info = {"enable_priority_scheduling": True, "schedule_low_priority_values_first": False}
    with before(Engine(server_info=info), tmp_path, "sglang-low-first") as (_, app):
        eventually(lambda: bool(app.known.warnings))
        assert app.known.state == "sglang-low-first"
    assert any("REVERSED" in message for message in caplog.messages)
