"""The gateway is invisible but for the order in which requests are served."""

import gzip
import json
import socket
import threading
from functools import partial
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from gateways import (
    connect,
    counted,
    exchange,
    gateway_to,
    get,
    is_eof,
    post,
    read_all,
    read_head,
    read_request,
    read_until,
    scripted_upstream,
)
from pars.cli.main import commands
from pars.errors import ParsError
from pars.serving.header_fields import end_to_end
from pars.serving.upstream import Upstream

from fake_engine import FakeEngine
from serving import DEADLINE_S, GatedScorer, eventually

COMPLETIONS = "/v1/completions"


def answering(response: bytes, seen: list[bytes] | None = None):
    """A script that gives each request on a connection `response`."""

    def serve(connection: socket.socket, index: int) -> None:
        while request := read_request(connection):
            if seen is not None:
                seen.append(request)
            connection.sendall(response)

    return serve


# Bytes


def test_request_reaches_the_upstream_byte_for_byte(tmp_path: Path) -> None:
    """Path, query, repeated headers and body arrive as sent; hop-by-hop headers do not."""
    seen: list[bytes] = []
    ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    with scripted_upstream(answering(ok, seen)) as up, gateway_to(up, tmp_path) as (url, _):
        body = b'{"a": "\\u00e9", "b": 1.50}\xff\x00'
        sent = post(
            "/a%2Fb/%C3%A9/../x?q=1&q=%20&&z",
            body,
            "X-Twice: one",
            "X-Twice: two",
            "X-Hop: secret",
            "Keep-Alive: 5",
            "TE: trailers",
            "Connection: x-hop",
            "Accept-Encoding: br",
        )
        exchange(url, sent)
    host = up.removeprefix("http://")
    assert seen == [
        f"POST /a%2Fb/%C3%A9/../x?q=1&q=%20&&z HTTP/1.1\r\nHost: {host}\r\n"
        "x-twice: one\r\nx-twice: two\r\naccept-encoding: br\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    ]


def test_response_reaches_the_client_byte_for_byte(tmp_path: Path) -> None:
    """Status, repeated Set-Cookie, Date, Server and a compressed body come back untouched."""
    packed = gzip.compress(b"hello")
    response = (
        b"HTTP/1.1 418 Teapot\r\nDate: yesterday\r\nServer: old\r\nSet-Cookie: a=1\r\n"
        b"Set-Cookie: b=2\r\nContent-Encoding: gzip\r\nX-Hop: 1\r\nConnection: x-hop\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(packed), packed)
    )
    with scripted_upstream(answering(response)) as up, gateway_to(up, tmp_path) as (url, _):
        came = exchange(url, get("/"))
    head, _, body = came.partition(b"\r\n\r\n")
    assert body == packed
    assert head.split(b"\r\n")[0].startswith(b"HTTP/1.1 418 ")
    assert head.split(b"\r\n")[1:] == [
        b"date: yesterday",
        b"server: old",
        b"set-cookie: a=1",
        b"set-cookie: b=2",
        b"content-encoding: gzip",
        b"content-length: %d" % len(packed),
        b"connection: close",
    ]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_every_method_passes(tmp_path: Path, method: str) -> None:
    """The method and a body of its own go through."""
    engine = FakeEngine()
    with engine.served() as up, gateway_to(up, tmp_path) as (url, _):
        assert httpx.request(method, f"{url}/echo", content=b"abc").content == b"abc"
    assert engine.asked[-1].method == method


def test_head_has_the_length_and_no_body(tmp_path: Path) -> None:
    """A HEAD response tells the length of what it leaves out, and the next request works."""
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"
    with (
        scripted_upstream(answering(response)) as up,
        gateway_to(up, tmp_path) as (url, _),
        httpx.Client(base_url=url) as client,
    ):
        for _ in range(2):
            answer = client.head("/")
            assert (answer.headers["content-length"], answer.content) == ("1234", b"")


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_body(tmp_path: Path, status: int) -> None:
    """204 and 304 end with their head."""
    response = b"HTTP/1.1 %d X\r\nETag: t\r\nContent-Length: 7\r\n\r\n" % status
    with scripted_upstream(answering(response)) as up, gateway_to(up, tmp_path) as (url, _):
        came = exchange(url, get("/"))
    assert came.startswith(b"HTTP/1.1 %d " % status)
    assert b"etag: t" in came
    assert came.endswith(b"\r\n\r\n")


def test_chunked_request_bodies_pass_in_pieces(tmp_path: Path) -> None:
    """A chunked body arrives chunked with the same bytes, each piece as it is sent."""
    came: list[bytes] = []
    has_piece = threading.Event()

    def serve(connection: socket.socket, index: int) -> None:
        came.append(read_until(connection, b"2\r\nab\r\n"))
        has_piece.set()
        came.append(read_until(connection, b"0\r\n\r\n"))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, _), connect(url) as it:
        it.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        assert has_piece.wait(DEADLINE_S)
        it.sendall(b"3;x=y\r\ncde\r\n0\r\nX-Trailer: 1\r\n\r\n")
        assert read_head(it).startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding: chunked" in came[0].lower()
    assert b"content-length" not in came[0].lower()
    assert came[1] == b"3\r\ncde\r\n0\r\n\r\n"


