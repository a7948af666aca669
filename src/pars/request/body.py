"""
A request's body, held within bounds until its priority is known, then passed on as it came.

The middleware stands outside the engine's API-key check, so what one request and all requests
together may hold is bounded; beyond a bound the rest of a body streams through unread. Where the
room runs out, uploads that are still on their way give way, the oldest first: whoever sends slowly
loses a good place in the queue, and takes it from nobody else.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Self

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

TOO_MUCH = ("too_large", "buffers_full")


def joined(body: bytes | bytearray, piece: bytes) -> bytes | bytearray:
    """
    A body with one piece more; a bytearray that is given grows in place.

    In one piece, since a message for each byte would cost hundreds; a lone one is not copied.
    """
    if not body:
        return piece
    if not isinstance(body, bytearray):
        body = bytearray(body)
    body += piece
    return body


class ByteBudget:
    """
    Body bytes that all requests of one server may hold together.

    What gave way is held for a little longer, until it is passed on; that may be as much again.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_leaving_bytes = 0
        self._on_their_way: dict[HeldBody, None] = {}  # in order of arrival

    def take(self, num_bytes: int) -> bool:
        """Count bytes as held; False where there is no room, and nobody gives way."""
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes and self.num_leaving_bytes < self.max_bytes:
            oldest = next(iter(self._on_their_way), None)
            if oldest is None:
                break
            del self._on_their_way[oldest]
            num_bytes = oldest.give_way()
            self.num_bytes -= num_bytes
            self.num_leaving_bytes += num_bytes
        return self.num_bytes <= self.max_bytes

    def wait_for(self, body: "HeldBody") -> None:
        """`body` is on its way, and may be asked to give way."""
        self._on_their_way.setdefault(body)

    def came(self, body: "HeldBody") -> None:
        """`body` is on its way no longer."""
        self._on_their_way.pop(body, None)

    def give_back(self, num_bytes: int, *, has_left: bool = False) -> None:
        """Bytes that are held no longer; `has_left`: of a body that gave way."""
        if has_left:
            self.num_leaving_bytes -= num_bytes
        else:
            self.num_bytes -= num_bytes


class HeldBody:
    """
    One request's body. A context manager: what is held is given back at the latest on leaving.

    Attributes:
        outcome: None, or why the body is not to be read: "too_large", "buffers_full",
            "client_left".
        num_bytes: That came so far.
    """

    def __init__(self, budget: ByteBudget, max_bytes: int) -> None:
        self.outcome: str | None = None
        self.num_bytes = 0
        self._budget = budget
        self._max_bytes = max_bytes
        self._body: bytes | bytearray = b""
        self._has_begun = self._is_whole = False
        self._last: Message | None = None  # that the client left
        self._num_counted_bytes = 0
        self._gave_way: asyncio.Future[None] | None = None  # there once it may have to
        self._receiving: asyncio.Future[Message] | None = None  # what came too late to be held

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.came(self)
        self._give_back()
        if self._receiving is not None:
            self._receiving.cancel()

    async def take(self, receive: Receive) -> None:
        """Take messages until the body ends, the client leaves or a bound is passed."""
        while not self._is_whole and self.outcome is None:
            message = await self._next(receive)
            if message is None:
                return
            if message["type"] != "http.request":
                self._last = message
                self.outcome = "client_left"
                break
            self._hold(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
        self._budget.came(self)

    def _hold(self, piece: bytes) -> None:
        self._body = joined(self._body, piece)
        self._has_begun = True
        self.num_bytes += len(piece)
        self._num_counted_bytes += len(piece)
        has_room = self._budget.take(len(piece))
        if self.num_bytes > self._max_bytes:
            self.outcome = "too_large"
        elif not has_room:
            self.outcome = "buffers_full"

    async def _next(self, receive: Receive) -> Message | None:
        """The next message; None once this body has to give way."""
        if not self._has_begun:
            return await receive()
        if self._gave_way is None:
            self._gave_way = asyncio.get_running_loop().create_future()
            self._budget.wait_for(self)
        receiving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((receiving, self._gave_way), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            receiving.cancel()
            raise
        if self._gave_way.done():
            self._receiving = receiving
            return None
        return receiving.result()

    def give_way(self) -> int:
        """Hold no more of this body: how many bytes are given up."""
        self.outcome = "buffers_full"
        if self._gave_way is not None and not self._gave_way.done():
            self._gave_way.set_result(None)
        return self._num_counted_bytes

    @property
    def is_whole(self) -> bool:
        """Whether all of it came."""
        return self._is_whole

    def content(self) -> bytes:
        """The bytes held."""
        self._body = bytes(self._body)
        return self._body

    def replace(self, content: bytes) -> int:
        """Hold `content` instead of a whole body; how many bytes longer it is."""
        self._body = content
        return len(content) - self.num_bytes

    def replay(self, receive: Receive) -> Receive:
        """The body as far as it came, then the real channel, so that disconnects still arrive."""
        held: list[Message] = []
        if self._has_begun:
            more = not self._is_whole
            held.append({"type": "http.request", "body": self.content(), "more_body": more})
        if self._last is not None:
            held.append(self._last)
        self._body = b""  # from now on the app holds it, not we
        left = iter(held)
        del held

        async def replayed() -> Message:
            message = next(left, None)
            if message is not None:
                return message
            self._give_back()
            if self._receiving is not None:
                receiving, self._receiving = self._receiving, None
                return await receiving
            return await receive()

        return replayed

    def _give_back(self) -> None:
        has_left = self._gave_way is not None and self._gave_way.done()
        self._budget.give_back(self._num_counted_bytes, has_left=has_left)
        self._num_counted_bytes = 0
