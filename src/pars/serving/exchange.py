"""
An HTTP/1.1 client that relays bytes: raw heads, raw bodies, back-pressure both ways, no decoding.

Written on httptools, the parser uvicorn already brings: a relay has to hand over a response's bytes
as they came, which the general clients (aiohttp, httpx) do not, and what they do instead costs more
than all the rest of the gateway.

One connection carries one exchange at a time. Everything runs on one event loop.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import cast

import httptools

Headers = list[tuple[bytes, bytes]]

PAUSE_AT_BYTES = 256 * 1024  # of a response not taken yet: then the upstream has to wait
MAX_HEAD_BYTES = 256 * 1024

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade"
    b" proxy-authenticate proxy-authorization".split()
)


class UpstreamError(Exception):
    """The upstream gave no usable answer. `status` and `code` are for the client."""

    def __init__(self, status: int, code: str, message: str, *, may_retry: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.may_retry = may_retry  # a kept connection closed before a byte of answer came


class ClientGone(Exception):
    """The client left, so nobody waits for the answer."""


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers less the hop-by-hop ones, which are the known ones and those named in Connection."""
    kept: Headers = []
    named: set[bytes] = set()
    for name, value in headers:
        lower = name.lower()
        if lower not in HOP_BY_HOP:
            kept.append((name, value))
        elif lower == b"connection":
            named |= {part.strip().lower() for part in value.split(b",")}
    return [header for header in kept if header[0].lower() not in named] if named else kept


class Exchange(asyncio.Protocol):
    """
    One connection to the upstream, and the exchange it carries now.

    After `begin` and `write` come `head`, then `read` until `is_finished`. What ends early raises
    UpstreamError, or ClientGone after `leave`.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.idle_since_s = 0.0
        self.is_reused = False
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._can_write: asyncio.Future[None] | None = None
        self.lost = asyncio.Event()
        self.begin(b"GET")

    def begin(self, method: bytes) -> None:
        """Get ready for the response to a request with `method`."""
        self._method = method
        self._new_parser()
        self.is_request_sent = False
        self._head_is_done = False
        self._is_complete = False
        self._may_keep = False
        self._ends_with_close = False
        self._chunks: deque[bytes] = deque()
        self._num_buffered_bytes = 0
        self._num_received_bytes = 0
        self._is_paused = False
        self._error: Exception | None = None

    def _new_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.headers: Headers = []

    # What the gateway calls

    @property
    def is_usable(self) -> bool:
        """Whether another exchange may begin on this connection."""
        return (
            not self.lost.is_set()
            and self._transport is not None
            and not self._transport.is_closing()
        )

    @property
    def is_finished(self) -> bool:
        """Whether the whole response has been read."""
        return self._is_complete and not self._chunks

    @property
    def may_be_kept(self) -> bool:
        """Whether the connection is clean after its exchange."""
        return self._is_complete and self._may_keep and self.is_request_sent and self.is_usable

    def write(self, data: bytes) -> None:
        """Send part of the request."""
        if self._transport is not None and not self.lost.is_set():
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the upstream has taken most of what was written."""
        if self._can_write is not None:
            await self._can_write

    async def head(self) -> tuple[int, Headers]:
        """Status and end-to-end headers of the response."""
        while not self._head_is_done:
            await self._wait()
        return self._status, end_to_end(self.headers)

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end."""
        while not self._chunks and not self._is_complete:
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._num_buffered_bytes = 0
        if self._is_paused and self._transport is not None and not self.lost.is_set():
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def leave(self) -> None:
        """End the exchange at once since the client left: the upstream's connection is closed."""
        self._fail(ClientGone())
        self.abort()

    def abort(self) -> None:
        """Close the connection without sending what is still buffered."""
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(self.timeout_s, self._time_out) if self.timeout_s else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        if self._error is not None and not self._chunks:
            raise self._error

    def _time_out(self) -> None:
        message = f"the upstream sent nothing for {self.timeout_s:g} seconds"
        self._fail(UpstreamError(504, "upstream_timeout", message))

    def _fail(self, error: Exception) -> None:
        if self._error is None and not self._is_complete:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._num_received_bytes += len(data)
        if self._is_complete or (
            not self._head_is_done and self._num_received_bytes > MAX_HEAD_BYTES
        ):
            self._refuse("more than one response, or a head without end")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse("an upgrade that nobody asked for")
        except httptools.HttpParserError as error:
            if not self._is_complete:
                self._refuse(f"no valid HTTP: {error}")
        self._wake()

    def _refuse(self, what: str) -> None:
        self._may_keep = False
        self._fail(UpstreamError(502, "upstream_protocol_error", f"the upstream sent {what}"))
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        if self._ends_with_close and error is None:
            self._is_complete = True
        elif not self._is_complete:
            nothing_came = self._num_received_bytes == 0
            self._fail(
                UpstreamError(
                    502,
                    "upstream_closed",
                    "the upstream closed the connection before its answer was whole",
                    may_retry=nothing_came and self.is_reused,
                )
            )
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._can_write = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)
        self._can_write = None

    # httptools' callbacks

    def on_message_begin(self) -> None:
        if self._is_complete:
            self._may_keep = False  # bytes after the response: whatever they are, not ours

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_is_done:  # later ones are trailers, which ASGI servers cannot send
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._is_complete or self._status < 200:
            return
        if self._status >= 600:
            raise ValueError(f"status {self._status}")
        self._head_is_done = True
        names = {name.lower() for name, _ in self.headers}
        has_no_body = self._method == b"HEAD" or self._status in (204, 304)
        self._ends_with_close = not (
            has_no_body or names & {b"content-length", b"transfer-encoding"}
        )
        if has_no_body:
            self._may_keep = self._parser.should_keep_alive() and self._method != b"HEAD"
            self._is_complete = True

    def on_body(self, body: bytes) -> None:
        if self._is_complete:
            self._may_keep = False
            return
        self._chunks.append(body)
        self._num_buffered_bytes += len(body)
        if self._num_buffered_bytes > PAUSE_AT_BYTES and not self._is_paused:
            self._is_paused = True
            if self._transport is not None:
                self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if not self._head_is_done:  # 100 Continue, 103 Early Hints: the real response follows
            self.headers = []
        elif not self._is_complete:
            self._may_keep = self._parser.should_keep_alive()
            self._is_complete = True
