"""What is an HTTP/1.1 request and what is not (RFC 9112), and an upstream that takes no other."""

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serving import DEADLINE_S

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# A recipient may take several spaces for one (section 3).
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") +(/[!-\"$-~]*) +HTTP/(1\.[01])")
OWN_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") (/[!-\"$-~]*) HTTP/(1\.1)")
FIELD = re.compile(rb"(" + TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?")
OWN_CHUNK_LINE = re.compile(rb"[0-9a-f]{1,16}")


class Doubtful(Exception):
    """The bytes are not the beginning of a request about which there is no doubt."""


class Incomplete(Exception):
    """The bytes may be the beginning of a request."""


@dataclass
class Request:
    """One request as the RFC frames it; field names in lower case, trailers apart."""

    method: bytes
    target: bytes
    version: bytes
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    def all(self, name: bytes) -> list[bytes]:
        """The values of all fields called `name`."""
        return [value for it, value in self.fields if it == name]

    @property
    def is_last(self) -> bool:
        """Whether its connection ends with its answer."""
        options = b",".join(self.all(b"connection")).lower().split(b",")
        return self.version == b"1.0" or b"close" in [option.strip() for option in options]


class Bytes:
    """Takes requests off the front of bytes."""

    def __init__(self, data: bytes, *, is_upstream: bool = False) -> None:
        self.data = data
        self._is_upstream = is_upstream  # where what a client may do still is not for a gateway

    def request(self) -> Request:
        """
        The next request; what is left stays in `data`.

        Raises:
            Doubtful, Incomplete: there is none, and nothing is taken.
        """
        before = self.data
        try:
            return self._request()
        except (Doubtful, Incomplete):
            self.data = before
            raise

    def _request(self) -> Request:
        if not self._is_upstream:
            self.data = self.data.lstrip(b"\r\n")
        line = (OWN_REQUEST_LINE if self._is_upstream else REQUEST_LINE).fullmatch(self._line())
        if line is None:
            raise Doubtful("request line")
        request = Request(*line.groups())
        request.fields = self._fields()
        if len(request.all(b"host")) != 1 and (request.version == b"1.1" or self._is_upstream):
            raise Doubtful("Host")
        codings, lengths = request.all(b"transfer-encoding"), request.all(b"content-length")
        if codings:
            is_plain = [it.lower() for it in codings] == [b"chunked"]
            if lengths or not is_plain or request.version != b"1.1":
                raise Doubtful("transfer coding")
            request.body = self._chunks()
        elif lengths:
            if len(lengths) != 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
                raise Doubtful("length")
            request.body = self._take(int(lengths[0]))
        return request

    def _fields(self) -> list[tuple[bytes, bytes]]:
        fields = []
        while line := self._line():
            match = FIELD.fullmatch(line)
            if match is None:
                raise Doubtful("field")
            fields.append((match[1].lower(), match[2]))
        return fields

    def _chunks(self) -> bytes:
        body = b""
        while True:
            match = (OWN_CHUNK_LINE if self._is_upstream else CHUNK_LINE).fullmatch(self._line())
            if match is None:
                raise Doubtful("chunk size")
            size = int(match[0] if self._is_upstream else match[1], 16)
            if not size:
                break
            body += self._take(size)
            if self._take(2) != b"\r\n":
                raise Doubtful("end of a chunk")
        if self._fields() and self._is_upstream:
            raise Doubtful("trailers")
        return body

    def _line(self) -> bytes:
        line, end, rest = self.data.partition(b"\r\n")
        if b"\n" in line or b"\r" in line.removesuffix(b"\r") or b"\0" in line:
            raise Doubtful("line end")
        if not end:
            raise Incomplete
        self.data = rest
        return line

    def _take(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        if len(taken) < size:
            raise Incomplete
        return taken


class StrictUpstream(asyncio.Protocol):
    """
    Takes requests that leave no doubt, and records them; anything else is a fault of the gateway.

    Each answer is one of its own: method, target and body of its request.
    """

    def __init__(self, record: "Record") -> None:
        self._record = record
        self._bytes = Bytes(b"", is_upstream=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._record.transports.append(transport)

    def data_received(self, data: bytes) -> None:
        self._bytes.data += data
        try:
            while self._bytes.data:
                request = self._bytes.request()
                self._record.requests.append(request)
                self._transport.write(answer_to(request))  # type: ignore[attr-defined]
        except Incomplete:
            pass
        except Doubtful as problem:
            self._record.faults.append((str(problem), self._bytes.data[:500]))
            self._transport.close()


class Record:
    """What an upstream got: requests in their order, and what was none."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.faults: list[tuple[str, bytes]] = []
        self.transports: list[asyncio.BaseTransport] = []

    @contextmanager
    def served(self) -> Iterator[str]:
        """The upstream's base URL while the block runs."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(
            loop.create_server(lambda: StrictUpstream(self), "127.0.0.1", 0)
        )
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(self._end, server)
            thread.join(DEADLINE_S)
            loop.close()

    def _end(self, server: asyncio.Server) -> None:
        server.close()
        for transport in self.transports:
            transport.close()
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.stop)


def echo_of(request: Request) -> bytes:
    """The body of the answer that is this request's alone."""
    return b"%s %s %s" % (request.method, request.target, request.body)


def answer_to(request: Request) -> bytes:
    echo = echo_of(request)
    body = b"" if request.method == b"HEAD" else echo
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(echo), body)
