"""
A request's body, held within bounds until its priority is known, then passed on as it came.

The middleware stands outside the engine's API-key check, so what one request and all requests
together may hold is bounded; beyond a bound the rest of a body streams through unread.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Self

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

TOO_MUCH = ("too_large", "buffers_full")


class ByteBudget:
    """Body bytes that all requests of one server may hold together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    def take(self, num_bytes: int) -> bool:
        """Count bytes as held; False once there are more than may be."""
        self.num_bytes += num_bytes
        return self.num_bytes <= self.max_bytes

    def give_back(self, num_bytes: int) -> None:
        """Bytes that are held no longer."""
        self.num_bytes -= num_bytes


class HeldBody:
    """
    One request's messages. A context manager: what is held is given back at the latest on leaving.

    Attributes:
        outcome: None, or why the body is not to be read: "too_large", "buffers_full",
            "client_left".
        is_object: Set by whoever parsed the content and found a JSON object.
    """

    def __init__(self, budget: ByteBudget, max_bytes: int) -> None:
        self.outcome: str | None = None
        self.is_object = False
        self._budget = budget
        self._max_bytes = max_bytes
        self._messages: list[Message] = []
        self._num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    async def take(self, receive: Receive) -> None:
        """Take messages until the body ends, the client leaves or a bound is passed."""
        is_whole = False
        while not is_whole and self.outcome is None:
            message = await receive()
            self._messages.append(message)
            if message["type"] != "http.request":
                self.outcome = "client_left"
                return
            num_bytes = len(message.get("body", b""))
            self._num_bytes += num_bytes
            has_room = self._budget.take(num_bytes)
            if self._num_bytes > self._max_bytes:
                self.outcome = "too_large"
            elif not has_room:
                self.outcome = "buffers_full"
            is_whole = not message.get("more_body", False)

    def content(self) -> bytes:
        """The bytes held."""
        pieces = [message.get("body", b"") for message in self._messages]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def replace(self, content: bytes) -> int:
        """Hold `content` instead of a whole body; how many bytes longer it is."""
        self._messages = [{"type": "http.request", "body": content, "more_body": False}]
        return len(content) - self._num_bytes

    def replay(self, receive: Receive) -> Receive:
        """The messages as they came, then the real channel, so that disconnects still arrive."""
        held, self._messages = iter(self._messages), []  # from now on the app holds them, not we

        async def replayed() -> Message:
            message = next(held, None)
            if message is not None:
                return message
            self._give_back()
            return await receive()

        return replayed

    def _give_back(self) -> None:
        self._budget.give_back(self._num_bytes)
        self._num_bytes = 0
