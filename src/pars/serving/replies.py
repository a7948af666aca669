"""The gateway's own answers: pages, and errors in the shape of OpenAI's API."""

import json
from collections.abc import Iterable
from typing import Any

from pars.request.body import Send


async def send_error(
    send: Send, status: int, code: str, message: str, *, close: bool = False
) -> None:
    """Send an error as OpenAI's clients expect it; `code` is for programs, `message` for people."""
    kind = "invalid_request_error" if status < 500 else "upstream_error"
    error = {"message": f"pars gateway: {message}", "type": kind, "param": None, "code": code}
    await send_json(send, status, {"error": error}, close=close)


async def send_json(send: Send, status: int, value: Any, *, close: bool = False) -> None:
    await send_bytes(send, status, b"application/json", json.dumps(value).encode(), close=close)


async def send_bytes(
    send: Send,
    status: int,
    content_type: bytes,
    body: bytes,
    *,
    close: bool = False,
    more: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *more]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
