"""uvicorn's HTTP/1.1 protocol with bounds on a request's head, for a port that faces clients."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 20.0


class ClientProtocol(HttpToolsProtocol):
    """
    Closes connections whose request head takes too long or grows too large.

    uvicorn itself waits for ever for a head that has begun (slow loris) and holds any size of it.
    """

    head_timeout_s = HEAD_TIMEOUT_S

    _head_timer: asyncio.TimerHandle | None = None
    _num_head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._head_timer is not None:
            # Of the piece in which the head ends, the body's part counts as well: pieces are
            # bounded by the transport, so only the pieces before it can add up.
            self._num_head_bytes += len(data)
            if self._num_head_bytes - len(data) > MAX_HEAD_BYTES:
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:  # a later request on a connection that was kept
            self._await_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._num_head_bytes = 0
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
