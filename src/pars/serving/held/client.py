"""One request while it is held: it can be handed on more than once, and its client may leave."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pars.outcomes.decision import Decision
from pars.request.body import TOO_MUCH, ByteBudget, Message, Receive, joined
from pars.serving.held.prefixes import MOST_BYTES
from pars.serving.held.queue import HeldQueue, QueueIsFull, Waiting
from pars.serving.held.replica import Replica, Turn
from pars.serving.held.slots import Caller


class Client:
    """
    One request as it comes.

    Attributes:
        is_whole: Its body is held here, so that it can be sent again.
        num_bytes: Of the body, as far as it is held here.
        gone: Done once the client left; None: it is not listened to.
    """

    def __init__(self, receive: Receive) -> None:
        self.is_whole = False
        self.num_bytes = 0
        self.gone: asyncio.Future[Message] | None = None
        self._receive = receive
        self._body: bytes | bytearray = b""
        self._has_begun = False
        self._last: Message | None = None  # that the client left

    async def read_next(self) -> int:
        """Take the next message of the body; how many bytes it has."""
        message = await self._receive()
        if message["type"] != "http.request":
            self._last, self.is_whole = message, True
            return 0
        piece = message.get("body", b"")
        self._body = joined(self._body, piece)
        self._has_begun = True
        self.is_whole = not message.get("more_body", False)
        self.num_bytes += len(piece)
        return len(piece)

    def listen(self) -> None:
        """Listen for the client's leaving; its body is whole."""
        self.gone = asyncio.ensure_future(self._receive())

    def beginning(self, num_bytes: int) -> bytes:
        """So much of the body, if there is as much."""
        return bytes(self._body[:num_bytes])

    def receiver(self) -> Receive:
        """The request from its start, then what the client does."""
        self._body = bytes(self._body)
        more = self._last is not None or not self.is_whole
        messages: list[Message] = []
        if self._has_begun:
            messages.append({"type": "http.request", "body": self._body, "more_body": more})
        if self._last is not None:
            messages.append(self._last)
        held: Iterator[Message] = iter(messages)

        async def replayed() -> Message:
            message = next(held, None)
            if message is not None:
                return message
            if self.gone is not None:
                return await asyncio.shield(self.gone)
            return await self._receive()

        return replayed

    def end(self) -> None:
        """Nothing more is asked of the client."""
        if self.gone is not None and not self.gone.done():
            self.gone.cancel()


class HeldRequest:
    """
    One request while it waits, and while it is at an engine.

    Args:
        caller: Whose it is, as the engine tells callers apart.
        budgets: Of bytes: what is held of it counts in each.

    Attributes:
        avoided: Servers that failed it.
        wait_s: How long it has waited here in all.
        rest_s: How long it is to wait before it may have another turn.
    """

    def __init__(
        self,
        queue: HeldQueue,
        decision: Decision,
        client: Client,
        caller: Caller,
        budgets: Sequence[ByteBudget],
    ) -> None:
        self.client = client
        self.caller = caller
        self.avoided: set[Replica] = set()
        self.wait_s = self.rest_s = 0.0
        self._queue = queue
        self._decision = decision
        self._budgets = budgets

    async def read(self) -> None:
        """
        Take the whole body: only then is it seen that the client leaves.

        Raises:
            QueueIsFull: there is no room for its bytes.
        """
        while not self.client.is_whole:
            num_bytes = await self.client.read_next()
            # Each of them, so that all count what `end` gives back.
            have_room = [budget.take(num_bytes) for budget in self._budgets]
            if not all(have_room):
                told = f"{self._budgets[0].num_bytes} bytes of requests are held, as many as may"
                raise QueueIsFull(told)
        self.client.listen()

    async def enter(self) -> Turn | None:
        """Wait for room; None: the client left meanwhile."""
        began_s = time.perf_counter()
        try:
            if self.rest_s and await self._leaves_at_rest():
                return None
            return await self._turn(self.wait_s + time.perf_counter() - began_s)
        finally:
            self.wait_s += time.perf_counter() - began_s

    def begin(self, turn: Turn) -> None:
        """The engine begins to answer."""
        turn.replica.refused.clear()
        self._queue.begin(turn)

    def end(self) -> None:
        """Nothing more is asked of the client, nor held for it."""
        for budget in self._budgets:
            budget.give_back(self.client.num_bytes)
        self.client.end()

    async def _leaves_at_rest(self) -> bool:
        """Whether the client left before its request's rest was over."""
        rest_s, self.rest_s = min(self.rest_s, self._queue.left_s(self.wait_s)), 0.0
        if self.client.gone is None:
            return False
        with self._queue.resting():
            done, _ = await asyncio.wait((self.client.gone,), timeout=rest_s)
        return bool(done)

    async def _turn(self, waited_s: float) -> Turn | None:
        entering = asyncio.ensure_future(self._queue.enter(self._waiting(), waited_s))
        waits: list[asyncio.Future[Any]] = [entering]
        if self.client.gone is not None:
            waits.append(self.client.gone)
        turn: Turn | None = None
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if entering.done():
                turn = entering.result()
            return turn
        finally:
            if not entering.done():
                entering.cancel()
                await asyncio.wait((entering,))
            elif turn is None and not entering.cancelled() and not entering.exception():
                self._queue.leave(entering.result())  # cancelled just as there was room

    def _waiting(self) -> Waiting:
        prefixes = self._queue.prefixes
        beginning = b"" if prefixes is None else self.client.beginning(MOST_BYTES)
        return Waiting(
            self._decision.outcome.key or 0,
            tells_begin=self._decision.is_stream,
            caller=self.caller,
            marks=() if prefixes is None else prefixes.marks(beginning),
            avoided=frozenset(self.avoided),
        )


def is_large(decision: Decision) -> bool:
    """Whether the request's body was too much to be read, of itself or just then."""
    return decision.outcome.decision in TOO_MUCH
