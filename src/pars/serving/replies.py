"""The gateway's own answers: pages, and errors in the shape of OpenAI's API."""

import json
from collections.abc import Iterable
from typing import Any

from pars.request.body import Send

Fields = Iterable[tuple[bytes, bytes]]


async def send_error(
    send: Send,
    status: int,
    code: str,
    message: str,
    *,
    close: bool = False,
    more: Fields = (),
) -> None:
    """Send an error as OpenAI's clients expect it; `code` is for programs, `message` for people."""
    kind = "invalid_request_error" if status < 500 else "upstream_error"
    error = {"message": f"pars gateway: {message}", "type": kind, "param": None, "code": code}
    await send_json(send, status, {"error": error}, close=close, more=more)


async def send_json(
    send: Send, status: int, value: Any, *, close: bool = False, more: Fields = ()
) -> None:
    body = json.dumps(value).encode()
    await send_bytes(send, status, b"application/json", body, close=close, more=more)


async def send_bytes(
    send: Send,
    status: int,
    content_type: bytes,
    body: bytes,
    *,
    close: bool = False,
    more: Fields = (),
) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *more]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
