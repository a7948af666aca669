"""Answers of unknown length to HTTP/1.0 clients: their end is that of the connection."""

import socket
import struct
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class UntilClose:
    """
    Answers an HTTP/1.0 request, whose sender knows no chunks.

    A body of unknown length ends with its connection: one that breaks off ends with a reset, or it
    would look whole.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._is_framed = True

    async def send(self, message: Any) -> None:
        """Send an ASGI message."""
        cycle = self._cycle
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", [])}
            has_body = cycle.scope["method"] != "HEAD" and message["status"] not in (204, 304)
            self._is_framed = b"content-length" in names or not has_body
            if not self._is_framed:
                self._reset_on_close(True)
                cycle.chunked_encoding = False  # uvicorn then frames nothing
            await self._send(message)
        elif self._is_framed:
            await self._send(message)
        else:
            await self._send_unframed(message)

    async def _send_unframed(self, message: Any) -> None:
        cycle = self._cycle
        body = message.get("body", b"")
        is_last = not message.get("more_body", False)
        cycle.expected_content_length = len(body)
        if is_last:
            self._reset_on_close(False)
        await self._send(message)

    def _reset_on_close(self, does: bool) -> None:
        connection: socket.socket | None = self._cycle.transport.get_extra_info("socket")
        if connection is not None:
            linger = struct.pack("ii", int(does), 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