def test_a_body_that_is_here_whole_is_framed_by_its_length(tmp_path: Path) -> None:
    """How a body is framed is made anew: chunks that came at once go on with their length."""
    seen: list[bytes] = []
    ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
    with scripted_upstream(answering(ok, seen)) as up, gateway_to(up, tmp_path) as (url, _):
        exchange(url, head + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
    assert seen[0].endswith(b"Content-Length: 3\r\n\r\nabc")
    assert b"transfer-encoding" not in seen[0].lower()


def test_response_until_close_is_whole(tmp_path: Path) -> None:
    """An answer that ends with the upstream's connection, as in HTTP/1.0, arrives whole."""

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nabc")

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, _):
        assert httpx.get(url).content == b"abc"


def test_interim_responses_are_passed_over(tmp_path: Path) -> None:
    """100 and 103 before the answer do not get in its way."""
    response = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    with scripted_upstream(answering(response)) as up, gateway_to(up, tmp_path) as (url, _):
        answer = httpx.get(url)
    assert (answer.status_code, answer.content, "link" in answer.headers) == (200, b"ok", False)


def test_a_client_that_expects_100_gets_it_from_the_gateway(tmp_path: Path) -> None:
    """`Expect: 100-continue` is answered here and not passed on."""
    engine = FakeEngine()
    with engine.served() as up, gateway_to(up, tmp_path) as (url, _), connect(url) as client:
        body = b'{"prompt": "x"}'
        request = post(COMPLETIONS, body, "Expect: 100-continue")
        client.sendall(request.removesuffix(body))
        assert read_head(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert read_all(client).startswith(b"HTTP/1.1 200 ")
    assert b"expect" not in dict(engine.asked[-1].headers)


def test_chunked_response_with_trailers_loses_only_the_trailers(tmp_path: Path) -> None:
    """The body of a chunked answer arrives; trailers, which ASGI cannot carry, do not."""
    response = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
        b"3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n"
    )
    with (
        scripted_upstream(answering(response)) as up,
        gateway_to(up, tmp_path) as (url, _),
        httpx.Client(base_url=url) as client,
    ):
        for _ in range(2):  # and the connection is kept
            answer = client.get("/")
            assert answer.content == b"abc"
            assert "x-sum" not in answer.headers


def test_hop_by_hop_headers_are_named_in_connection_too() -> None:
    """What Connection names is dropped with it."""
    headers = [(b"A", b"1"), (b"Connection", b"close, b"), (b"B", b"2"), (b"te", b"trailers")]
    assert end_to_end(headers) == [(b"A", b"1")]


@pytest.mark.parametrize(
    ("prefix", "place", "seen"),
    [
        ("", "http://HOST/v1/models?a=%20b#c", "/v1/models?a=%20b#c"),
        ("", "//HOST/v1/models", "/v1/models"),
        ("", "HTTP://HOST", "/"),
        ("", "https://NAME/v1/models", "/v1/models"),  # TLS ends before the server
        ("", "/v1/models/?", "/v1/models/?"),
        ("", "models/", "models/"),
        ("", "http://HOST//evil.example/x", "/evil.example/x"),
        ("/base/v1/", "http://HOST/base/v1/models", "/v1/models"),
        ("/base", "/base/v1/models", "/v1/models"),
        ("/base", "/based/v1/models", "/based/v1/models"),
        ("", "https://elsewhere.example/x", "https://elsewhere.example/x"),
        ("", "http://NAME:1/x", "http://NAME:1/x"),  # another server on that machine
        ("", "http://[bad/x", "http://[bad/x"),
        ("", "ftp://HOST/x", "ftp://HOST/x"),
    ],
)
def test_a_redirect_never_names_the_upstream(
    tmp_path: Path, prefix: str, place: str, seen: str
) -> None:
    """A place on the upstream becomes a path here, whatever its prefix; others stay."""
    places: list[str] = []

    def serve(connection: socket.socket, index: int) -> None:
        while read_request(connection):
            head = f"HTTP/1.1 307 X\r\nLocation: {places[0]}\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(head.encode())

    with (
        scripted_upstream(serve) as up,
        gateway_to(up + prefix, tmp_path) as (url, _),
    ):
        host = up.removeprefix("http://")
        name = host.partition(":")[0]
        places.append(place.replace("HOST", host).replace("NAME", name))
        answer = httpx.post(f"{url}/v1/models/", content=b"x")
    assert answer.status_code == 307
    assert answer.headers["location"] == seen.replace("HOST", host).replace("NAME", name)


