"""
The server behind the gateway, asked through aiohttp's client.

    async with Upstream("http://localhost:8000") as upstream:
        async with upstream.request("POST", b"/v1/completions", headers, body) as answer:
            answer.status, answer.headers
            while not answer.is_finished:
                piece = await answer.read()

An answer is handed over as it comes: no redirect is followed, no cookie kept, nothing decoded. What
frames a body, and Host, are always made here, from what is really sent.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy
from ipaddress import ip_address
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from pars.errors import ParsError
from pars.request.prompts import reader_of
from pars.scheduling.trust import BEARER_HEADER, KEY_HEADERS
from pars.serving.connections import (
    CURRENT,
    Attempt,
    CleanTCPConnector,
    CleanUnixConnector,
)
from pars.serving.header_fields import HOP_BY_HOP, Headers, end_to_end, seen_outside

# Servers close idle connections, uvicorn and so vLLM after 5 s. Giving them up before that avoids
# the race in which a request is written just as the other side closes.
MAX_IDLE_S = 4.0
MAX_FIELD_BYTES = 64 * 1024  # of a response's field; all its fields together may have four times it
MAX_FIELDS = 512
MAX_PAGE_BYTES = 1 << 20
MADE_HERE = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
KEY_FIELDS = frozenset((BEARER_HEADER, *KEY_HEADERS))
UNIX_SCHEMES = ("unix", "http+unix")

# What no field may hold (RFC 9110, 5.5 and 5.6.2); aiohttp is lenient about an upstream's.
BAD_NAME = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")
BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class UpstreamError(Exception):
    """The upstream gave no usable answer. `status` and `code` are for the client."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


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
        self.url, self._base, self._socket_path = _read_url(url)
        self.num_open = 0
        self._max_connections = max_connections
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._own_fields = [("Authorization", f"Bearer {api_key}")] if api_key else []
        self._tls = _trusting(ca_file) if ca_file else True
        self.proxy = None if self._socket_path else _proxy_for(self._base)
        self._keeps_connections = keeps_connections
        self._session: aiohttp.ClientSession | None = None

    def asked_afresh(self) -> Self:
        """The same server with a connection for each request, so that several take turns."""
        other = copy(self)
        other._keeps_connections, other._session, other.num_open = False, None, 0
        return other

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, and see them closed."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        body: bytes | AsyncIterable[bytes] | None = None,
        *,
        may_repeat: bool = False,
        on_connect: Callable[[], None] | None = None,
    ) -> AsyncIterator["Answer"]:
        """
        Send a request; the block gets the answer's head, and reads its body.

        Leaving the block before the answer is whole closes the connection at once.

        Args:
            target: The path, and the query if there is one.
            headers: Fields that concern one connection, Host and keys are replaced by our own.
            body: In pieces it is sent in pieces: with the Content-Length that `headers` state, or
                chunked.
            may_repeat: A `body` in one piece may be sent again where a kept connection turns out
                to be closed. (aiohttp does this itself for methods that are idempotent.)
            on_connect: Called when there is a connection, just before the request is written.

        Raises:
            UpstreamError: there is no answer, and why. While it is read, too.
        """
        if self.num_open >= self._max_connections:
            message = f"{self.num_open} requests are in flight already"
            raise UpstreamError(503, "too_many_requests_in_flight", message)
        self.num_open += 1
        attempt = Attempt(on_connect)
        token = CURRENT.set(attempt)
        answer: Answer | None = None
        try:
            options = {"headers": self._fields(headers, body), "data": self._timed(body, attempt)}
            answer = await self._answer(method, target, options, attempt, may_repeat)
            yield answer
        finally:
            self.num_open -= 1
            CURRENT.reset(token)
            if answer is None or not answer.has_ended:
                attempt.abort()
            if answer is not None:
                answer.close()

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
            async with (
                asyncio.timeout(timeout_s),
                self.request("GET", target, asked) as answer,
            ):
                return answer.status, await answer.rest(max_bytes)
        except TimeoutError:
            message = f"the upstream did not answer within {timeout_s:g} seconds"
            raise UpstreamError(504, "upstream_timeout", message) from None

    async def _answer(
        self,
        method: str,
        target: bytes,
        options: dict[str, Any],
        attempt: Attempt,
        may_repeat: bool,
    ) -> "Answer":
        url = URL(self._base + target.decode("ascii"), encoded=True)
        try:
            response = await self._ask(method, url, options)
        except (aiohttp.ClientError, OSError) as error:
            was_closed = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
            if not (may_repeat and was_closed and attempt.was_idle):
                raise self._told(error, attempt) from error
            try:
                response = await self._ask(method, url, options)
            except (aiohttp.ClientError, OSError) as second:
                raise self._told(second, attempt) from second
        return Answer(response, self._base, lambda error: self._told(error, attempt))

    async def _ask(self, method: str, url: URL, options: dict[str, Any]) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = self._new_session()
        return await self._session.request(
            method, url, allow_redirects=False, ssl=self._tls, proxy=self.proxy, **options
        )

    def _new_session(self) -> aiohttp.ClientSession:
        pool: dict[str, Any] = {"limit": 0}
        pool |= {"keepalive_timeout": MAX_IDLE_S} if self._keeps_connections else {"force_close": 1}
        return aiohttp.ClientSession(
            connector=(
                CleanUnixConnector(path=self._socket_path, **pool)
                if self._socket_path
                else CleanTCPConnector(**pool)
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=self._connect_timeout_s,
                sock_read=self._timeout_s or None,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_FIELDS,
        )

    def _fields(
        self, headers: Headers, body: bytes | AsyncIterable[bytes] | None
    ) -> list[tuple[str, str]]:
        """The fields to send: the request's own, and ours last."""
        replaced = MADE_HERE | KEY_FIELDS if self._own_fields else MADE_HERE
        fields: list[tuple[str, str]] = []
        for name, value in headers:
            lower = name.lower()
            if lower not in replaced and lower.replace(b"_", b"-") not in replaced:
                fields.append((name.decode("ascii"), _text(value)))
            elif lower == b"content-length" and isinstance(body, AsyncIterable):
                fields.append(("Content-Length", str(int(value))))
        return fields + self._own_fields

    def _timed(
        self, body: bytes | AsyncIterable[bytes] | None, attempt: Attempt
    ) -> bytes | AsyncIterable[bytes] | None:
        """The body; in pieces, each piece that is taken shows that the upstream is there."""
        if not isinstance(body, AsyncIterable):
            return body
        source = body

        async def pieces() -> AsyncIterator[bytes]:
            async for piece in source:
                if attempt.line is not None:
                    attempt.line.heard()
                yield piece

        return pieces()

    def _told(self, error: BaseException, attempt: Attempt) -> UpstreamError:
        """What went wrong, for the client and for the log."""
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            message = f"no connection to the upstream within {self._connect_timeout_s:g} seconds"
            return UpstreamError(504, "upstream_connect_timeout", message)
        if isinstance(error, TimeoutError):
            message = f"the upstream sent nothing for {self._timeout_s:g} seconds"
            return UpstreamError(504, "upstream_timeout", message)
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
            where = "its proxy" if self.proxy else "the upstream"
            message = f"cannot connect to {where}: {_reason(error)}"
            return UpstreamError(502, "upstream_unreachable", message)
        is_bad = attempt.line is not None and attempt.line.sent_bad_http
        if is_bad or isinstance(error, aiohttp.ClientResponseError):
            message = f"the upstream sent no valid HTTP: {_reason(error)}"
            return UpstreamError(502, "upstream_protocol_error", message)
        message = "the upstream closed the connection before its answer was whole"
        return UpstreamError(502, "upstream_closed", message)


class Answer:
    """
    A response as it comes.

    Attributes:
        headers: Its end-to-end fields, as the upstream wrote them; but a Location on the upstream
            itself is a path.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        base: str,
        told: Callable[[BaseException], UpstreamError],
    ) -> None:
        self._response = response
        self._told = told
        self.status = response.status
        self.headers = seen_outside(end_to_end(response.raw_headers), base)
        problem = _problem(self.status, self.headers)
        if problem:
            response.close()
            message = f"the upstream sent {problem}"
            raise UpstreamError(502, "upstream_protocol_error", message)

    @property
    def is_finished(self) -> bool:
        """Whether the whole body has been read."""
        return self._response.content.at_eof()

    @property
    def has_ended(self) -> bool:
        """Whether the exchange is over on both sides, and the connection free for another."""
        return self.is_finished and self._response.connection is None

    async def read(self) -> bytes:
        """
        The next bytes of the body, b"" at its end.

        Raises:
            UpstreamError: the body broke off.
        """
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError) as error:
            raise self._told(error) from error

    async def rest(self, max_bytes: int) -> bytes:
        """The rest of the body, cut soon after `max_bytes`."""
        pieces, num_bytes = [], 0
        while not self.is_finished and num_bytes < max_bytes:
            pieces.append(await self.read())
            num_bytes += len(pieces[-1])
        return b"".join(pieces)

    def close(self) -> None:
        """Close the connection, unless the exchange has ended."""
        self._response.close()


def _problem(status: int, headers: Headers) -> str:
    """Why an answer cannot be passed on; empty: it can."""
    if not 200 <= status <= 599:
        return "an upgrade that nobody asked for" if status == 101 else f"status {status}"
    for name, value in headers:
        if not name or BAD_NAME.search(name) or BAD_VALUE.search(value):
            return "a field that HTTP does not allow"
    return ""


def _text(value: bytes) -> str:
    """
    A field's value for aiohttp, which sends text as UTF-8.

    So UTF-8, and ASCII in it, arrives byte for byte; other bytes arrive as the UTF-8 of the Latin-1
    that they stand for.
    """
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        inner = error.os_error
        return inner.strerror or str(inner) or type(inner).__name__
    message = getattr(error, "message", "") or str(error) or type(error).__name__
    return str(message).strip().split("\n")[0].strip(" :")[:200]


def _read_url(url: str) -> tuple[str, str, str]:
    """The URL as people read it, the one that paths are added to, and the path of its socket."""
    scheme, _, rest = url.partition(":")
    if scheme in UNIX_SCHEMES:
        path = rest.removeprefix("//")
        path = unquote(path) if scheme == "http+unix" else path
        path = path.rstrip("/")
        if not path or "\0" in path:
            raise ParsError(f"upstream {url!r}: want unix:PATH, such as unix:/run/vllm.sock")
        return url, "http://localhost", path
    parts = _split(url)
    if parts is None:
        raise ParsError(f"upstream {url!r}: want http://HOST:PORT, https://HOST:PORT or unix:PATH")
    if parts.query or parts.fragment or parts.username is not None:
        raise ParsError(f"upstream {url!r}: a URL with a query, fragment or user is not taken")
    prefix = parts.path.rstrip("/")
    prefix = prefix.removesuffix("/v1").rstrip("/")
    if reader_of(prefix) is not None or prefix.endswith("/v1/models"):
        raise ParsError(f"upstream {url!r}: a path of the server's API; want the server alone")
    base = str(URL(f"{parts.scheme}://{parts.netloc}{prefix}"))
    return f"{parts.scheme}://{parts.netloc}{prefix}", base.rstrip("/"), ""


def _split(url: str) -> SplitResult | None:
    """The parts of an http URL; None if it is none."""
    try:
        parts = urlsplit(url)
        URL(f"{parts.scheme}://{parts.netloc}")
        is_http = parts.scheme in ("http", "https") and parts.hostname
        return parts if is_http and parts.port != 0 else None
    except ValueError:  # a port or an address that is none, a name that cannot be encoded
        return None


def _trusting(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParsError(f"upstream_ca_file {ca_file}: no PEM certificates: {reason}") from None


def _proxy_for(base: str) -> str | None:
    """
    The proxy that the environment names for this URL (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).

    A server on this machine is never asked through one: that is hardly ever meant, and the proxy's
    own loopback is another machine's.
    """
    parts = urlsplit(base)
    host = parts.hostname or ""
    if _is_loopback(host) or proxy_bypass(host):
        return None
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy.startswith(("http://", "https://")):
        proxy = None if "://" in proxy else f"http://{proxy}"
    return proxy


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
