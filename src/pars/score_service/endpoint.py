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
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, TypeVar

import msgspec
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from pars.errors import ParsError, one_line
from pars.ranking.batching import Batcher, BatcherClosed, QueueFull
from pars.request.body import ByteBudget, HeldBody
from pars.request.fields import is_too_much
from pars.score_service.api import Operation

log = logging.getLogger("pars.score_service.server")

Header = tuple[bytes, bytes]
_A = TypeVar("_A")
_T = TypeVar("_T")
WATCH_AFTER_S = 0.01
MOST_PROBLEMS = 16  # that one answer names
SMALL_BYTES = 1 << 15  # of a body that is read on the event loop, its faults told one by one
MOST_CONTAINERS = 20_000  # lists and objects of a large body that Python's parser builds


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call, and all calls together, may ask for."""

    max_queued_prompts: int = 32_768
    max_prompts_per_call: int = 16_384
    max_body_bytes: int = 16 << 20
    max_buffered_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1:
            raise ParsError("every limit of the score service must be at least 1")
        if self.max_body_bytes > self.max_buffered_bytes:
            raise ParsError(
                f"a body of {self.max_body_bytes} bytes could never be held:"
                f" max_buffered_bytes is {self.max_buffered_bytes}"
            )
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
    """
    An ASGI app that answers one `Operation`. Nothing about a request is kept on it.

    Args:
        budget: Of bytes of bodies, from their arrival until they are answered.
    """

    def __init__(
        self,
        operation: Operation,
        batcher: Batcher[float],
        limits: Limits,
        budget: ByteBudget,
        *,
        on_rejected: Callable[[], None],
        on_cancelled: Callable[[], None],
    ) -> None:
        self.operation = operation
        self.batcher = batcher
        self.limits = limits
        self.budget = budget
        self.on_rejected = on_rejected
        self.on_cancelled = on_cancelled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> int | None:
        """Answer, and return the status; None when the client left before there was one."""
        try:
            with HeldBody(self.budget, self.limits.max_body_bytes) as body:
                if not await self._take(body, scope, receive):
                    return None
                num_bytes = body.num_bytes
                asked = await _beside_loop(num_bytes, self._parse, body.content())
                body.replace(b"")  # what was read of it counts in its place
                scores = await self._score(self.operation.prompts_of(asked), receive)
                if scores is None:
                    return None
                reply = self.operation.reply_to(asked, scores)
                await _send(send, 200, await _beside_loop(num_bytes, _encoded, reply))
                return 200
        except Refusal as refusal:
            detail = _encoded({"detail": refusal.detail})
            await _send(send, refusal.status, detail, *refusal.headers)
            return refusal.status

    async def _take(self, body: HeldBody, scope: Scope, receive: Receive) -> bool:
        """Read the body; False: the client left. Too large a one is refused as soon as it is."""
        max_bytes = self.limits.max_body_bytes
        too_large = Refusal(413, f"the body is larger than {max_bytes} bytes")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > max_bytes:
            raise too_large
        await body.take(receive)
        if body.outcome == "too_large":
            raise too_large
        if body.is_whole and body.num_bytes <= SMALL_BYTES:
            return True  # large ones take no room from it
        if body.outcome == "buffers_full":
            self.on_rejected()
            told = f"{self.limits.max_buffered_bytes} bytes of calls are held, as many as may"
            raise Refusal(503, told, RETRY_SOON)
        return body.outcome is None

    def _parse(self, body: bytes) -> Any:
        """What a body asks for; a large one's first fault is told as msgspec words it."""
        try:
            asked = msgspec.json.decode(body, type=self.operation.wire)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            is_wrong = isinstance(error, msgspec.ValidationError)
            if len(body) > SMALL_BYTES and (is_wrong or is_too_much(body, MOST_CONTAINERS)):
                _refuse("json_invalid", [], one_line(error))
            return self._parse_slowly(body)
        if self.operation.list_field is not None:
            self._check_count(getattr(asked, self.operation.list_field))
        return asked

    def _parse_slowly(self, body: bytes) -> Any:
        """The same by Python's parser and pydantic, which take more and word faults well."""
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
        self._check_count(value.get(self.operation.list_field) if isinstance(value, dict) else None)
        try:
            return self.operation.request.model_validate(value, from_attributes=True)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
            detail = [
                {**problem, "loc": ["body", *problem["loc"]]}
                for problem in problems[:MOST_PROBLEMS]
            ]
            raise Refusal(422, detail) from None

    def _check_count(self, items: Any) -> None:
        """Count before anything is done with the items, so that a million cost nothing."""
        if not isinstance(items, list):
            return
        max_items = self.limits.max_prompts_per_call // self.operation.prompts_an_item
        if len(items) > max_items:
            problem = f"List should have at most {max_items} items, not {len(items)}"
            _refuse("too_long", [self.operation.list_field], problem)

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


def _refuse(kind: str, place: list[Any], problem: str) -> NoReturn:
    """Raise a 422 in FastAPI's own form."""
    raise Refusal(422, [{"type": kind, "loc": ["body", *place], "msg": problem}])


_encode_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def _encoded(value: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        return _encode_ascii(value).encode()


async def _beside_loop(num_bytes: int, do: Callable[[_A], _T], argument: _A) -> _T:
    """`do` beside the event loop if that takes milliseconds, so that nobody else waits for it."""
    if num_bytes <= SMALL_BYTES:
        return do(argument)
    return await asyncio.to_thread(do, argument)


async def _send(send: Send, status: int, body: bytes, *headers: Header) -> None:
    all_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})
