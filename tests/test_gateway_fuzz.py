"""
Whatever a client sends, the upstream sees only requests of which there is no doubt, in their order.

    pytest tests/test_gateway_fuzz.py                     some hundred examples, always the same
    PARS_FUZZ_S=600 pytest tests/test_gateway_fuzz.py     ten minutes of new ones

Requests are odd in ways that are all right, at times with one fault, and cut into pieces anywhere.
A reader of RFC 9112 in strict_http.py says what they are; where it finds no doubt, the gateway may
still refuse, but what it passes on must be what that reader read. Between the pieces another client
asks on a connection of its own, and must get its own answers.
"""

import os
import socket
import time
from collections.abc import Iterator
from itertools import count, pairwise
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from gateways import connect, gateway_to
from pars.scheduling.trust import WISH_HEADERS
from pars.serving.header_fields import HOP_BY_HOP
from pars.serving.pages import PATHS
from strict_http import Bytes, Doubtful, Incomplete, Record, Request, echo_of

NUM_EXAMPLES = 600
FUZZ_S = float(os.environ.get("PARS_FUZZ_S", "0"))
PATIENCE_S = 5.0
NOT_FOR_IT = HOP_BY_HOP | WISH_HEADERS | {b"content-length"}
OURS = {b"host", b"content-length", b"transfer-encoding", b"x-vllm-priority"}
PATH = b"/v1/completions"