# Streams


def test_events_arrive_one_by_one(tmp_path: Path) -> None:
    """The first event is there while the upstream still holds back the second."""
    release = threading.Event()
    chunk = b"data: 1\n\n"

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked"
        connection.sendall(head + b"\r\n\r\n%x\r\n%s\r\n" % (len(chunk), chunk))
        assert release.wait(DEADLINE_S)
        connection.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(chunk), chunk))

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, _):
        request = {"prompt": "x", "stream": True}
        with httpx.stream("POST", url + COMPLETIONS, json=request) as answer:
            pieces = answer.iter_raw()
            assert next(pieces) == chunk
            release.set()
            assert b"".join(pieces) == chunk


def test_client_that_leaves_closes_the_upstream(tmp_path: Path) -> None:
    """When the client goes in mid-stream, a silent upstream's connection is closed at once."""
    closed = threading.Event()

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        assert is_eof(connection)
        closed.set()

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, app):
        client = connect(url)
        client.sendall(post(COMPLETIONS, b'{"prompt": "x", "stream": true}'))
        read_head(client)
        client.close()
        assert closed.wait(DEADLINE_S)
        eventually(lambda: counted(app, "pars_clients_gone_total") == 1)
        eventually(lambda: counted(app, "pars_requests_in_flight") == 0)


def test_client_that_leaves_a_queue_is_forgotten_there(tmp_path: Path) -> None:
    """A request whose client left before its turn never gets a slot."""
    engine = FakeEngine(num_slots=1, token_s=0.01)
    with engine.served() as up, gateway_to(up, tmp_path) as (url, _):
        holder = connect(url)
        holder.sendall(post(COMPLETIONS, b'{"prompt": "x", "max_tokens": 100000, "stream": true}'))
        eventually(lambda: engine.num_running == 1)
        waiter = connect(url)
        waiter.sendall(post(COMPLETIONS, b'{"prompt": "x", "user": "waiter"}'))
        eventually(lambda: engine.num_waiting == 1)
        waiter.close()
        eventually(lambda: engine.num_waiting == 0)
        holder.close()
        eventually(lambda: engine.num_running == 0)
    assert engine.num_aborted == 2
    assert "waiter" not in engine.admitted


def test_a_client_that_does_not_read_makes_the_upstream_wait(tmp_path: Path) -> None:
    """Of an endless answer the gateway takes no more than its buffers while the client sleeps."""
    is_blocked = threading.Event()

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            _send_for_ever(connection)
        is_blocked.set()

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, _), connect(url) as it:
        it.sendall(get("/"))
        assert is_blocked.wait(DEADLINE_S)


def test_an_upstream_that_does_not_read_makes_the_client_wait(tmp_path: Path) -> None:
    """Of an endless upload the gateway takes no more than its buffers while the upstream sleeps."""
    stop = threading.Event()

    def serve(connection: socket.socket, index: int) -> None:
        read_head(connection)
        stop.wait(DEADLINE_S)

    with scripted_upstream(serve) as up, gateway_to(up, tmp_path) as (url, _), connect(url) as it:
        it.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n")
        it.settimeout(0.5)
        with pytest.raises(TimeoutError):
            _send_for_ever(it)
        stop.set()


def _send_for_ever(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * (1 << 20))


# Order


