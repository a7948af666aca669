"""How the gateway reaches its upstream: sockets, keys, authorities, proxies, clean connections."""

import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateways import (
    connect,
    counted,
    exchange,
    gateway_to,
    get,
    post,
    read_all,
    read_head,
    read_request,
    read_until,
    scripted_upstream,
)
from pars.errors import ParsError
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream
from strict_http import Record

from serving import DEADLINE_S

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
COMPLETIONS = "/v1/completions"
Script = Callable[[socket.socket, int], None]


def answering(seen: list[bytes], answer: bytes = OK) -> Script:
    """A script that notes each request and gives it `answer`."""

    def serve(connection: socket.socket, index: int) -> None:
        while request := read_request(connection):
            seen.append(request)
            connection.sendall(answer)

    return serve


def fields_of(request: bytes) -> list[tuple[bytes, bytes]]:
    lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]


# Where it is


@pytest.mark.parametrize("spelling", ["unix:{}", "unix://{}", "http+unix://{escaped}"])
def test_an_upstream_on_a_unix_socket(tmp_path: Path, spelling: str) -> None:
    """Each way to name a socket reaches it, with a Host and a priority."""
    path = tmp_path / "an engine.sock"
    seen: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        url = spelling.format(path, escaped=quote(str(path), safe=""))
        with scripted_upstream(answering(seen), listener), gateway_to(url, tmp_path) as (gw, _):
            assert httpx.post(gw + COMPLETIONS, json={"prompt": "x"}).content == b"ok"
    names = [name for name, _ in fields_of(seen[0])]
    assert (b"host", b"localhost") in fields_of(seen[0])
    assert names.count(b"x-vllm-priority") == 1


@pytest.mark.parametrize("url", ["unix:", "unix://", "http+unix://", "unix:\0"])
def test_a_socket_must_be_named(url: str) -> None:
    """A Unix socket without a path is refused with what would be right."""
    with pytest.raises(ParsError, match="unix:PATH"):
        Upstream(url)


@pytest.mark.parametrize("tail", ["/v1", "/v1/", "/base/v1", "/base/"])
def test_a_version_at_the_end_of_the_url_is_understood(tmp_path: Path, tail: str) -> None:
    """The URL may be the one that OpenAI's clients take."""
    seen: list[bytes] = []
    with scripted_upstream(answering(seen)) as up, gateway_to(up + tail, tmp_path) as (url, _):
        httpx.get(f"{url}/v1/models")
    base = "/base" if "base" in tail else ""
    assert seen[0].startswith(f"GET {base}/v1/models HTTP/1.1\r\n".encode())


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=30)
)
def test_every_target_arrives_as_it_was_sent(relayed: tuple[str, Record], target: str) -> None:
    """Escapes, dots, doubled slashes, brackets: nothing is rewritten but an empty query's mark."""
    url, record = relayed
    came = exchange(url, get("/" + target))
    if not came.startswith(b"HTTP/1.1 200 "):
        assert came.startswith(b"HTTP/1.1 400 ")
        return
    wanted = b"/" + target.encode()
    if wanted.find(b"?") == len(wanted) - 1:
        wanted = wanted[:-1]
    assert record.requests[-1].target == wanted
    assert record.faults == []


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Record]]:
    record = Record()
    with record.served() as up, gateway_to(up, tmp_path_factory.mktemp("ranker")) as (url, _):
        yield url, record


def test_a_field_arrives_byte_for_byte(tmp_path: Path) -> None:
    """In whatever encoding it is."""
    seen: list[bytes] = []
    with scripted_upstream(answering(seen)) as up, gateway_to(up, tmp_path) as (url, _):
        sent = get("/x").replace(b"\r\n\r\n", b"\r\nA: \xc3\xa9\ta  b\r\nB: \xe9\r\n\r\n")
        exchange(url, sent)
    assert {(b"a", b"\xc3\xa9\ta  b"), (b"b", b"\xe9")} <= set(fields_of(seen[0]))


