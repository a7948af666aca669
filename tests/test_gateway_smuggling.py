"""
What gets past the gateway of requests that leave a doubt: nothing.

Each case is bytes on a socket, the status the client must get, and the one request that the
upstream may see for it, as a strict reader of RFC 9112 sees it. docs/security.md has the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateways import exchange, gateway_to, get
from strict_http import Record

SECURITY = Path(__file__).parent.parent / "docs" / "security.md"
PATH = b"/v1/completions"
BODY = b'{"prompt":"x"}'
HEAD = b"POST " + PATH + b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: 14\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST = b"Connection: close\r\n"
CHUNKS = b"e\r\n" + BODY + b"\r\n0\r\n\r\n"
INNER = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@dataclass(frozen=True)
class Case:
    """What is sent, the status it gets, and the body that reaches the upstream; None: nothing."""

    name: str
    sent: bytes
    status: int
    body: bytes | None = None


def refused(name: str, sent: bytes) -> Case:
    return Case(name, sent, 400)


def passes(name: str, sent: bytes, body: bytes = BODY) -> Case:
    return Case(name, sent, 200, body)


def with_head(fields: bytes, body: bytes = CHUNKS) -> bytes:
    return HEAD + fields + b"\r\n" + body


CASES = [
    passes("a length", with_head(LAST + LENGTH, BODY)),
    passes("chunks", with_head(LAST + CHUNKED)),
    refused("length and coding", with_head(LENGTH + CHUNKED)),
    refused("coding and a short length", with_head(CHUNKED + b"Content-Length: 4\r\n")),
    refused(
        "a request behind the end of chunks",
        with_head(b"Content-Length: 41\r\n" + CHUNKED, b"0\r\n\r\n" + INNER),
    ),
    refused("the same length twice", with_head(LENGTH * 2, BODY)),
    refused("two lengths", with_head(LENGTH + b"Content-Length: 2\r\n", BODY)),
    *(
        refused(f"length {value!r}", with_head(b"Content-Length: %s\r\n" % value.encode(), BODY))
        for value in ("14, 14", "+14", "-14", "0x0e", "1_4", "14.0", "", "9" * 30)
    ),
    *(
        refused(f"coding {value!r}", with_head(b"Transfer-Encoding: %s\r\n" % value.encode()))
        for value in (
            *("xchunked", "gzip, chunked", "chunked, gzip", "chunked, chunked", "identity"),
            *("chunked;q=1", "\x0bchunked", '"chunked"', ""),
        )
    ),
    refused("coding chunked twice", with_head(CHUNKED * 2)),
    refused(
        "no coding, and a length", with_head(b"Transfer-Encoding: identity\r\n" + LENGTH, BODY)
    ),
    refused("coding, space before its colon", with_head(b"Transfer-Encoding : chunked\r\n")),
    passes("coding in capitals", with_head(LAST + b"TRANSFER-ENCODING: CHUNKED\r\n")),
    refused("a folded field", with_head(b"X-A: 1\r\n b\r\n" + LENGTH, BODY)),
    refused("a folded coding", with_head(b"Transfer-Encoding:\r\n chunked\r\n")),
    refused("lines that end with LF", with_head(LAST + LENGTH, BODY).replace(b"\r\n", b"\n")),
    refused("a CR in a field", with_head(b"X-A: 1\rTransfer-Encoding: chunked\r\n" + LENGTH, BODY)),
    refused("a NUL in a field", with_head(b"X-A: 1\0\r\n" + LENGTH, BODY)),
    refused("a field without a colon", with_head(b"X-A\r\n" + LENGTH, BODY)),
    refused("a chunk extension with a line end", with_head(CHUNKED, b'e;a="b\n"\r\n' + CHUNKS[3:])),
    passes("a chunk extension", with_head(LAST + CHUNKED, b"e;a=b\r\n" + CHUNKS[3:])),
    refused("a chunk size with 0x", with_head(CHUNKED, b"0xe\r\n" + CHUNKS[3:])),
    refused("a negative chunk size", with_head(CHUNKED, b"-e\r\n" + CHUNKS[3:])),
    refused("an endless chunk size", with_head(CHUNKED, b"f" * 17 + b"\r\n" + CHUNKS[3:])),
    refused("a chunk longer than its size", with_head(CHUNKED, b"d\r\n" + CHUNKS[3:])),
    passes(
        "Connection: content-length",
        with_head(LENGTH + b"Connection: close, content-length\r\n", BODY),
    ),
    passes(
        "Connection: transfer-encoding",
        with_head(CHUNKED + b"Connection: transfer-encoding, close\r\n"),
    ),
    passes("Connection: host", with_head(LENGTH + b"Connection: host, close\r\n", BODY)),
    passes(
        "Connection: x-vllm-priority",
        with_head(LENGTH + b"Connection: X-Vllm-Priority, close\r\nX-Vllm-Priority: -1\r\n", BODY),
    ),
    passes(
        "x_vllm_priority",
        with_head(LAST + LENGTH + b"x_vllm_priority: -1\r\nX-Vllm_Priority: -2\r\n", BODY),
    ),
    passes(
        "content_length",
        with_head(LAST + LENGTH + b"content_length: 4\r\ntransfer_encoding: chunked\r\n", BODY),
    ),
    passes("Upgrade: h2c with a length", with_head(H2C + LENGTH, BODY)),
    passes("Upgrade: h2c with chunks", with_head(H2C + CHUNKED)),
    passes(
        "Upgrade: h2c with a body that is a request",
        with_head(H2C + b"Content-Length: %d\r\n" % len(INNER), INNER),
        INNER,
    ),
    passes(
        "Upgrade: websocket",
        with_head(b"Connection: close, Upgrade\r\nUpgrade: websocket\r\n" + LENGTH, BODY),
    ),
    passes(
        "trailers",
        with_head(LAST + CHUNKED + b"TE: trailers\r\nTrailer: x-vllm-priority\r\n", CHUNKS[:-2])
        + b"X-Vllm-Priority: -7\r\nAuthorization: Bearer t\r\n\r\n",
    ),
    refused("a length among the trailers", with_head(CHUNKED, CHUNKS[:-2] + LENGTH + b"\r\n")),
    refused("no Host", with_head(LENGTH, BODY).replace(b"Host: a\r\n", b"")),
    refused("two Hosts", with_head(b"Host: b\r\n" + LENGTH, BODY)),
    refused("a Host that is none", with_head(LENGTH, BODY).replace(b"Host: a", b"Host: a, b/c")),
    refused("a whole URL", with_head(LENGTH, BODY).replace(PATH, b"http://evil" + PATH)),
    refused("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("CONNECT", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
    refused("CONNECT to a path", b"CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("a fragment", with_head(LENGTH, BODY).replace(PATH, PATH + b"#x")),
    refused("a space in the target", with_head(LENGTH, BODY).replace(PATH, b"/a b")),
    refused("HTTP/2 by prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused("HTTP/2.0", with_head(LENGTH, BODY).replace(b"HTTP/1.1", b"HTTP/2.0")),
    refused("HTTP/0.9", b"GET /\r\n\r\n"),
    refused("HTTP/1.0 with chunks", with_head(CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0")),
    passes("HTTP/1.0", with_head(LENGTH, BODY).replace(b"HTTP/1.1", b"HTTP/1.0")),
    passes("GET with a body", with_head(LAST + LENGTH, BODY).replace(b"POST", b"GET")),
    refused("a method of no HTTP", with_head(LENGTH, BODY).replace(b"POST", b"BREW")),
]


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Record]]:
    """A gateway before a strict upstream, and what that one got."""
    record = Record()
    with record.served() as up, gateway_to(up, tmp_path_factory.mktemp("ranker")) as (url, _):
        yield url, record


def row(case: Case) -> str:
    """The case's row in docs/security.md."""
    seen = "nothing" if case.body is None else "one request"
    return f"| {case.name} | {case.status} | {seen} |"


