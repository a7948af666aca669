"""
The server behind the gateway, asked over aiohttp's connections.

    async with Upstream("http://localhost:8000") as upstream:
        with await upstream.ask("POST", b"/v1/completions", headers, body) as answer:
            answer.status, answer.headers
            while not answer.is_finished:
                piece = await answer.read()

An answer is handed over as it comes: no redirect is followed, no cookie kept, nothing decoded. What
frames a body, and Host, are always made here, from what is really sent.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterable, Callable
from copy import copy
from typing import Self

import aiohttp

from pars.scheduling.trust import BEARER_HEADER, KEY_HEADERS
from pars.serving.address import Address
from pars.serving.answer import FAILURES, Answer, UpstreamError
from pars.serving.connections import Line, Pool
from pars.serving.exchange import Body, Exchange
from pars.serving.header_fields import HOP_BY_HOP, Headers

MAX_PAGE_BYTES = 1 << 20
MADE_HERE = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
# Why no connection can be had that says nothing about the upstream.
OURS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
KEY_FIELDS = frozenset((BEARER_HEADER, *KEY_HEADERS))

# Sent twice they do the same as once (RFC 9110, section 9.2.2).
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))
HAS_CONTENT = frozenset(("POST", "PUT", "PATCH"))  # their length is told even if it is 0


class Upstream:
    """
    The server behind the gateway, and the connections to it. Used on one event loop.

    Args:
        url: http:// or https://, with a path prefix if the server has one; or a Unix socket, as
            unix:PATH or http+unix://ESCAPED_PATH. A /v1 at its end is understood as none.
        max_connections: Requests at once; beyond it they get a 503 at once. It is meant to be out
            of reach: requests should wait in the engine's queue, which knows their priority.
        connect_timeout_s: To open a connection.
        timeout_s: Without a byte from the upstream, before or in mid-answer; 0 waits for ever.
        api_key: Sent as the Bearer token in place of any key that a request brings.
        ca_file: PEM file of the authorities to trust, instead of the system's.
        keeps_connections: For further requests; else each has one of its own.

    Raises:
        ParsError: `url` is no such URL, or `ca_file` cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = 4096,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 600.0,
        api_key: str = "",
        ca_file: str = "",
        keeps_connections: bool = True,
    ) -> None:
        self._address = Address.parse(url, ca_file)
        self.num_open = 0
        self._prefix = self._address.prefix
        self._host_field = b"Host: " + self._address.host
        self.base = str(self._address.base)
        self._max_connections = max_connections
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._replaced = MADE_HERE | KEY_FIELDS if api_key else MADE_HERE
        self._own_fields = [_bearer(api_key)] if api_key else []
        self._own_fields += self._address.proxy_fields
        self._keeps_connections = keeps_connections
        self._pool: Pool | None = None

    @property
    def url(self) -> str:
        """Where it is, for people."""
        return self._address.shown

    @property
    def has_own_key(self) -> bool:
        """Whether it is asked with a key of ours, and so sees one caller only."""
        return bool(self._replaced & KEY_FIELDS)

    def use_key(self, api_key: str) -> None:
        """Send another key from now on, of who is `asked_afresh` too; there was one before."""
        self._own_fields[0] = _bearer(api_key)

    @property
    def has_proxy(self) -> bool:
        """Whether it is asked through a proxy that the environment names."""
        return self._address.proxy is not None

    def asked_afresh(self) -> Self:
        """The same server with a connection for each request, so that several take turns."""
        other = copy(self)
        other._keeps_connections, other._pool, other.num_open = False, None, 0
        return other

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, and see them closed."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    async def ask(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        body: Body = None,
        *,
        may_repeat: Callable[[], bool] = lambda: False,
        on_connect: Callable[[], None] | None = None,
    ) -> "Answer":
        """
        Send a request and wait for its answer's head. The answer is to be used in a `with` block,
        whose end closes the connection at once unless the whole of it was read.

        Args:
            target: The path, and the query if there is one.
            headers: Fields that concern one connection, Host and keys are replaced by our own.
            body: In pieces it is sent in pieces, also while the answer comes: with the
                Content-Length that `headers` state, or chunked.
            may_repeat: Whether it may be sent again where a kept connection turns out to be closed,
                as requests with an idempotent method are; not if its body comes in pieces.
            on_connect: Called when there is a connection, just before the request is written.

        Raises:
            UpstreamError: there is no answer, and why.
        """
        if self.num_open >= self._max_connections:
            message = f"{self.num_open} requests are in flight already"
            raise UpstreamError(503, "too_many_requests_in_flight", message)
        length = _length(headers) if isinstance(body, AsyncIterable) else None
        head = self._head(method, target, headers, body, length)
        self.num_open += 1
        exchange: Exchange | None = None
        try:
            while True:
                exchange = await self._exchange(is_second=exchange is not None)
                if on_connect is not None:
                    on_connect()
                try:
                    told = await exchange.ask(method, head, body, length)
                    return Answer(
                        *told, exchange, base=self.base, on_end=self._ended, why=self._why
                    )
                except FAILURES as error:
                    is_harmless = method in IDEMPOTENT or may_repeat()
                    if not (is_harmless and exchange.met_closed_line(error)):
                        raise self._why(error, exchange.line) from error
                    exchange.end(is_whole=False)
        except BaseException:
            self.num_open -= 1
            if exchange is not None:
                exchange.end(is_whole=False)
            raise

    async def get(
        self,
        target: bytes,
        *,
        timeout_s: float = 5.0,
        headers: Headers | None = None,
        max_bytes: int = MAX_PAGE_BYTES,
    ) -> tuple[int, bytes]:
        """
        Status and body (cut soon after `max_bytes`) of a GET of our own.

        Raises:
            UpstreamError: there was no answer.
        """
        asked = [(b"accept", b"application/json"), *(headers or [])]
        try:
            async with asyncio.timeout(timeout_s):
                with await self.ask("GET", target, asked) as answer:
                    return answer.status, await answer.rest(max_bytes)
        except TimeoutError:
            message = f"the upstream did not answer within {timeout_s:g} seconds"
            raise UpstreamError(504, "upstream_timeout", message) from None

    async def _exchange(self, *, is_second: bool) -> Exchange:
        if self._pool is None:
            self._pool = Pool(
                self._address,
                keeps=self._keeps_connections,
                connect_timeout_s=self._connect_timeout_s,
            )
        try:
            line = await self._pool.line(is_new=is_second)
        except TimeoutError as error:
            message = f"no connection to the upstream within {self._connect_timeout_s:g} seconds"
            raise UpstreamError(504, "upstream_connect_timeout", message) from error
        except FAILURES as error:
            if getattr(error, "errno", None) in OURS:
                message = f"the gateway can open no more connections: {_reason(error)}"
                raise UpstreamError(503, "no_connections_left", message) from error
            where = "its proxy" if self.has_proxy else "the upstream"
            message = f"cannot connect to {where}: {_reason(error)}"
            raise UpstreamError(502, "upstream_unreachable", message) from error
        return Exchange(self._pool, line, self._timeout_s)

    def _head(
        self, method: str, target: bytes, headers: Headers, body: Body, length: int | None
    ) -> bytes:
        """The request's head: its own fields, ours, and what frames its body last."""
        lines = [
            b"%s %s%s HTTP/1.1" % (method.encode(), self._prefix, target),
            self._host_field,
        ]
        for name, value in headers:
            lower = name.lower()
            if b"_" in lower:
                lower = lower.replace(b"_", b"-")
            if lower not in self._replaced:
                lines.append(b"%s: %s" % (name, value))
        # A preflight comes without a client's key (Fetch standard), so it gets none of ours.
        lines += self._address.proxy_fields if method == "OPTIONS" else self._own_fields
        if length is not None:
            lines.append(b"Content-Length: %d" % length)
        elif isinstance(body, AsyncIterable):
            lines.append(b"Transfer-Encoding: chunked")
        elif body is not None or method in HAS_CONTENT:
            lines.append(b"Content-Length: %d" % len(body or b""))
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        if head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1:
            raise ValueError("a line end within a field")  # which the client's parser refuses
        return head

    def _ended(self) -> None:
        self.num_open -= 1

    def _why(self, error: BaseException, line: Line) -> UpstreamError:
        """What went wrong, for the client and for the log."""
        if isinstance(error, TimeoutError):
            message = f"the upstream sent nothing for {self._timeout_s:g} seconds"
            return UpstreamError(504, "upstream_timeout", message)
        if line.sent_bad_http:
            message = f"the upstream sent no valid HTTP: {_reason(error)}"
            return UpstreamError(502, "upstream_protocol_error", message)
        message = "the upstream closed the connection before its answer was whole"
        return UpstreamError(502, "upstream_closed", message)


def _bearer(api_key: str) -> bytes:
    return b"Authorization: Bearer " + api_key.encode()


def _length(headers: Headers) -> int | None:
    """The Content-Length that a request states."""
    stated = [int(value) for name, value in headers if name.lower() == b"content-length"]
    return stated[0] if stated else None


def _reason(error: BaseException) -> str:
    """In words, without the address: clients, who may read it, need not know that."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorError):
        inner = error.os_error
        if isinstance(inner, socket.gaierror):
            return "its name is not known"
        if isinstance(inner, ssl.SSLError) or not inner.errno:
            return inner.strerror or type(inner).__name__
        return os.strerror(inner.errno)
    message = getattr(error, "message", "") or str(error) or type(error).__name__
    return str(message).strip().split("\n")[0].strip(" :")[:200]
