"""One request and its answer on one connection."""

import asyncio
from collections.abc import AsyncIterable

from aiohttp import ClientConnectorError, ClientOSError, ServerDisconnectedError, StreamReader
from aiohttp.http import RawResponseMessage

from pars.serving.connections import Line, Pool

Body = bytes | AsyncIterable[bytes] | None


class Exchange:
    """
    One try to have a request answered.

    Args:
        pool: Where its connection comes from, and goes if it is clean at the end.
        timeout_s: Without a byte from the upstream; 0 waits for ever.
    """

    def __init__(self, pool: Pool, line: Line, timeout_s: float) -> None:
        self.line = line
        self._pool = pool
        self._timeout_s = timeout_s
        self._was_kept = line.is_kept
        self._upload: asyncio.Task[None] | None = None
        line.is_kept = True

    async def ask(
        self, method: str, head: bytes, body: Body, length: int | None
    ) -> tuple[RawResponseMessage, StreamReader]:
        """
        Send the request and wait for its answer's head; a body in pieces goes on meanwhile.

        Args:
            length: Of a body in pieces, as `head` states it; None: it is chunked.

        Raises:
            aiohttp.ClientError, HttpProcessingError, OSError: there is no answer.
        """
        self.line.begin(may_have_body=method != "HEAD", timeout_s=self._timeout_s)
        if isinstance(body, AsyncIterable):
            self.line.write(head)
            self._upload = asyncio.create_task(self._send(body, length))
        else:
            self.line.write(head + body if body else head)
        return await self.line.head()

    def met_closed_line(self, error: BaseException) -> bool:
        """Whether a kept connection turned out to be closed before a byte of answer came."""
        closed = isinstance(error, ServerDisconnectedError | ClientOSError | ConnectionResetError)
        is_new = isinstance(error, ClientConnectorError) or not self._was_kept
        return closed and not is_new and self.line.is_silent and self._upload is None

    def end(self, *, is_whole: bool) -> None:
        """Free the connection; it is closed at once unless the exchange `is_whole`."""
        is_sent = self._upload is None or self._upload.done()
        if self._upload is not None:
            self._upload.cancel()
        if is_whole and is_sent:
            self._pool.give_back(self.line)
        else:
            self.line.leave()

    async def _send(self, body: AsyncIterable[bytes], length: int | None) -> None:
        """Send the pieces; what is no longer taken, or breaks off, ends it."""
        writer = self.line.writer(is_chunked=length is None)
        num_left = length
        try:
            async for piece in body:
                if num_left is not None:
                    num_left -= len(piece)
                self.line.heard()
                await writer.write(piece)
            if num_left:
                raise ValueError(f"a body of another length than it states, by {num_left}")
            await writer.write_eof()
            self.line.heard()
        except OSError:
            pass  # the upstream takes no more: it may have answered, which its reader will see
        except Exception:
            self.line.abort()  # else the upstream might take what it has for the whole
