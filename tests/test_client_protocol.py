"""Whoever sends without end, or stops, or does not read, is left in bounded time and space."""

import asyncio
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from gateways import connect, exchange, get, is_eof, post, read_all, read_head, read_until
from pars.serving.client_protocol import MAX_OVERHEAD_BYTES, MOST_PIPELINED, ClientProtocol

from serving import DEADLINE_S, eventually, serve_in_thread

CHUNKED = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


class App:
    """Answers by path, and remembers what its requests ended with."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.may_go_on = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        body = b""
        if path != "/early":
            while True:
                message = await receive()
                body += message.get("body", b"")
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    self.ended.append((path, message["type"]))
                    break
            if message["type"] == "http.disconnect":
                return
        headers = [(b"content-length", b"%d" % len(body))] if path in ("/echo", "/early") else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if path == "/endless":
            gone = asyncio.ensure_future(receive())
            while not gone.done():
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                await asyncio.sleep(0)
            self.ended.append((path, gone.result()["type"]))
        elif path == "/slow":
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await self._wait()
            await send({"type": "http.response.body", "body": b"two"})
        elif path == "/broken":
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await self._wait()
        else:
            await send({"type": "http.response.body", "body": body})

    async def _wait(self) -> None:
        assert await asyncio.to_thread(self.may_go_on.wait, DEADLINE_S)


class Hasty(ClientProtocol):
    head_timeout_s = body_timeout_s = read_timeout_s = linger_s = 0.3


@contextmanager
def served(protocol: type[ClientProtocol] = ClientProtocol) -> Iterator[tuple[str, App]]:
    app = App()
    with serve_in_thread(app, http=protocol, lifespan="off") as url:
        yield url, app


def send_until_cut(connection: socket.socket, piece: bytes, most_bytes: int) -> bytes:
    """Send `piece` again and again until the other side ends it; what came back."""
    sent = 0
    with suppress(ConnectionError):
        while sent < most_bytes:
            connection.sendall(piece)
            sent += len(piece)
    assert sent < most_bytes, "all of it was taken"
    return read_all(connection)


# Without end


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (b"GET / HTTP/1.1\r\n", b"X: 1\r\n"),
        (b"GET / HTTP/1.1\r\nX: ", b"x" * 1000),
        (b"GET /", b"x" * 1000),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"X: 1\r\n"),
        (CHUNKED + b"1\r\na\r\n0\r\nX: ", b"x" * 1000),
        (CHUNKED + b"1;", b"x" * 1000),
        (CHUNKED + b'1;a="', b"x" * 1000),
    ],
    ids=["fields", "field", "target", "trailers", "trailer", "extension", "quoted extension"],
)
def test_what_is_no_body_has_a_largest_size(begun: bytes, piece: bytes) -> None:
    """A head, trailers or chunk extension without end is refused, and its connection closed."""
    with served() as (url, app), connect(url) as it:
        it.sendall(begun)
        send_until_cut(it, piece * 20, 100 * MAX_OVERHEAD_BYTES)
        assert exchange(url, get("/echo")).startswith(b"HTTP/1.1 200 ")
    assert ("/echo", "http.request") not in app.ended[:-1]


def test_a_head_that_is_too_large_is_told_so() -> None:
    """A client that stops in time hears a 431."""
    with served() as (url, _):
        came = exchange(url, b"GET / HTTP/1.1\r\nX: " + b"x" * (MAX_OVERHEAD_BYTES + 20_000))
    assert came.startswith(b"HTTP/1.1 431 ")


def test_requests_before_their_turn_have_a_largest_number() -> None:
    """Those that came before it are answered, then the client hears why there are no more."""
    request = b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"
    with served() as (url, app), connect(url) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + request * (MOST_PIPELINED + 1))
        app.may_go_on.set()
        answers = read_all(client)
    assert answers.count(b"HTTP/1.1 200 ") == MOST_PIPELINED + 1
    assert answers.endswith(b"too many requests that were sent before their turn")


def test_a_body_has_no_largest_size_of_its_chunks() -> None:
    """What bounds heads and extensions does not bound a body in small chunks, with extensions."""
    with served() as (url, _):
        chunks = b"1;note=abc\r\na\r\n" * 60_000
        came = exchange(
            url, CHUNKED.replace(b"Host", b"Connection: close\r\nHost"), chunks, b"0\r\n\r\n"
        )
    assert came.endswith(b"\r\n\r\n" + b"a" * 60_000)


# Silence


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"GET / HT", b"GET / HTTP/1.1\r\nX: a"])
@pytest.mark.parametrize("is_later", [False, True], ids=["first", "later"])
def test_a_head_that_stops_coming_is_left(begun: bytes, is_later: bool) -> None:
    """On a new connection, and on one that was used, unless it is idle by the book."""
    with served(Hasty) as (url, _), connect(url) as it:
        if is_later:
            it.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_head(it).startswith(b"HTTP/1.1 200 ")
        if begun or not is_later:
            it.sendall(begun)
            assert read_all(it) == b""


@pytest.mark.parametrize("begun", [LENGTH % (b"/echo", 10) + b"ab", CHUNKED + b"5\r\nab"])
def test_a_body_that_stops_coming_is_left(begun: bytes) -> None:
    """With a 408, and the app hears that the client is gone."""
    with served(Hasty) as (url, app), connect(url) as it:
        it.sendall(begun)
        assert read_all(it).startswith(b"HTTP/1.1 408 ")
        eventually(lambda: app.ended == [("/echo", "http.disconnect")])


def test_a_client_that_takes_no_answer_is_left() -> None:
    """An answer that waits for its client for too long ends its connection."""
    with served(Hasty) as (url, app), connect(url) as it:
        it.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        read_head(it)
        eventually(lambda: app.ended[-1] == ("/endless", "http.disconnect"))


def test_an_early_answer_leaves_a_moment_for_the_rest_of_the_body() -> None:
    """The rest comes in time: the connection goes on. It does not: it is closed."""
    with served(Hasty) as (url, _):
        with connect(url) as it:
            it.sendall(LENGTH % (b"/early", 4) + b"ab")
            assert read_head(it).startswith(b"HTTP/1.1 200 ")
            it.sendall(b"cd" + get("/echo"))
            assert read_all(it).startswith(b"HTTP/1.1 200 ")
        with connect(url) as it:
            it.sendall(LENGTH % (b"/early", 4) + b"ab")
            assert read_head(it).startswith(b"HTTP/1.1 200 ")
            assert is_eof(it)


# Refusals in their place


def test_a_fault_in_a_body_is_refused_and_told_to_the_app() -> None:
    """The app hears that the client is gone, the client a 400."""
    with served() as (url, app):
        came = exchange(url, CHUNKED + b"2\r\nab\r\nzz\r\n")
        assert came.startswith(b"HTTP/1.1 400 ")
        eventually(lambda: app.ended == [("/echo", "http.disconnect")])


def test_a_refusal_waits_for_the_answers_before_it() -> None:
    """A stream that runs is not broken by what its client sends behind the request."""
    with served() as (url, app), connect(url) as it:
        it.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + b"no http\r\n\r\n")
        came = read_until(it, b"one")
        app.may_go_on.set()
        came += read_all(it)
    assert re.fullmatch(rb"HTTP/1.1 200 .*one.*two.*0\r\n\r\nHTTP/1.1 400 .*", came, re.DOTALL)


def test_a_fault_in_a_body_that_has_its_answer_adds_no_second_one() -> None:
    """An answer that came before the body is the only one."""
    with served() as (url, _), connect(url) as it:
        it.sendall(CHUNKED.replace(b"/echo", b"/early"))
        came = read_head(it)
        it.sendall(b"zz\r\n")
        assert (came + read_all(it)).count(b"HTTP/1.1 ") == 1


# HTTP/1.0


@pytest.mark.parametrize("keep", [[], ["Connection: keep-alive"]])
def test_http_1_0_gets_no_chunk_sizes(keep: list[str]) -> None:
    """A body of unknown length comes as it is, and ends with the connection."""
    with served() as (url, app):
        app.may_go_on.set()
        lines = ["GET /slow HTTP/1.0", *keep, "", ""]
        came = exchange(url, "\r\n".join(lines).encode())
    head, _, body = came.partition(b"\r\n\r\n")
    assert body == b"onetwo"
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()


def test_http_1_0_keeps_a_length() -> None:
    """A body whose length is known is framed by it."""
    with served() as (url, _):
        came = exchange(url, post("/echo", b"abc").replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert b"content-length: 3\r\n" in came
    assert came.endswith(b"\r\n\r\nabc")


def test_http_1_0_sees_a_broken_body() -> None:
    """One that breaks off ends with a reset, since an end would make it look whole."""
    with served() as (url, app), connect(url) as it:
        it.sendall(b"GET /broken HTTP/1.0\r\n\r\n")
        read_until(it, b"one")
        app.may_go_on.set()
        with pytest.raises(ConnectionResetError):
            it.recv(1)


# The command


def test_the_score_service_has_the_same_bounds() -> None:
    """`pars serve` ends a head without end too."""
    command = [sys.executable, "-m", "pars", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = re.search(r"http://\S+", process.stdout.readline())
            assert url is not None
            eventually(lambda: _is_open(url[0]))
            with connect(url[0]) as it:
                it.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\n")
                send_until_cut(it, b"X: 1\r\n" * 1000, 100 * MAX_OVERHEAD_BYTES)
        finally:
            process.terminate()
            process.communicate(timeout=DEADLINE_S)


def _is_open(url: str) -> bool:
    with suppress(OSError):
        return exchange(url, get("/health")).startswith(b"HTTP/1.1 200 ")
    return False
