"""
Connections to the upstream: aiohttp's pool and parser, under requests that we write ourselves.

A relay has its request's head as bytes already, and hands an answer's over as bytes. Of aiohttp's
client it needs what is hard: TLS, proxies, name look-up, kept connections, and a parser that many
people attack. What lies above those (redirects, cookies, decoding, a request and a response as
objects) it would have to switch off, at twice the cost of all the rest.

aiohttp (3.14) keeps a connection on which more came than the answer, and takes what came for the
answer to the next request. Here the first byte that nobody asked for closes its connection. This
file is the only one that knows aiohttp's inner side; tests/test_gateway_upstream.py holds what it
relies on.
"""

import asyncio
from collections import deque
from functools import partial
from typing import Any

from aiohttp import (
    BaseConnector,
    ClientPayloadError,
    ClientRequest,
    ClientTimeout,
    StreamReader,
    TCPConnector,
    UnixConnector,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage, StreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from pars.serving.address import Address

# Servers close idle connections, uvicorn and so vLLM after 5 s. Giving them up before that avoids
# the race in which a request is written just as the other side closes.
MAX_IDLE_S = 4.0
MAX_FIELD_BYTES = 64 * 1024  # of an answer's field
MAX_FIELDS = 512


class Line(ResponseHandler):
    """
    One connection to the upstream, and the exchange that it carries now.

    Attributes:
        is_kept: It has carried an exchange before.
        idle_since_s: When its last exchange ended, by the event loop's clock.
        is_silent: No byte of the answer has come.
        sent_bad_http: What came is no HTTP.
    """

    is_kept = False
    is_silent = True
    sent_bad_http = False
    idle_since_s = 0.0
    connection: Connection  # aiohttp's account of it
    _has_answer = True  # before the first exchange no byte is due either

    def begin(self, *, may_have_body: bool, timeout_s: float) -> None:
        """Get ready for the answer to a request; HEAD gets one without a body."""
        self.is_silent = True
        self._has_answer = self.sent_bad_http = False
        self.set_response_params(
            skip_payload=not may_have_body,
            read_until_eof=True,
            auto_decompress=False,
            read_timeout=timeout_s or None,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_FIELDS,
        )
        self.heard()

    def heard(self) -> None:
        """Begin anew to count how long the upstream is silent."""
        self._heard_at_s = self._loop.time()
        if self._read_timeout_handle is None and self._read_timeout:
            self._read_timeout_handle = self._loop.call_later(
                self._read_timeout, self._on_read_timeout
            )

    def write(self, data: bytes) -> None:
        """Send all of it, however long that takes."""
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError
        self.transport.write(data)

    def writer(self, *, is_chunked: bool) -> StreamWriter:
        """For a body in pieces; waits where the upstream does not read."""
        writer = StreamWriter(self, self._loop)
        if is_chunked:
            writer.enable_chunking()
        return writer

    async def head(self) -> tuple[RawResponseMessage, StreamReader]:
        """The answer's head and its body; interim answers (100, 103) are passed over."""
        while True:
            message, body = await self.read()
            if message.code >= 200 or message.code == 101:
                return message, body

    @property
    def is_free(self) -> bool:
        """Whether another exchange may begin on it."""
        return self.is_connected() and not self.should_close

    def leave(self) -> None:
        """Close the connection at once, without sending what is still buffered."""
        self.abort()
        self.connection.close()

    # What aiohttp calls

    def _reschedule_timeout(self) -> None:
        self.heard()  # one timer for all pieces of an answer

    def _on_read_timeout(self) -> None:
        self._read_timeout_handle = None
        left_s = self._heard_at_s + (self._read_timeout or 0.0) - self._loop.time()
        if left_s > 0:
            self._read_timeout_handle = self._loop.call_later(left_s, self._on_read_timeout)
        else:
            super()._on_read_timeout()

    def feed_data(self, data: Any, size: int = 0) -> None:
        message, payload = data
        if self._has_answer:
            self.abort()
            return
        super().feed_data(data, size)
        if message.code >= 200:
            payload.on_eof(self._answered)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp calls this for each piece that is read, maybe of the exchange before.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        self.is_silent = False
        had_answer = self._has_answer
        if not had_answer:
            super().data_received(data)
        if self._has_answer and (data if had_answer else self._more_has_begun()):
            self.abort()

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        self.sent_bad_http = isinstance(exc, HttpProcessingError)
        if self.sent_bad_http:
            self._break_off(exc)  # aiohttp (3.14) lets the reader of a broken body wait for ever
        super().set_exception(exc, *cause)

    def connection_lost(self, error: BaseException | None) -> None:
        if error is not None:
            # An answer that ends with its connection would else look whole after a reset.
            self._break_off(ClientPayloadError(f"connection lost: {error}"))
        super().connection_lost(error)

    def _break_off(self, error: BaseException) -> None:
        payload = self._payload
        if payload is not None and not payload.is_eof():
            payload.set_exception(error)

    def _answered(self) -> None:
        self._has_answer = True

    def _more_has_begun(self) -> bool:
        """Whether the parser holds the beginning of a second answer."""
        if self._parser is None:
            return False
        try:
            return self._parser.feed_eof() is not None
        except Exception:
            return True


class Pool:
    """
    The connections to one place, on one event loop.

    Args:
        keeps: They are kept for further requests; else each request has one of its own.
        connect_timeout_s: To open one.
    """

    def __init__(self, address: Address, *, keeps: bool, connect_timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._keeps = keeps
        self._idle: deque[Line] = deque()
        options: dict[str, Any] = {"limit": 0, "force_close": True}
        self._connector: BaseConnector = (
            UnixConnector(path=address.socket_path, **options)
            if address.socket_path
            else TCPConnector(**options)
        )
        make_line: Any = partial(Line, loop=self._loop)
        self._connector._factory = make_line
        # Tells where to connect to; it is never sent.
        self._request = ClientRequest(
            "GET", address.base, loop=self._loop, ssl=address.tls, proxy=address.proxy
        )
        self._timeout = ClientTimeout(total=None, sock_connect=connect_timeout_s)

    async def line(self, *, is_new: bool = False) -> Line:
        """
        A connection for one exchange; `give_back` it afterwards, or `Line.leave` it.

        Args:
            is_new: None that was kept. Those are closed, since the last one turned out to be dead.

        Raises:
            aiohttp.ClientError, OSError: it cannot be had.
        """
        while self._idle:
            line = self._idle.pop()
            if not is_new and line.is_free and not self._is_stale(line):
                return line
            line.leave()
        connection = await self._connector.connect(self._request, [], self._timeout)
        made = connection.protocol
        assert isinstance(made, Line)
        made.connection = connection
        return made

    def give_back(self, line: Line) -> None:
        """Keep the connection for another exchange if it is clean, else close it."""
        if self._keeps and line.is_free:
            line.idle_since_s = self._loop.time()
            self._idle.append(line)
        else:
            line.leave()
        while self._idle and self._is_stale(self._idle[0]):
            self._idle.popleft().leave()

    async def close(self) -> None:
        """Close all connections, and see them closed."""
        while self._idle:
            self._idle.pop().leave()
        await self._connector.close()

    def _is_stale(self, line: Line) -> bool:
        return self._loop.time() - line.idle_since_s > MAX_IDLE_S