def test_the_page_on_security_has_the_table() -> None:
    """What is published is what is tested."""
    rows = [line for line in SECURITY.read_text().splitlines() if line.startswith("| ")]
    assert [row(case) for case in CASES if row(case) not in rows] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_request_passes_whole_or_is_refused(relayed: Any, case: Case) -> None:
    """The client gets one answer and an end of its connection, the upstream one request or none."""
    url, record = relayed
    before = len(record.requests)
    came = exchange(url, case.sent)
    seen = record.requests[before:]
    assert came.startswith(b"HTTP/1.1 %d " % case.status), came
    assert came.count(b"HTTP/1.1 ") == 1
    assert record.faults == []
    assert [it.body for it in seen] == ([] if case.body is None else [case.body])
    for request in seen:
        assert request.target == PATH
        values = request.all(b"x-vllm-priority")
        is_scored = request.method == b"POST"
        assert len(values) == is_scored
        assert all(int(value) > 10**12 for value in values)  # ours: microseconds since 2026
        alike = {name.replace(b"_", b"-") for name, _ in request.fields if b"_" in name}
        assert not alike & {b"x-vllm-priority", b"content-length", b"transfer-encoding"}
        left = {b"authorization", b"connection", b"upgrade", b"http2-settings", b"te", b"trailer"}
        assert not left & {name for name, _ in request.fields}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.body is not None], ids=lambda case: case.name
)
def test_each_request_that_passes_does_so_in_single_bytes(relayed: Any, case: Case) -> None:
    """However a request is cut on its way, the upstream gets the same."""
    url, record = relayed
    before = len(record.requests)
    came = exchange(url, *(case.sent[i : i + 1] for i in range(len(case.sent))))
    assert came.startswith(b"HTTP/1.1 200 ")
    assert record.faults == []
    assert [it.body for it in record.requests[before:]] == [case.body]


def test_a_refused_request_takes_nothing_that_came_before_with_it(relayed: Any) -> None:
    """What is pipelined before it is answered, then comes the refusal, then the end."""
    url, record = relayed
    before = len(record.requests)
    sent = with_head(LENGTH, BODY) + get("/first").replace(b"Connection: close\r\n", b"")
    came = exchange(url, sent + with_head(LENGTH + CHUNKED) + get("/never"))
    assert [it.target for it in record.requests[before:]] == [PATH, b"/first"]
    assert came.count(b"HTTP/1.1 200 ") == 2
    assert came.index(b"GET /first") < came.index(b"HTTP/1.1 400 ")