# Who we are, and who it is


def test_the_upstreams_own_key_replaces_the_clients(tmp_path: Path) -> None:
    """No key of a client's reaches an upstream that has one of its own, however it is sent."""
    seen: list[bytes] = []
    with (
        scripted_upstream(answering(seen)) as up,
        gateway_to(up, tmp_path, upstream={"api_key": "inner"}, settings={"api_keys": "outer"}) as (
            url,
            _,
        ),
    ):
        for name in ("Authorization: Bearer outer", "x-api-key: outer", "api-key: outer"):
            exchange(url, post(COMPLETIONS, b'{"prompt": "x"}', name, "X_Api_Key: outer"))
        assert exchange(url, get("/x", "Authorization: Bearer inner")).startswith(b"HTTP/1.1 401 ")
        httpx.get(f"{url}/pars/health")
    assert len(seen) == 4
    for request in seen:
        assert (b"authorization", b"Bearer inner") in fields_of(request)
        assert b"outer" not in request


def test_without_one_the_clients_key_passes(tmp_path: Path) -> None:
    """An upstream that checks the same keys gets them."""
    seen: list[bytes] = []
    with scripted_upstream(answering(seen)) as up, gateway_to(up, tmp_path) as (url, _):
        exchange(url, get("/x", "Authorization: Bearer mine", "x-api-key: mine"))
    assert {(b"authorization", b"Bearer mine"), (b"x-api-key", b"mine")} <= set(fields_of(seen[0]))


def test_the_key_may_lie_in_a_file(tmp_path: Path) -> None:
    """The line in the file counts, without its end."""
    file = tmp_path / "key"
    file.write_text("inner\n")
    assert Settings(upstream_api_key_file=str(file)).upstream_key == "inner"
    assert Settings(upstream_api_key="hush").upstream_key == "hush"
    assert "hush" not in repr(Settings(upstream_api_key="hush"))


@pytest.mark.parametrize("content", [None, "", "\n", "a\nb", "clé", "a\0b"])
def test_a_file_that_holds_no_key_is_named(tmp_path: Path, content: str | None) -> None:
    """What cannot be one key in one line is refused with the file's name."""
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ParsError, match=re.escape(str(file))):
        _ = Settings(upstream_api_key_file=str(file)).upstream_key


def test_two_places_for_the_key_are_one_too_many(tmp_path: Path) -> None:
    """Which of them counts would be a guess."""
    with pytest.raises(ParsError, match="upstream_api_key"):
        _ = Settings(upstream_api_key="a", upstream_api_key_file=str(tmp_path)).upstream_key


def test_own_authorities_are_trusted_for_https(tmp_path: Path) -> None:
    """With the file of its authority an upstream is believed; without, it is not."""
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    seen: list[bytes] = []
    plain = answering(seen)

    def serve(connection: socket.socket, index: int) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            plain(encrypted, index)

    with scripted_upstream(serve) as up:
        https = up.replace("http:", "https:")
        with gateway_to(https, tmp_path, upstream={"ca_file": str(file)}) as (url, _):
            assert httpx.get(f"{url}/x").content == b"ok"
        with gateway_to(https, tmp_path) as (url, _):
            answer = httpx.get(f"{url}/x")
    assert answer.status_code == 502
    assert "certificate" in answer.json()["error"]["message"].lower()
    assert len(seen) == 1


