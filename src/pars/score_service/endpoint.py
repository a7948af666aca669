"""
A scoring endpoint as bare ASGI: read the body, check it, queue the prompts, answer.

FastAPI documents and routes to it, but does not handle its requests. CPU time a request under 32
callers, without uvicorn and the ranker: 124 us for a FastAPI endpoint that returns a constant,
32 us for this one called directly, queue and thread included.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from pars.errors import ParsError, one_line
from pars.ranking.batching import Batcher, BatcherClosed, QueueFull
from pars.score_service.api import Operation

log = logging.getLogger("pars.score_service.server")

Header = tuple[bytes, bytes]
WATCH_AFTER_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call, and all waiting calls together, may ask for."""

    max_queued_prompts: int = 32_768
    max_prompts_per_call: int = 16_384
    max_body_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if min(self.max_queued_prompts, self.max_prompts_per_call, self.max_body_bytes) < 1:
            raise ParsError("every limit of the score service must be at least 1")
        if self.max_prompts_per_call > self.max_queued_prompts:
            raise ParsError(
                f"a call of {self.max_prompts_per_call} prompts could never be queued:"
                f" max_queued_prompts is {self.max_queued_prompts}"
            )


class Refusal(Exception):
    """An answer other than 200: its status, `detail` and headers."""

    def __init__(self, status: int, detail: str | list[dict[str, Any]], *headers: Header) -> None:
        self.status, self.detail, self.headers = status, detail, headers


RETRY_SOON: Header = (b"retry-after", b"1")


class ScoreEndpoint:
    """An ASGI app that answers one `Operation`. Nothing about a request is kept on it."""

    def __init__(
        self,
        operation: Operation,
        batcher: Batcher[float],
        limits: Limits,
        *,
        on_rejected: Callable[[], None],
        on_cancelled: Callable[[], None],
    ) -> None:
        self.operation = operation
        self.batcher = batcher
        self.limits = limits
        self.on_rejected = on_rejected
        self.on_cancelled = on_cancelled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> int | None:
        """Answer, and return the status; None when the client left before there was one."""
        try:
            body = await _read_body(scope, receive, self.limits.max_body_bytes)
            if body is None:
                return None
            asked = self._parse(body)
            scores = await self._score(self.operation.prompts_of(asked), receive)
            if scores is None:
                return None
            await _send_json(send, 200, self.operation.reply_to(asked, scores))
            return 200
        except Refusal as refusal:
            await _send_json(send, refusal.status, {"detail": refusal.detail}, *refusal.headers)
            return refusal.status

    def _parse(self, body: bytes) -> Any:
        if not body:
            _refuse("missing", [], "Field required")
        try:
            value = json.loads(body)
        except RecursionError:
            _refuse("json_invalid", [], "JSON decode error: nested too deeply")
        except json.JSONDecodeError as error:
            _refuse("json_invalid", [error.pos], f"JSON decode error: {error.msg}")
        except ValueError as error:  # not UTF-8, or a number of thousands of digits
            reason = getattr(error, "reason", "a number is too long")
            _refuse("json_invalid", [], f"JSON decode error: {reason}")
        self._check_count(value)
        try:
            return self.operation.request.model_validate(value, from_attributes=True)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
            detail = [{**problem, "loc": ["body", *problem["loc"]]} for problem in problems]
            raise Refusal(422, detail) from None

    def _check_count(self, value: Any) -> None:
        """Count before checking each item, so that a million wrong ones cost nothing."""
        field = self.operation.list_field
        items = value.get(field) if field and isinstance(value, dict) else None
        if not isinstance(items, list):
            return
        max_items = self.limits.max_prompts_per_call // self.operation.prompts_an_item
        if len(items) > max_items:
            problem = f"List should have at most {max_items} items, not {len(items)}"
            _refuse("too_long", [field], problem)

    async def _score(self, prompts: Sequence[str], receive: Receive) -> list[float] | None:
        """The scores, or None when the client left: what was not being scored yet is dropped."""
        try:
            scoring = self.batcher.submit(prompts)
        except QueueFull as error:
            self.on_rejected()
            raise Refusal(503, str(error), RETRY_SOON) from None
        client = _ClientWatch(receive, scoring)
        try:
            return await scoring
        except asyncio.CancelledError:
            self.on_cancelled()
            if not client.left:
                raise  # it is the server that ends this request
            return None
        except BatcherClosed as error:
            raise Refusal(503, str(error), RETRY_SOON) from None
        except ParsError as error:
            log.error("a batch was not scored: %s", one_line(error))
            raise Refusal(500, str(error)) from None
        finally:
            client.end()


class _ClientWatch:
    """
    Cancels `scoring` once the client leaves.

    It begins to look after a moment only: most answers are out by then, and the task it takes
    would cost a tenth of all that a request does (7 us; the timer costs 1 us).
    """

    def __init__(self, receive: Receive, scoring: asyncio.Future[list[float]]) -> None:
        self.left = False
        self._receive = receive
        self._scoring = scoring
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._wait())

    async def _wait(self) -> None:
        await self._receive()  # the body has been read: all that can come is that the client left
        self.left = True
        self._scoring.cancel()

    def end(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


async def _read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes | None:
    """The whole body; None when the client left before its end; 413 as soon as it is too large."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    too_large = Refusal(413, f"the body is larger than {max_bytes} bytes")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    chunks, num_bytes = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(chunk := message.get("body", b""))
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise too_large
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _refuse(kind: str, place: list[Any], problem: str) -> NoReturn:
    """Raise a 422 in FastAPI's own form."""
    raise Refusal(422, [{"type": kind, "loc": ["body", *place], "msg": problem}])


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_encode_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


async def _send_json(send: Send, status: int, value: dict[str, Any], *headers: Header) -> None:
    try:
        body = _encode(value).encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        body = _encode_ascii(value).encode()
    all_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})