def test_shorter_requests_go_first(tmp_path: Path) -> None:
    """With one slot held, waiting requests are admitted in the order of their prompts' scores."""
    engine = FakeEngine(num_slots=1, token_s=0.0001)
    with engine.served() as up, gateway_to(up, tmp_path) as (url, _):
        holder = connect(url)
        holder.sendall(post(COMPLETIONS, b'{"prompt": "x", "max_tokens": 999999, "stream": true}'))
        eventually(lambda: engine.num_running == 1)
        clients = []
        for size in (300, 100, 500, 200, 400):
            client = connect(url)
            body = {
                "prompt": "x" * size,
                "max_tokens": 1000,
                "user": str(size),
                "priority": -size,
            }
            client.sendall(post(COMPLETIONS, json.dumps(body).encode(), "X-Vllm-Priority: 0"))
            clients.append(client)
            eventually(lambda: engine.num_waiting == len(clients))
        holder.close()
        for client in clients:
            assert read_all(client).startswith(b"HTTP/1.1 200 ")
            client.close()
    assert engine.finished == ["100", "200", "300", "400", "500"]


def test_scoring_that_hangs_delays_nothing_but_the_budget(tmp_path: Path) -> None:
    """With a scorer that never answers every request is served, and counted as over budget."""
    engine = FakeEngine()
    scorer = GatedScorer()
    with (
        engine.served() as up,
        gateway_to(up, tmp_path, scorer=scorer, settings={"budget_ms": 1.0}) as (url, app),
    ):
        for _ in range(3):
            assert httpx.post(url + COMPLETIONS, json={"prompt": "x"}).status_code == 200
        assert counted(app, "pars_decisions_total", outcome="over_budget") == 3
        scorer.gate.set()


# Which engine


@pytest.mark.parametrize(
    ("pages", "engine"),
    [
        ({"/version": {"version": "0.32.0"}}, "vllm"),
        ({"/version": {"version": "0.20.0"}}, "vllm-body"),
        (
            {
                "/server_info": {
                    "enable_priority_scheduling": True,
                    "schedule_low_priority_values_first": True,
                }
            },
            "sglang-low-first",
        ),
        (
            {
                "/get_server_info": {
                    "enable_priority_scheduling": True,
                    "schedule_low_priority_values_first": False,
                }
            },
            "sglang",
        ),
        ({"/server_info": {"schedule_low_priority_values_first": True}}, "none"),
        ({"/version": ["odd"]}, "none"),
        ({}, "none"),
    ],
)
def test_the_upstream_is_asked_what_it_is(
    tmp_path: Path, pages: dict[str, object], engine: str
) -> None:
    """vLLM is known by /version, SGLang by its server info, and anything else gets no priority."""

    def serve(connection: socket.socket, index: int) -> None:
        path = read_request(connection).split(b" ")[1].decode()
        body = json.dumps(pages.get(path)).encode()
        status = 200 if path in pages else 404
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    with (
        scripted_upstream(serve) as up,
        gateway_to(up, tmp_path, settings={"engine": "auto"}) as (_, app),
    ):
        eventually(lambda: app.known.is_known)
        assert app.known.engine.name == engine


# Its own pages, keys


def test_health_tells_upstream_and_ranker_apart(tmp_path: Path) -> None:
    """/pars/health says of each whether it is there, and is 503 only without the upstream."""
    with FakeEngine().served() as up, gateway_to(up, tmp_path) as (url, _):
        answer = httpx.get(f"{url}/pars/health")
        assert answer.status_code == 200
        assert answer.json()["status"] == "ok"
        assert answer.json()["upstream"]["reachable"]
        assert answer.json()["ranker"]["loaded"]
        assert httpx.get(f"{url}/health").content == b""  # the upstream's own
    with gateway_to("http://127.0.0.1:1", tmp_path) as (url, _):
        answer = httpx.get(f"{url}/pars/health")
        assert answer.status_code == 503
        assert answer.json()["status"] == "down"
        assert "cannot connect" in answer.json()["upstream"]["problem"]


def test_where_things_are_is_told_to_keys_only(tmp_path: Path) -> None:
    """Without one the health page says no more than whether it is well."""
    keys = {"api_keys": "one"}
    with FakeEngine().served() as up, gateway_to(up, tmp_path, settings=keys) as (url, _):
        seen = httpx.get(f"{url}/pars/health").json()
        with_key = httpx.get(f"{url}/pars/health", headers={"api-key": "one"}).json()
    assert seen == {"server": "pars gateway", "status": "ok"}
    assert with_key["upstream"]["url"] == up


def test_metrics_count_decisions(tmp_path: Path) -> None:
    """/pars/metrics shows what was decided, in Prometheus' format."""
    with FakeEngine().served() as up, gateway_to(up, tmp_path) as (url, _):
        httpx.post(url + COMPLETIONS, json={"prompt": "x"})
        assert 'pars_decisions_total{outcome="scored"} 1.0' in httpx.get(f"{url}/pars/metrics").text