# What is odd in a request, and all right.
ODD_FIELDS = st.one_of(
    st.tuples(
        st.just(b"Connection"),
        st.sampled_from(
            [
                *(b"close", b"keep-alive", b"content-length", b"transfer-encoding, te", b"host"),
                *(b"x-vllm-priority", b"authorization, Cookie", b"Upgrade", b"close, upgrade"),
            ]
        ),
    ),
    st.tuples(st.just(b"Upgrade"), st.sampled_from([b"h2c", b"websocket", b"foo/2, h2c"])),
    st.tuples(
        st.sampled_from([b"X-Vllm-Priority", b"x_vllm_priority", b"X-Pars_Secret", b"Cookie"]),
        st.sampled_from([b"-1", b"a b\tc", b"\xe9", b"\xc3\xa9", b""]),
    ),
    st.tuples(
        st.sampled_from([b"content_length", b"transfer_encoding", b"Transfer-Encodin"]),
        st.sampled_from([b"4", b"chunked"]),
    ),
    st.sampled_from([(b"Expect", b"100-continue"), (b"TE", b"trailers"), (b"Trailer", b"A")]),
)
UPGRADE = [(b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c")]
TARGETS = st.sampled_from(
    [
        PATH,
        PATH,
        b"/v1/embeddings",
        b"/a%2Fb/../c?d=%20&&e",
        b"//x",
        b"/?",
        b"/x?y?",
        b"/pars/health",
    ]
)
METHODS = st.sampled_from([b"POST"] * 4 + [b"GET", b"HEAD", b"PUT", b"OPTIONS"])
INNER = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
BODIES = st.one_of(
    st.sampled_from([b"", b"abc", b'{"prompt":"x"}', INNER, b"0\r\n\r\n" + INNER]),
    st.binary(max_size=60),
)
EXTENSIONS = st.sampled_from([b""] * 4 + [b";a=b", b' ; a="b"', b";" + b"x" * 300])
TRAILERS = st.sampled_from([b"", b"X-Vllm-Priority: -1\r\n", b"A: b\r\nAuthorization: c\r\n"])

# What leaves a doubt, or is no HTTP: by where it goes.
BAD_FIELDS = st.one_of(
    st.tuples(
        st.just(b"Content-Length"),
        st.sampled_from([b"0", b"3", b"14", b"+3", b"-1", b"0x3", b"3, 3", b"3_0", b"", b"9" * 20]),
    ),
    st.tuples(
        st.just(b"Transfer-Encoding"),
        st.sampled_from(
            [b"chunked", b"chunked, chunked", b"gzip, chunked", b"identity", b"xchunked", b""]
        ),
    ),
    st.tuples(st.sampled_from([b"X-A ", b"X A", b"", b" X", b"X\xe9"]), st.just(b"1")),
    st.tuples(st.just(b"X"), st.sampled_from([b"a\rb", b"a\nTE: b", b"a\0", b"a\r\n b", b"\x7f"])),
)
BAD_LINES = st.sampled_from(
    [
        *(b"POST http://evil/x HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT a:1 HTTP/1.1"),
        *(b"CONNECT /a HTTP/1.1", b"POST /a b HTTP/1.1", b"POST /#f HTTP/1.1", b"BREW / HTTP/1.1"),
        *(
            b"POST /\xe9 HTTP/1.1",
            b"POST / HTTP/2.0",
            b"POST / HTTP/1.0",
            b"POST / http/1.1",
            b"GET /",
        ),
    ]
)
BAD_ENDS = st.sampled_from([b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\0\r\n"])
BAD_SIZES = st.sampled_from([b"0x3", b"-3", b"g", b"", b"f" * 17, b"3 3", b"4", b"2", b"3;\n"])
FAULTS = ("field", "line", "end", "no host", "two hosts", "size", "trailer", "bytes")


@st.composite
def chunks(draw: st.DrawFn, fault: str | None) -> bytes:
    """A chunked body."""
    sent = b""
    for piece in draw(st.lists(BODIES.filter(bool), max_size=3)):
        sent += b"%x" % len(piece) + draw(EXTENSIONS) + b"\r\n" + piece + b"\r\n"
    if fault == "size":
        sent += draw(BAD_SIZES) + b"\r\nabc\r\n"
    end = draw(BAD_ENDS) if fault == "end" else b"\r\n"
    trailers = draw(st.sampled_from([b"Bad\r\n", b"Content-Length: 9\r\n", b"A b: c\r\n"]))
    trailers = trailers if fault == "trailer" else draw(TRAILERS)
    return sent + b"0" + draw(EXTENSIONS) + end + trailers + b"\r\n"


@st.composite
def requests(draw: st.DrawFn, fault: str | None) -> bytes:
    """A request, odd in ways that are all right, and with a fault if there is to be one."""
    line = b"%s %s HTTP/1.1" % (draw(METHODS), draw(TARGETS))
    fields = [] if fault == "no host" else [(b"Host", draw(st.sampled_from([b"a", b"[::1]:80"])))]
    fields += draw(st.lists(ODD_FIELDS, max_size=2)) + draw(st.sampled_from([[], [], UPGRADE]))
    if fault == "two hosts":
        fields.append((b"Host", draw(st.sampled_from([b"a", b"b:80", b""]))))
    if fault == "field":
        fields.append(draw(BAD_FIELDS))
    if draw(st.booleans()) or fault in ("size", "trailer"):
        body = draw(chunks(fault))
        fields.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
    else:
        body = draw(BODIES)
        if body or draw(st.booleans()):
            fields.append((b"Content-Length", b"%d" % len(body)))
    lines = [draw(BAD_LINES) if fault == "line" else line]
    lines += [b"%s: %s" % field for field in draw(st.permutations(fields))]
    if fault == "end":
        at = draw(st.integers(0, len(lines) - 1))
        lines[at : at + 2] = [draw(BAD_ENDS).join(lines[at : at + 2])]
    data = bytearray(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    if fault == "bytes":
        at = draw(st.integers(0, len(data)))
        new = draw(st.one_of(st.binary(max_size=3), st.sampled_from([b"\r\n", b" ", b"\n", b":"])))
        data[at : at + draw(st.integers(0, 2))] = new
    return bytes(data)


@st.composite
def pieces_sent(draw: st.DrawFn) -> list[bytes]:
    """Some requests one behind the other, at times one with a fault, cut into pieces."""
    faults: list[str | None] = [None] * draw(st.integers(0, 2))
    faults.append(draw(st.sampled_from([None, None, *FAULTS])))
    faults += [None] * draw(st.integers(0, 1))
    data = b"".join([draw(requests(fault)) for fault in faults])
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    pieces = [data[a:b] for a, b in pairwise([0, *cuts, len(data)])]
    return [piece for piece in pieces if piece]


class Other:
    """Another client, whose answers must be its own."""

    numbers = count()

    def __init__(self, url: str) -> None:
        self._connection = connect(url)

    def ask(self) -> None:
        name = b"other-%d" % next(self.numbers)
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: o\r\nContent-Length: %d\r\n\r\n" % len(name)
        self._connection.sendall(head + name)
        echo = b"POST /v1/embeddings " + name
        came = b""
        while not came.endswith(echo):
            piece = self._connection.recv(65536)
            assert piece, "another client's connection was closed"
            came += piece
        assert came.startswith(b"HTTP/1.1 200 ")
        assert came.count(b"HTTP/1.1 ") == 1

    def close(self) -> None:
        self._connection.close()


def read_by_the_rfc(data: bytes) -> tuple[list[Request], bool]:
    """The requests that the RFC finds in `data`, and whether more may come after them."""
    source = Bytes(data)
    found: list[Request] = []
    while source.data.strip(b"\r\n"):
        try:
            found.append(source.request())
        except Doubtful:
            return found, False
        except Incomplete:
            return found, True
        if found[-1].is_last:
            return found, False
    return found, True


def answers_to(connection: socket.socket, expected: list[Request], ends: bool) -> list[bytes]:
    """The answers that come, as many as are `expected`, or until the connection ends."""
    data, answers = b"", []
    while True:
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end]
            if head.startswith(b"HTTP/1.1 1"):
                data = data[end + 4 :]
                continue
            request = expected[len(answers)] if len(answers) < len(expected) else None
            is_head = request is not None and request.method == b"HEAD"
            [length] = [it for it in head.split(b"\r\n") if it.startswith(b"content-length: ")]
            size = 0 if is_head and b" 200 " in head[:16] else int(length.split(b": ")[1])
            if len(data) < end + 4 + size:
                break
            answers.append(data[: end + 4 + size])
            data = data[end + 4 + size :]
        if len(answers) >= len(expected) and not ends:
            return answers
        try:
            piece = connection.recv(65536)
        except (ConnectionResetError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                answers.append(b"nothing for so long")
            return answers
        if not piece:
            # A HEAD for its own page is answered before its body came, in which there is a fault.
            is_own_head = len(answers) == len(expected) and data.endswith(b"\r\n\r\n")
            assert not data or is_own_head, "half an answer"
            return answers
        data += piece


def check(url: str, record: Record, other: Other, pieces: list[bytes]) -> None:
    """Send it, and hold all that is seen against what the RFC reads in it."""
    note(f"pieces: {pieces}")
    expected, may_go_on = read_by_the_rfc(b"".join(pieces))
    before = len(record.requests)
    with connect(url) as connection:
        connection.settimeout(PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            try:
                connection.sendall(piece)
            except ConnectionError:
                break
            other.ask()
        answers = answers_to(connection, expected, ends=not may_go_on)
    other.ask()
    assert record.faults == []
    seen = [
        it
        for it in record.requests[before:]
        if not it.body.startswith(b"other-") and it.target != b"/health"  # the gateway's own
    ]
    relayed = [it for it in expected if not is_own(it)]
    for got, wanted in zip(seen, relayed, strict=False):
        assert_same(got, wanted)
    assert len(seen) <= len(relayed), (seen, relayed)
    hold_answers(answers, expected)
    num_whole = sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    if num_whole < len(expected):  # the gateway refused what the RFC allows, and said so, or ended
        assert not answers[num_whole:] or answers[num_whole].startswith(b"HTTP/1.1 4")


def assert_same(got: Request, wanted: Request) -> None:
    """What reached the upstream is that request, less what is not to go on, and with ours."""
    assert (got.method, got.body) == (wanted.method, wanted.body)
    assert got.target == without_empty_query(wanted.target)
    sent_fields = set(wanted.fields)
    for name, value in got.fields:
        assert name.replace(b"_", b"-") not in NOT_FOR_IT or name in OURS
        assert name in OURS or (name, value) in sent_fields, (name, value)
    priorities = got.all(b"x-vllm-priority")
    is_scored = wanted.method in (b"POST", b"PUT") and wanted.target.split(b"?")[0] == PATH
    assert len(priorities) == is_scored
    assert all(int(value) > 10**12 for value in priorities)


def is_own(request: Request) -> bool:
    """Whether one of the gateway's own pages is asked for."""
    return unquote(request.target.partition(b"?")[0].decode("latin-1")) in PATHS


def without_empty_query(target: bytes) -> bytes:
    """The target as ASGI tells it: of "/a?" the question mark is lost."""
    return target[:-1] if target.find(b"?") == len(target) - 1 else target


def hold_answers(answers: list[bytes], expected: list[Request]) -> None:
    """Each answer is the one to its own request; after an error nothing more comes."""
    for number, answer in enumerate(answers):
        if not answer.startswith(b"HTTP/1.1 200 "):
            assert answer.startswith(b"HTTP/1.1 4"), answer
            assert number == len(answers) - 1
            return
        if number == len(expected) and b'"server": "pars gateway"' in answer:
            return  # its own page, answered before the body came, in which there is a fault
        assert number < len(expected), answer
        request = expected[number]
        body = answer.partition(b"\r\n\r\n")[2]
        if is_own(request):
            continue
        target = without_empty_query(request.target)
        sent_on = Request(request.method, target, b"", [], request.body)
        assert body == (b"" if request.method == b"HEAD" else echo_of(sent_on))


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Record]]:
    """A gateway before a strict upstream, and what that one got."""
    record = Record()
    with record.served() as up, gateway_to(up, tmp_path_factory.mktemp("ranker")) as (url, _):
        yield url, record


def fuzz(url: str, record: Record, num_examples: int, number: int | None = None) -> None:
    """Run so many examples: the same each time, or those of a `number`."""
    other = Other(url)

    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=number is None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(pieces_sent())
    def each(pieces: list[bytes]) -> None:
        check(url, record, other, pieces)
        record.requests.clear()

    try:
        (each if number is None else seed(number)(each))()
    finally:
        other.close()


@pytest.mark.timeout(FUZZ_S + 300)
def test_the_upstream_sees_only_whole_requests_of_their_own_clients(
    relayed: tuple[str, Record],
) -> None:
    """Bytes of any kind, cut anywhere, never become another request nor another's answer."""
    url, record = relayed
    if not FUZZ_S:
        fuzz(url, record, NUM_EXAMPLES)
        return
    end_s, num_examples = time.monotonic() + FUZZ_S, 0
    for number in count(int(time.time())):
        fuzz(url, record, 1000, number)
        num_examples += 1000
        if time.monotonic() > end_s:
            break
    print(f"{num_examples} examples in {FUZZ_S:g} s")  # noqa: T201


def test_the_reader_of_the_rfc_sees_what_was_planted() -> None:
    """Else the fuzzer could not fail: doubt is found, and requests are told apart."""
    good = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
    found, may_go_on = read_by_the_rfc(good + INNER)
    assert [(it.target, it.body) for it in found] == [(b"/a", b"hi"), (b"/smuggled", b"")]
    assert may_go_on
    both = good.replace(b"Host: a\r\n", b"Host: a\r\nTransfer-Encoding: chunked\r\n")
    assert read_by_the_rfc(both) == ([], False)
