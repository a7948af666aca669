"""Whatever upstream or client does wrong, each request gets one answer, its own, in time."""

import asyncio
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateways import (
    connect,
    counted,
    exchange,
    gateway_to,
    post,
    read_all,
    read_head,
    read_request,
    scripted_upstream,
)
from pars.serving.client_protocol import MAX_OVERHEAD_BYTES, ClientProtocol

from fake_engine import FakeEngine
from serving import DEADLINE_S, eventually

COMPLETIONS = "/v1/completions"
ASK = {"prompt": "x"}


class HastyProtocol(ClientProtocol):
    head_timeout_s = body_timeout_s = 0.2


def error_code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# An upstream that is not there


def test_refused_connection_is_502(tmp_path: Path) -> None:
    """An upstream that is down is a 502 with the reason, in OpenAI's shape."""
    with gateway_to("http://127.0.0.1:1", tmp_path) as (url, app):
        answer = httpx.post(url + COMPLETIONS, json=ASK)
        assert error_code(answer) == (502, "upstream_unreachable")
        assert "127.0.0.1" not in answer.text  # where it is concerns no client
        assert counted(app, "pars_upstream_failures_total", code="upstream_unreachable") == 1


def test_a_path_forges_no_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Line breaks and escape sequences in it are shown as what they are."""
    with gateway_to("http://127.0.0.1:1", tmp_path) as (url, _):
        httpx.get(url + "/a%0Aforged%1B%5B31m")
    [line] = [it.getMessage() for it in caplog.records if "forged" in it.getMessage()]
    assert line.startswith(r"GET /a\nforged\x1b[31m: ")


def test_silence_is_504(tmp_path: Path) -> None:
    """An upstream that takes a request and never answers is a 504 after the timeout."""

    def serve(connection: socket.socket, index: int) -> None:
        while connection.recv(65536):
            pass

    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path, upstream={"timeout_s": 0.1}) as (url, _),
    ):
        assert error_code(httpx.post(url + COMPLETIONS, json=ASK)) == (504, "upstream_timeout")


def test_beyond_the_connection_limit_is_503_at_once(tmp_path: Path) -> None:
    """When every connection is in use, a request is refused; afterwards there is room again."""
    engine = FakeEngine(num_slots=2, token_s=0.01)
    with (
        engine.served() as up,
        gateway_to(up, tmp_path, upstream={"max_connections": 1}) as (url, app),
    ):
        holder = connect(url)
        holder.sendall(post(COMPLETIONS, b'{"prompt": "x", "max_tokens": 99999, "stream": true}'))
        read_head(holder)
        answer = httpx.post(url + COMPLETIONS, json=ASK)
        assert error_code(answer) == (503, "too_many_requests_in_flight")
        holder.close()
        eventually(lambda: app.upstreams[0].num_open == 0)
        assert httpx.post(url + COMPLETIONS, json=ASK).status_code == 200


# An upstream that breaks off


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    ],
)
def test_a_broken_answer_is_never_made_to_look_whole(
    tmp_path: Path, start: bytes, reset: bool
) -> None:
    """When the upstream dies in mid-answer, the client gets what came and then a broken stream."""

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.sendall(start)
        got_there.wait(DEADLINE_S)
        if reset:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    got_there = threading.Event()
    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, app):
        with httpx.stream("POST", url + COMPLETIONS, json=ASK) as answer:
            pieces = answer.iter_raw()
            assert next(pieces) == b"abc"
            got_there.set()
            with pytest.raises(httpx.RemoteProtocolError):
                next(pieces)
        assert counted(app, "pars_upstream_failures_total", code="upstream_closed") == 1


@pytest.mark.parametrize(
    "response",
    [
        b"garbage\r\n\r\n",
        b"\x00\xff" * 500,
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad Header: 1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 400_000,
    ],
    ids=["text", "binary", "status", "name", "value", "length", "two", "both", "upgrade", "head"],
)
def test_garbage_is_502(tmp_path: Path, response: bytes) -> None:
    """What is no HTTP answer is a 502, and the next request is served."""

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        connection.sendall(response if index == 0 else ok)
        while connection.recv(65536):
            pass

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, _):
        assert error_code(httpx.get(url)) == (502, "upstream_protocol_error")
        assert httpx.get(url).content == b"ok"


def test_bytes_after_an_answer_go_to_nobody(tmp_path: Path) -> None:
    """What follows a whole answer is not taken for the answer to the next request."""
    num_connections = 0

    def serve(connection: socket.socket, index: int) -> None:
        nonlocal num_connections
        num_connections += 1
        while read_request(connection):
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"
            )

    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path) as (url, _),
        httpx.Client(base_url=url) as client,
    ):
        assert [client.get("/").content for _ in range(5)] == [b"yes"] * 5
    assert num_connections == 5


# Connections that were kept


def test_a_connection_that_died_idle_is_replaced(tmp_path: Path) -> None:
    """An upstream that closes after every answer, unannounced, costs no request."""

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path) as (url, _),
        httpx.Client(base_url=url) as client,
    ):
        for _ in range(50):
            assert client.post(COMPLETIONS, json=ASK).content == b"ok"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", COMPLETIONS, 200), ("GET", "/x", 200), ("POST", "/x", 502)],
)
def test_only_what_is_safe_is_sent_twice(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    """A kept connection that dies on a request: a generation is sent again, another POST is not."""
    requests: Counter[int] = Counter()

    def serve(connection: socket.socket, index: int) -> None:
        while read_request(connection):
            requests[index] += 1
            if requests[index] == 2:
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path) as (url, _),
        httpx.Client(base_url=url) as client,
    ):
        assert client.get("/").content == b"ok"
        assert client.request(method, path, json=ASK).status_code == status
    assert requests == ({0: 2, 1: 1} if status == 200 else {0: 2})


def test_a_second_try_trusts_no_kept_connection(tmp_path: Path) -> None:
    """When a server restarts, all kept connections are dead: the request goes on a new one."""
    together = threading.Barrier(2)

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        if index < 2:
            together.wait(DEADLINE_S)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if index < 2:
            read_request(connection)  # the next one, which gets no answer

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, _):
        asked = [threading.Thread(target=httpx.get, args=(f"{url}/x",)) for _ in range(2)]
        for thread in asked:
            thread.start()
        for thread in asked:
            thread.join(DEADLINE_S)
        assert httpx.post(url + COMPLETIONS, json=ASK).content == b"ok"


def test_a_new_connection_that_dies_is_not_tried_again(tmp_path: Path) -> None:
    """An upstream that crashes on a request gets it once."""
    num_requests = 0

    def serve(connection: socket.socket, index: int) -> None:
        nonlocal num_requests
        num_requests += bool(read_request(connection))

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, _):
        assert error_code(httpx.post(url + COMPLETIONS, json=ASK)) == (502, "upstream_closed")
    assert num_requests == 1


# Clients


def test_a_body_too_large_to_score_passes_whole(tmp_path: Path) -> None:
    """Five megabytes stream through unscored and unchanged."""
    body = random.Random(0).randbytes(5 << 20)
    engine = FakeEngine()
    with engine.served() as up, gateway_to(up, tmp_path) as (url, app):
        httpx.post(url + COMPLETIONS, content=body)
        assert counted(app, "pars_decisions_total", outcome="too_large") == 1
    assert engine.asked[-1].body == body


def test_an_answer_before_the_end_of_a_body_reaches_the_client(tmp_path: Path) -> None:
    """An upstream that refuses a large upload early is heard."""

    def serve(connection: socket.socket, index: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        while connection.recv(65536):
            pass

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, _), connect(url) as it:
        it.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\nabc")
        assert read_head(it).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", [COMPLETIONS, "/upload"])
def test_a_body_that_stops_coming_is_408(tmp_path: Path, path: str) -> None:
    """A client that announces a body and stops in the middle gets a 408, not a slot for ever."""
    with (
        FakeEngine().served() as up,
        gateway_to(up, tmp_path, protocol=HastyProtocol) as (url, app),
        connect(url) as slow,
    ):
        slow.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab".encode())
        assert httpx.post(url + COMPLETIONS, json=ASK).status_code == 200
        assert read_all(slow).startswith(b"HTTP/1.1 408 ")
        eventually(lambda: app.middleware.byte_budget.num_bytes == 0)


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nX: a"])
def test_a_head_that_stops_coming_is_cut(tmp_path: Path, begun: bytes) -> None:
    """A connection without a whole request head is closed in time, and others are served."""
    with (
        FakeEngine().served() as up,
        gateway_to(up, tmp_path, protocol=HastyProtocol) as (url, _),
        connect(url) as slow,
    ):
        slow.sendall(begun)
        assert httpx.get(f"{url}/v1/models").status_code == 200
        assert read_all(slow) == b""


def test_a_head_without_end_is_cut(tmp_path: Path) -> None:
    """A request head has a largest size."""
    with (
        FakeEngine().served() as up,
        gateway_to(up, tmp_path) as (url, _),
        connect(url) as it,
        pytest.raises(ConnectionError),
    ):
        it.sendall(b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * (20 * MAX_OVERHEAD_BYTES))


def test_pipelined_requests_get_their_answers_in_order(tmp_path: Path) -> None:
    """Two requests sent at once on one connection are answered one after the other."""
    with FakeEngine().served() as up, gateway_to(up, tmp_path) as (url, _):
        first = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\none"
        came = exchange(url, first + post("/echo", b"two"))
    assert came.index(b"one") < came.index(b"two")
    assert came.count(b"HTTP/1.1 200 ") == 2


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "BREW"]),
    path=st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=12),
    body=st.binary(max_size=40),
    header=st.binary(max_size=20),
)
def test_no_request_makes_an_error_of_ours(
    shared_gateway: str, method: str, path: str, body: bytes, header: bytes
) -> None:
    """Any request is answered by the upstream, or refused as no HTTP; never with a 5xx of ours."""
    head = f"{method} /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
    head += b"X: " + header.replace(b"\n", b"").replace(b"\r", b"") + b"\r\n"
    came = exchange(shared_gateway, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    status = int(came.split(b" ", 2)[1])
    assert status < 500, came


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with (
        FakeEngine(num_slots=99).served() as up,
        gateway_to(up, tmp_path_factory.mktemp("ranker")) as (url, _),
    ):
        yield url


# All at once

NUM_REQUESTS = 10_000
NUM_CLIENTS = 24
FAULTS = {  # shares of the requests, in thousandths
    "none": 563,
    "stream": 200,
    "close_after": 60,
    "status_500": 50,
    "die_at_once": 40,
    "die_in_answer": 40,
    "garbage": 20,
    "hang": 2,
    "client_leaves": 25,
}


async def faulty_upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Does with each request what its body says, and answers with its name."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            [length] = [
                line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
            ]
            asked = json.loads(await reader.readexactly(int(length.split(b":")[1])))
            name = asked["user"].encode()
            fault = asked["fault"]
            if fault == "die_at_once":
                return
            if fault == "garbage":
                writer.write(b"no http at all " + name)
            elif fault in ("stream", "die_in_answer"):
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for _ in range(3):
                    writer.write(b"%x\r\n%s\r\n" % (len(name), name))
                    await asyncio.sleep(0)
                if fault == "die_in_answer":
                    return
                writer.write(b"0\r\n\r\n")
            elif fault != "hang":
                status = 500 if fault == "status_500" else 200
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(name)))
                writer.write(name)
            if fault == "close_after":
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


class Answer:
    """One answer as it comes: status, body, whether it is whole, how many there were."""

    def __init__(self) -> None:
        self.body = b""
        self.num_whole = 0
        self.status = 0
        self.parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.num_whole += 1


def check(name: str, fault: str, answer: Answer) -> None:
    """The one answer that this fault allows."""
    expected = {
        "none": (200, name.encode()),
        "close_after": (200, name.encode()),
        "status_500": (500, name.encode()),
        "stream": (200, name.encode() * 3),
    }
    if fault in expected:
        assert (answer.status, answer.body) == expected[fault]
        assert answer.num_whole == 1
    elif fault == "die_in_answer" and answer.status == 200:
        assert answer.num_whole == 0
        assert (name.encode() * 3).startswith(answer.body)
    else:
        codes = {"hang": ["upstream_timeout"], "garbage": ["upstream_protocol_error"]}
        code = json.loads(answer.body)["error"]["code"]
        assert code in codes.get(fault, ["upstream_closed"])
        assert answer.num_whole == 1


async def faulty_client(host: str, port: int, names: list[str], rng: random.Random) -> Counter[str]:
    """Sends requests over one kept connection, a new one where that broke; checks the answers."""
    faults, weights = list(FAULTS), list(FAULTS.values())
    seen: Counter[str] = Counter()
    writer: asyncio.StreamWriter | None = None
    for name in names:
        if writer is None:
            reader, writer = await asyncio.open_connection(host, port)
        fault = rng.choices(faults, weights)[0]
        seen[fault] += 1
        body = json.dumps({"prompt": "x" * rng.randrange(40), "user": name, "fault": fault})
        writer.write(f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\n".encode())
        writer.write(f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = Answer()
        if fault == "client_leaves":
            await asyncio.sleep(rng.random() / 200)
            writer.close()
            writer = None
            continue
        while not answer.num_whole and (piece := await reader.read(65536)):
            answer.parser.feed_data(piece)
        check(name, fault, answer)
        if not answer.num_whole:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    return seen


class MoodyScorer:
    """Fails on some prompts and is late with others."""

    def __init__(self) -> None:
        self.rng = random.Random(7)
        self.pause = threading.Event()

    def score(self, prompts: list[str]) -> Any:
        mood = self.rng.random()
        if mood < 0.05:
            raise RuntimeError("not now")
        if mood < 0.07:
            self.pause.wait(0.03)
        return np.array([len(prompt) for prompt in prompts], dtype=np.float32)


def test_ten_thousand_requests_with_faults_each_get_one_answer_their_own(tmp_path: Path) -> None:
    """Whatever upstream, clients and scorer do, no answer is lost, doubled or mixed up."""

    async def run(gateway_url: str) -> Counter[str]:
        parts = urlsplit(gateway_url)
        names = [
            [f"<{c}-{i}>" for i in range(NUM_REQUESTS // NUM_CLIENTS)] for c in range(NUM_CLIENTS)
        ]
        names[0] += [f"<more-{i}>" for i in range(NUM_REQUESTS - sum(map(len, names)))]
        clients = [
            faulty_client(str(parts.hostname), int(parts.port or 0), mine, random.Random(c))
            for c, mine in enumerate(names)
        ]
        return sum(await asyncio.gather(*clients), Counter())

    with (
        upstream_in_thread() as up,
        gateway_to(
            up,
            tmp_path,
            scorer=MoodyScorer(),
            upstream={"timeout_s": 3.0},  # longer than a busy machine stands still
            settings={"budget_ms": 20.0},
        ) as (url, app),
    ):
        seen = asyncio.run(run(url))
        assert sum(seen.values()) == NUM_REQUESTS
        assert set(seen) == set(FAULTS)
        eventually(lambda: counted(app, "pars_requests_in_flight") == 0)
        assert app.middleware.byte_budget.num_bytes == 0
        assert app.upstreams[0].num_open <= NUM_CLIENTS
        scored = counted(app, "pars_decisions_total", outcome="scored")
        failed = counted(app, "pars_decisions_total", outcome="scorer_failed")
        assert scored > failed > 0


@contextmanager
def upstream_in_thread() -> Iterator[str]:
    """The faulty upstream's base URL while the block runs."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(faulty_upstream, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(DEADLINE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.05)