def test_an_api_key_is_asked_for_if_one_is_set(tmp_path: Path) -> None:
    """Without one of the keys a request gets OpenAI's 401 and is neither scored nor passed on."""
    engine = FakeEngine()
    with (
        engine.served() as up,
        gateway_to(up, tmp_path, settings={"api_keys": "one, two,"}) as (url, app),
    ):
        body = {"prompt": "x"}
        for headers in ({}, {"authorization": "Bearer three"}, {"authorization": "two"}):
            answer = httpx.post(url + COMPLETIONS, json=body, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{url}/v1/models").status_code == 401
        for name in ("x-api-key", "api-key"):
            wrong = {name: "three", "authorization": "Basic one"}
            assert httpx.post(url + COMPLETIONS, json=body, headers=wrong).status_code == 401
        for headers in (
            {"authorization": "Bearer two"},
            {"x-api-key": "one"},  # Anthropic's clients
            {"api-key": "two", "authorization": "Bearer three"},  # Azure's, behind a proxy's own
        ):
            assert httpx.post(url + COMPLETIONS, json=body, headers=headers).status_code == 200
        assert httpx.get(f"{url}/pars/health").status_code == 200
        assert counted(app, "pars_decisions_total", outcome="scored") == 3
    assert [asked.path for asked in engine.asked] == [COMPLETIONS] * 3 + ["/health"]


def test_a_preflight_needs_no_key_and_nothing_else_passes_as_one(tmp_path: Path) -> None:
    """A browser cannot send a key with it; an OPTIONS that is none, or has a body, needs one."""
    engine = FakeEngine()
    origin = {"origin": "https://app.example"}
    preflight = origin | {"access-control-request-method": "POST"}
    with (
        engine.served() as up,
        gateway_to(up, tmp_path, settings={"api_keys": "one"}) as (url, _),
    ):
        asks = partial(httpx.request, url=f"{url}/v1/chat/completions")
        assert asks("OPTIONS", headers=preflight).status_code == 400  # the engine's own answer
        assert asks("OPTIONS", headers=origin).status_code == 401
        assert asks("GET", headers=preflight).status_code == 401
        assert asks("POST", headers=preflight, json={"prompt": "x"}).status_code == 401
        assert asks("OPTIONS", headers=preflight, content=b"x").status_code == 401
    assert [asked.method for asked in engine.asked] == ["OPTIONS"]


def test_a_preflight_carries_no_key_of_ours(tmp_path: Path) -> None:
    """Who shows no key must not have the upstream see one; other requests bring it along."""
    engine = FakeEngine()
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    with (
        engine.served() as up,
        gateway_to(up, tmp_path, settings={"api_keys": "one"}, upstream={"api_key": "inner"}) as (
            url,
            _,
        ),
    ):
        httpx.options(url + COMPLETIONS, headers=preflight)
        httpx.get(url + "/v1/models", headers={"x-api-key": "one"})
    keys = [dict(asked.headers).get(b"authorization") for asked in engine.asked]
    assert keys == [None, b"Bearer inner"]


def test_a_preflight_shows_no_key_on_our_own_pages(tmp_path: Path) -> None:
    """What it may ask of the engine it may not of /pars/now."""
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    with (
        FakeEngine().served() as up,
        gateway_to(up, tmp_path, settings={"api_keys": "one"}) as (url, _),
    ):
        assert httpx.options(f"{url}/pars/now", headers=preflight).status_code == 401


def test_names_that_are_no_text_leave_the_pages_readable(tmp_path: Path) -> None:
    """JSON can spell half a surrogate pair, as a model's or a request's name."""
    body = b'{"prompt": "x", "model": "\\ud800", "request_id": "\\udfff"}'
    with FakeEngine().served() as up, gateway_to(up, tmp_path) as (url, _):
        assert httpx.post(url + COMPLETIONS, content=body).status_code == 200
        asks_openmetrics = {"accept": "application/openmetrics-text"}
        assert httpx.get(f"{url}/pars/metrics", headers=asks_openmetrics).status_code == 200
        assert httpx.get(f"{url}/pars/metrics").status_code == 200
        assert httpx.get(f"{url}/pars/now").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/v1//completions", "/v1/completions/", "/v1/completions;a=b", "/v1/./completions"),
        *("/v1/completions%0A", "/v1/completions/%0A", "/v1/%63ompletions", "/v1%2Fcompletions"),
    ],
)
def test_another_spelling_of_a_path_is_scored_too(tmp_path: Path, path: str) -> None:
    """A server in between may take it for the plain one, and a client's own priority with it."""
    engine = FakeEngine()
    body = {"prompt": "x", "priority": -999}
    with (
        engine.served() as up,
        gateway_to(up, tmp_path, settings={"engine": "vllm-body"}) as (url, app),
    ):
        exchange(url, post(path, json.dumps(body).encode(), "Connection: close"))
        assert counted(app, "pars_decisions_total", outcome="scored") == 1
    assert b"-999" not in engine.asked[-1].body