@pytest.mark.parametrize("content", [None, "no pem"])
def test_a_file_that_holds_no_authority_is_named(tmp_path: Path, content: str | None) -> None:
    """A missing or wrong file is one line at the start."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ParsError, match=re.escape(str(file))):
        Upstream("https://127.0.0.1:1", ca_file=str(file))


# Proxies


def test_a_proxy_of_the_environment_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upstream on another machine is reached through HTTP_PROXY, in absolute form."""
    seen: list[bytes] = []
    with scripted_upstream(answering(seen)) as proxy:
        for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", proxy)
        with gateway_to("http://engine.example:8000", tmp_path) as (url, _):
            assert httpx.get(f"{url}/v1/models", trust_env=False).content == b"ok"
        monkeypatch.setenv("no_proxy", "engine.example")
        assert not Upstream("http://engine.example:8000").has_proxy
    assert seen[0].startswith(b"GET http://engine.example:8000/v1/models HTTP/1.1\r\n")
    assert (b"host", b"engine.example:8000") in fields_of(seen[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "[::1]", "a.localhost"])
def test_an_upstream_on_this_machine_is_asked_directly(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Whatever the environment says: the proxy's own loopback is another machine's."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    assert not Upstream(f"http://{host}:8000").has_proxy
    assert Upstream("http://192.0.2.7:8000").has_proxy


# Connections that are clean, or not used again

SECOND = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"


@pytest.mark.parametrize("at_once", [SECOND, SECOND[:4], SECOND[:-3], b"H", b""])
@pytest.mark.parametrize("later", [SECOND, SECOND[4:], b"x", b"\r\n"])
@pytest.mark.parametrize("framing", ["length", "chunks", "none"])
def test_what_comes_beyond_an_answer_closes_its_connection(
    tmp_path: Path, at_once: bytes, later: bytes, framing: str
) -> None:
    """Whole or in part, with the answer or after it: it reaches nobody, and costs no request."""
    first = {
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst",
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
        "none": b"HTTP/1.1 204 No Content\r\n\r\n",
    }[framing]
    has_answer, is_closed = threading.Event(), threading.Event()

    def serve(connection: socket.socket, index: int) -> None:
        while read_request(connection):
            if index:
                connection.sendall(OK)
                continue
            connection.sendall(first + at_once)
            assert has_answer.wait(DEADLINE_S)
            try:
                connection.sendall(later)
                while connection.recv(65536):
                    pass
            except ConnectionError:
                pass
            is_closed.set()

    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path) as (url, app),
        httpx.Client(base_url=url) as client,
    ):
        assert client.post("/x").content == (b"" if framing == "none" else b"first")
        has_answer.set()
        assert is_closed.wait(DEADLINE_S)
        assert client.post("/x").content == b"ok"
        assert counted(app, "pars_upstream_failures_total", code="upstream_protocol_error") == 0


@pytest.mark.parametrize("more", [SECOND, SECOND[:4], SECOND[:-3], b"H"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_connection_with_more_than_an_answer_is_not_used_again(
    tmp_path: Path, more: bytes, framing: str
) -> None:
    """Also when the next request comes before the rest of what was begun."""
    first = {
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst",
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
    }[framing]
    used: list[int] = []

    def serve(connection: socket.socket, index: int) -> None:
        while read_request(connection):
            used.append(index)
            connection.sendall(first + more)

    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path) as (url, _),
        httpx.Client(base_url=url) as client,
    ):
        assert [client.post("/x").content for _ in range(4)] == [b"first"] * 4
    assert used == [0, 1, 2, 3]


def test_an_answer_behind_the_end_of_a_stream_reaches_nobody(tmp_path: Path) -> None:
    """The end of a stream and a second answer come in one piece: the next request gets its own."""
    has_begun = threading.Event()
    used: list[int] = []

    def serve(connection: socket.socket, index: int) -> None:
        while read_request(connection):
            used.append(index)
            if index:
                connection.sendall(OK)
                continue
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
            )
            assert has_begun.wait(DEADLINE_S)
            connection.sendall(b"0\r\n\r\n" + SECOND)

    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path) as (url, _),
        httpx.Client(base_url=url) as client,
    ):
        with client.stream("POST", "/x") as answer:
            pieces = answer.iter_raw()
            assert next(pieces) == b"first"
            has_begun.set()
            assert list(pieces) == []
        assert client.post("/x").content == b"ok"
    assert used == [0, 1]


