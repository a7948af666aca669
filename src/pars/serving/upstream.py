"""The server behind the gateway, and the connections to it that are kept for the next request."""

import asyncio
import ssl
import time
from collections import deque
from contextlib import suppress
from urllib.parse import urlsplit

from pars.errors import ParsError
from pars.serving.exchange import Exchange, Headers, UpstreamError

# Servers close idle connections, uvicorn and so vLLM after 5 s. Giving them up before that avoids
# the race in which a request is written just as the other side closes.
MAX_IDLE_S = 4.0


class Upstream:
    """
    The server behind the gateway, and the connections to it.

    Args:
        url: http:// or https://, with a path prefix if the server has one.
        max_connections: Open at once; beyond it requests get a 503 at once. It is meant to be out
            of reach: requests should wait in the engine's queue, which knows their priority.
        connect_timeout_s: To open a connection.
        timeout_s: Without a byte from the upstream, before or in mid-answer; 0 waits for ever.

    Raises:
        ParsError: `url` is no such URL.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = 4096,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 600.0,
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
            self.host_header = parts.netloc.encode(
                "idna" if not parts.netloc.isascii() else "ascii"
            )
            host = parts.hostname if parts.scheme in ("http", "https") else None
        except ValueError:  # a port or an address that is none, a name that cannot be encoded
            host = None
        if not host:
            raise ParsError(f"upstream {url!r}: want http://HOST:PORT or https://HOST:PORT")
        if parts.query or parts.fragment or parts.username:
            raise ParsError(f"upstream {url!r}: a URL with a query, fragment or user is not taken")
        self.url = url.rstrip("/")
        self.prefix = parts.path.rstrip("/").encode()
        self.num_open = 0
        self._host = host
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._max_connections = max_connections
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._idle: deque[Exchange] = deque()

    async def exchange(self, method: bytes, *, fresh: bool = False) -> Exchange:
        """
        A connection ready for a request; `release` it afterwards.

        Raises:
            UpstreamError: it cannot be had, and why.
        """
        exchange = None if fresh else self._kept()
        if exchange is None:
            exchange = await self._connected()
        exchange.begin(method)
        return exchange

    def release(self, exchange: Exchange) -> None:
        """Keep the connection for the next exchange if it is clean, close it otherwise."""
        if exchange.may_be_kept:
            exchange.is_reused = True
            exchange.idle_since_s = time.monotonic()
            self._idle.append(exchange)
        else:
            self._close(exchange)
        while self._idle and not self._is_fresh(self._idle[0]):
            self._close(self._idle.popleft())

    async def close(self) -> None:
        """Close the connections that nobody uses, and see them closed."""
        closing = list(self._idle)
        while self._idle:
            self._close(self._idle.pop())
        for exchange in closing:
            await exchange.lost.wait()

    def request_head(self, method: bytes, target: bytes, headers: Headers) -> bytes:
        """The head of a request, with the upstream's own Host."""
        lines = [
            b"%s %s%s HTTP/1.1\r\nhost: %s\r\n" % (method, self.prefix, target, self.host_header)
        ]
        lines += [b"%s: %s\r\n" % header for header in headers]
        lines.append(b"\r\n")
        return b"".join(lines)

    async def get(
        self, target: bytes, *, timeout_s: float = 5.0, headers: Headers | None = None
    ) -> tuple[int, bytes]:
        """
        Status and body (at most a megabyte) of a GET of our own.

        Raises:
            UpstreamError: there was no answer.
        """
        exchange = await self.exchange(b"GET", fresh=True)
        try:
            asked = [(b"accept", b"application/json"), *(headers or [])]
            exchange.write(self.request_head(b"GET", target, asked))
            exchange.is_request_sent = True
            async with asyncio.timeout(timeout_s):
                status, _ = await exchange.head()
                body = b""
                while not exchange.is_finished and len(body) < 1 << 20:
                    body += await exchange.read()
            return status, body
        except TimeoutError:
            message = f"the upstream did not answer within {timeout_s:g} seconds"
            raise UpstreamError(504, "upstream_timeout", message) from None
        finally:
            self._close(exchange)

    def _kept(self) -> Exchange | None:
        while self._idle:
            exchange = self._idle.pop()
            if self._is_fresh(exchange):
                return exchange
            self._close(exchange)
        return None

    def _is_fresh(self, exchange: Exchange) -> bool:
        return exchange.is_usable and time.monotonic() - exchange.idle_since_s < MAX_IDLE_S

    async def _connected(self) -> Exchange:
        if self.num_open >= self._max_connections:
            raise UpstreamError(
                503,
                "too_many_requests_in_flight",
                f"{self.num_open} requests are in flight already",
            )
        self.num_open += 1
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, exchange = await asyncio.get_running_loop().create_connection(
                    lambda: Exchange(self._timeout_s), self._host, self._port, ssl=self._ssl
                )
                return exchange
        except BaseException as error:
            self.num_open -= 1
            if isinstance(error, TimeoutError):
                message = (
                    f"no connection to the upstream within {self._connect_timeout_s:g} seconds"
                )
                raise UpstreamError(504, "upstream_connect_timeout", message) from error
            if isinstance(error, OSError):
                reason = error.strerror or type(error).__name__
                message = f"cannot connect to the upstream: {reason}"
                raise UpstreamError(502, "upstream_unreachable", message) from error
            raise

    def _close(self, exchange: Exchange) -> None:
        self.num_open -= 1
        with suppress(Exception):
            exchange.abort()