def test_no_priority_hides_behind_white_space_that_cannot_be_held(tmp_path: Path) -> None:
    """A brace, two megabytes of spaces, and then a priority: the request ends, and goes nowhere."""
    engine = FakeEngine()
    body = b'{"prompt":"hi","metadata":{"c":"d"}' + b" " * (2 << 20) + b',"priority":-777}'
    with (
        engine.served() as up,
        gateway_to(up, tmp_path, settings={"engine": "vllm-body"}) as (url, _),
    ):
        exchange(url, post(COMPLETIONS, body, "Connection: close"))
        assert httpx.post(url + COMPLETIONS, json={"prompt": "x"}).status_code == 200
    assert not any(b"-777" in asked.body for asked in engine.asked)


def test_an_odd_accept_field_gets_the_metrics_all_the_same(tmp_path: Path) -> None:
    """A version that is no number is one that is not known."""
    with FakeEngine().served() as up, gateway_to(up, tmp_path) as (url, _):
        odd = {"accept": "application/openmetrics-text; version=abc"}
        assert httpx.get(f"{url}/pars/metrics", headers=odd).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_metrics_come_without_their_times_of_creation(tmp_path: Path, kind: str) -> None:
    """A series more for each counter and histogram, of which nobody makes anything."""
    with FakeEngine().served() as up, gateway_to(up, tmp_path) as (url, _):
        httpx.post(url + COMPLETIONS, json={"prompt": "x"})
        page = httpx.get(f"{url}/pars/metrics", headers={"accept": kind}).text

    assert 'pars_decisions_total{outcome="scored"} 1.0' in page
    assert "pars_decision_seconds_count 1.0" in page
    assert "_created" not in page


def test_shutdown_lets_streams_finish(tmp_path: Path) -> None:
    """A stream that runs when the gateway is told to stop arrives whole."""
    release = threading.Event()

    def serve(connection: socket.socket, index: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        assert release.wait(DEADLINE_S)
        connection.sendall(b"cd")

    with scripted_upstream(serve) as up:
        with gateway_to(up, tmp_path) as (url, _):
            client = connect(url)
            client.sendall(get("/"))
            came = read_head(client)
            threading.Timer(0.2, release.set).start()
        came += read_all(client)
        client.close()
    assert came.endswith(b"abcd")


# Settings


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://x:99999999", "http://x?q=1"]
)
def test_an_upstream_must_be_a_url(url: str) -> None:
    """What is no http URL of a server is refused with what would be right."""
    with pytest.raises(ParsError, match="upstream"):
        Upstream(url)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions/", "/v1/models"])
def test_a_path_of_the_api_is_no_upstream(path: str) -> None:
    """All paths would be added to it: the line says that the server is wanted."""
    with pytest.raises(ParsError, match="want the server alone"):
        Upstream(f"http://127.0.0.1:8000{path}")


def test_a_prefix_of_the_upstream_is_kept(tmp_path: Path) -> None:
    """With an upstream URL that has a path, paths are added to it."""
    engine = FakeEngine()
    with engine.served() as up, gateway_to(up + "/base/", tmp_path) as (url, _):
        httpx.get(f"{url}/v1/models?x=1")
    assert (engine.asked[-1].path, engine.asked[-1].query) == ("/base/v1/models", b"x=1")


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    """A ranker folder that is missing at start, or a bad upstream, is one line and no server."""
    run = CliRunner().invoke(
        commands, ["gateway", "--upstream", "http://127.0.0.1:1", "--ranker", str(tmp_path / "no")]
    )
    assert isinstance(run.exception, ParsError)
    assert "no ranker can be loaded" in str(run.exception)
    run = CliRunner().invoke(commands, ["gateway", "--upstream", "nonsense"])
    assert isinstance(run.exception, ParsError)
