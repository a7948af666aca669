"""
Connections to the upstream: aiohttp's, each kept for further requests only while it is clean.

aiohttp (3.14) keeps a connection on which more came than the answer, and takes what came for the
answer to the next request. Here the first byte that nobody asked for closes its connection. This
file is the only one that knows aiohttp's inner side; tests/test_gateway_upstream.py holds what it
relies on.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from aiohttp import BaseConnector, ClientPayloadError, TCPConnector, UnixConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError


class Line(ResponseHandler):
    """
    One connection to the upstream, and the exchange that it carries now.

    Attributes:
        is_kept: It has carried an exchange before.
        is_silent: No byte of the answer has come.
        sent_bad_http: What came is no HTTP.
    """

    is_kept = False
    is_silent = True
    sent_bad_http = False
    _has_answer = True  # before the first exchange no byte is due either

    def set_response_params(self, **params: Any) -> None:
        """Get ready for the answer to a request."""
        self.is_silent = True
        self._has_answer = self.sent_bad_http = False
        super().set_response_params(**params)
        self.heard()  # aiohttp's own count begins when the whole request has been written

    def heard(self) -> None:
        """Begin anew to count how long the upstream is silent."""
        self.start_timeout()

    def feed_data(self, data: Any, size: int = 0) -> None:
        message, payload = data
        if self._has_answer:
            self.abort()
            return
        super().feed_data(data, size)
        if message.code >= 200:
            payload.on_eof(self._answered)

    def data_received(self, data: bytes) -> None:
        if data:  # else the reader of a body, maybe of the exchange before, has taken a piece
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


class Attempt:
    """
    One request, and what becomes of its connection; `CURRENT` while it is sent.

    Args:
        on_connect: Called when it has a connection, just before it is written.
    """

    def __init__(self, on_connect: Callable[[], None] | None = None) -> None:
        self.line: Line | None = None
        self._was_kept = False
        self._on_connect = on_connect

    @property
    def was_idle(self) -> bool:
        """Whether its connection was kept from before, and no byte of an answer came on it."""
        return self._was_kept and self.line is not None and self.line.is_silent

    def begin_on(self, line: Line) -> None:
        """Take this connection."""
        self.line, self._was_kept = line, line.is_kept
        line.is_kept = True
        if self._on_connect is not None:
            self._on_connect()

    def abort(self) -> None:
        """Close the connection at once, without sending what is still buffered."""
        if self.line is not None:
            self.line.abort()


CURRENT: ContextVar[Attempt] = ContextVar("attempt")


class _CleanConnector(BaseConnector):
    """Makes its connections `Line`s, and gives a second attempt only new ones."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory: Any = partial(Line, loop=self._loop)

    async def connect(self, *args: Any, **named: Any) -> Connection:
        attempt = CURRENT.get()
        while True:
            connection = await super().connect(*args, **named)
            line = connection.protocol
            assert isinstance(line, Line)
            if attempt.line is None or not line.is_kept:
                break
            connection.close()
        attempt.begin_on(line)
        return connection


class CleanTCPConnector(_CleanConnector, TCPConnector):
    """For http and https."""


class CleanUnixConnector(_CleanConnector, UnixConnector):
    """For a server that listens on a Unix socket."""
