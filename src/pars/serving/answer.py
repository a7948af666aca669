"""An answer of the upstream's as it comes, or why there is none."""

import re
from collections.abc import Callable, Iterable
from typing import Self

import aiohttp
from aiohttp import StreamReader
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError

from pars.serving.connections import Line
from pars.serving.exchange import Exchange
from pars.serving.header_fields import end_to_end, seen_outside

# What no field may hold (RFC 9110, 5.5 and 5.6.2); aiohttp is lenient about an upstream's.
BAD_NAME = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")
BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

FAILURES = (aiohttp.ClientError, HttpProcessingError, OSError)


class UpstreamError(Exception):
    """The upstream gave no usable answer. `status` and `code` are for the client."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Answer:
    """
    A response as it comes.

    Args:
        base: The upstream's URL, which no field shows to clients.
        on_end: Called when the exchange is over.
        why: Makes of what went wrong on a connection what clients are told.

    Attributes:
        headers: Its end-to-end fields, as the upstream wrote them; but a Location on the upstream
            itself is a path.

    Raises:
        UpstreamError: it is none that can be passed on.
    """

    def __init__(
        self,
        message: RawResponseMessage,
        content: StreamReader,
        exchange: Exchange,
        *,
        base: str,
        on_end: Callable[[], None],
        why: Callable[[BaseException, Line], UpstreamError],
    ) -> None:
        self.status = message.code
        self.headers = seen_outside(end_to_end(message.raw_headers), base)
        self._content = content
        self._exchange = exchange
        self._on_end = on_end
        self._why = why
        problem = _problem(self.status, message.raw_headers)
        if problem:
            raise UpstreamError(502, "upstream_protocol_error", f"the upstream sent {problem}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._on_end()
        self._exchange.end(is_whole=self.is_finished)

    @property
    def is_finished(self) -> bool:
        """Whether the whole body has been read."""
        return self._content.at_eof()

    async def read(self) -> bytes:
        """
        The next bytes of the body, b"" at its end.

        Raises:
            UpstreamError: the body broke off.
        """
        try:
            return await self._content.readany()
        except FAILURES as error:
            raise self._why(error, self._exchange.line) from error

    async def rest(self, max_bytes: int) -> bytes:
        """The rest of the body, cut soon after `max_bytes`."""
        pieces, num_bytes = [], 0
        while not self.is_finished and num_bytes < max_bytes:
            pieces.append(await self.read())
            num_bytes += len(pieces[-1])
        return b"".join(pieces)


def _problem(status: int, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Why an answer cannot be passed on; empty: it can."""
    if not 200 <= status <= 599:
        return "an upgrade that nobody asked for" if status == 101 else f"status {status}"
    names = [name for name, _ in headers]
    values = b"".join([value for _, value in headers])
    if not all(names) or BAD_NAME.search(b"".join(names)) or BAD_VALUE.search(values):
        return "a field that HTTP does not allow"
    return ""