def test_garbage_behind_an_answer_costs_that_answer_at_most(tmp_path: Path) -> None:
    """What is no HTTP comes with an answer: the next request is not touched by it."""

    def serve(connection: socket.socket, index: int) -> None:
        while read_request(connection):
            connection.sendall(OK if index else OK + b"\0\xff garbage")

    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path) as (url, _),
        httpx.Client(base_url=url) as client,
    ):
        assert client.post("/x").status_code in (200, 502)
        assert client.post("/x").content == b"ok"


@pytest.mark.parametrize("bad", [b"zz\r\n", b"3\r\nabcX", b"-1\r\n"])
def test_a_body_that_is_no_http_breaks_the_answer(tmp_path: Path, bad: bytes) -> None:
    """A fault in the middle of a chunked body is a broken stream, at once."""
    goes_on = threading.Event()

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        assert goes_on.wait(DEADLINE_S)
        connection.sendall(bad)
        while connection.recv(65536):
            pass

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, app), connect(url) as it:
        it.sendall(get("/x"))
        came = read_until(it, b"abc\r\n")
        goes_on.set()
        came += read_all(it)
        failures = counted(app, "pars_upstream_failures_total", code="upstream_protocol_error")
    assert not came.endswith(b"0\r\n\r\n")
    assert failures == 1


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_answer_without_a_length_that_is_reset_is_broken(tmp_path: Path, version: bytes) -> None:
    """A body that ends with its connection is whole only if that ends in order."""
    goes_on = threading.Event()

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nabc")
        assert goes_on.wait(DEADLINE_S)
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, _), connect(url) as it:
        it.sendall(get("/x").replace(b"HTTP/1.1", b"HTTP/" + version))
        came = read_until(it, b"abc")
        goes_on.set()
        if version == b"1.0":
            with pytest.raises(ConnectionResetError):
                it.recv(65536)
        else:
            assert not (came + read_all(it)).endswith(b"0\r\n\r\n")


def test_an_upstream_that_takes_no_upload_is_504(tmp_path: Path) -> None:
    """A body of which it takes nothing for the time of --timeout-s is given up."""
    stop = threading.Event()

    def serve(connection: socket.socket, index: int) -> None:
        read_head(connection)
        stop.wait(DEADLINE_S)

    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path, upstream={"timeout_s": 0.3}) as (url, _),
        connect(url) as it,
    ):
        it.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        sender = threading.Thread(target=_send_until_cut, args=(it,))
        sender.start()
        assert read_head(it).startswith(b"HTTP/1.1 504 ")
        stop.set()
        sender.join(DEADLINE_S)


def _send_until_cut(connection: socket.socket) -> None:
    try:
        while True:
            connection.sendall(b"x" * (1 << 20))
    except OSError:
        pass


def test_an_answer_may_end_an_upload(tmp_path: Path) -> None:
    """An upstream that answers and closes in the middle of a body is heard, not called broken."""

    def serve(connection: socket.socket, index: int) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, app), connect(url) as it:
        it.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\nabc")
        assert read_until(it, b"no").startswith(b"HTTP/1.1 413 ")
        assert counted(app, "pars_upstream_failures_total", code="upstream_closed") == 0


@pytest.mark.parametrize(
    "field", [b"A b: 1", b"A: \x01", b"A: a\x7f", b": 1", b"A\xe9: 1", b"A: 1\r\n 2"]
)
def test_fields_that_http_does_not_allow_are_not_passed_on(tmp_path: Path, field: bytes) -> None:
    """An upstream's malformed field is a 502, or a field of another form; never passed as it is."""
    answer = b"HTTP/1.1 200 OK\r\n%s\r\nContent-Length: 2\r\n\r\nok" % field
    with scripted_upstream(answering([], answer)) as up, gateway_to(up, tmp_path) as (url, _):
        came = exchange(url, get("/x"))
    assert came.startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 200 "))
    assert b"\r\n" + field + b"\r\n" not in came
