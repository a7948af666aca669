"""
Holds requests until the engine has room: an ASGI layer between the middleware and the relay.

Only what has a place in the queue is held, which are generation requests. Health checks, lists of
models and the like pass. A request that the engine sends back as "busy" (429, 503) before a byte of
an answer goes back to its place here; its client hears nothing of it.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from pars.outcomes.decision import DECISION, Decision
from pars.request.body import ASGIApp, Message, Receive, Scope, Send
from pars.serving.held.queue import HeldQueue, QueueIsFull, WaitedTooLong
from pars.serving.held.slots import Sent
from pars.serving.replies import send_error

WAIT_HEADER = b"x-pars-wait-ms"
BUSY = (429, 503)
FIRST_PAUSE_S, MAX_PAUSE_S = 0.25, 30.0
MOST_TRIES = 8  # a minute or so; then the client hears what the engine says
RETRY_AFTER_S = 5  # what clients are told that find no room


class Hold:
    """
    Args:
        app: Behind which the engine is.
        is_on: Whether requests are held at this moment.
    """

    def __init__(
        self,
        app: ASGIApp,
        queue: HeldQueue,
        is_on: Callable[[], bool],
        registry: CollectorRegistry,
    ) -> None:
        self._app = app
        self._queue = queue
        self._is_on = is_on
        self._refused = Counter(
            "pars_held_refused_total",
            "Requests that found the held queue full, or waited in it for too long.",
            ["reason"],
            registry=registry,
        )
        for reason in ("full", "too_long"):  # so that the first one is seen as a rise
            self._refused.labels(reason)
        self._sent_back = Counter(
            "pars_held_sent_back_total",
            "Times that the engine had no room for a request, which went back to its place.",
            registry=registry,
        )
        self._waiting = Gauge("pars_held_requests", "That wait here.", registry=registry)
        self._slots = Gauge(
            "pars_engine_slots",
            "Requests that the engine answers at once, as far as is known; nan: it is not.",
            registry=registry,
        )

    def look(self) -> None:
        """See whether the engine is full or has room again, and show it."""
        self._queue.look()
        self._waiting.set(self._queue.num_waiting)
        self._slots.set(self._queue.slots.num or math.nan)

    def as_json(self) -> dict[str, Any] | None:
        """What is held, for the page; None: nothing is."""
        if not self._is_on():
            return None
        slots = self._queue.slots
        held = {"num_waiting": self._queue.num_waiting, "num_at_engine": slots.num_sent}
        return held | {"slots": slots.num, "slots_by": slots.source}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        decision: Decision | None = scope.get(DECISION)
        if decision is None or not self._is_on():
            await self._app(scope, receive, send)
            return
        held = _Held(self._queue, decision, receive)
        try:
            await held.read()
            for number in count(1):
                if not await held.enter():
                    return
                answer = _Answer(send, held, may_go_back=number < MOST_TRIES)
                try:
                    await self._app(scope, held.receiver(), answer.send)
                    if not answer.is_busy:
                        return
                    pause_s = min(FIRST_PAUSE_S * 2**number, MAX_PAUSE_S)
                    self._sent_back.inc()
                    held.go_back(answer.retry_after_s or pause_s)
                finally:
                    held.leave(answer.num_bytes)
        except QueueIsFull:
            self._refused.labels("full").inc()
            why = f"{self._queue.num_waiting} requests wait already"
            await _refuse(send, 429, "queue_full", why)
        except WaitedTooLong:
            self._refused.labels("too_long").inc()
            await _refuse(send, 503, "waited_too_long", "the engine had no room for it in time")
        finally:
            held.end()


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    retry = [(b"retry-after", b"%d" % RETRY_AFTER_S)]
    await send_error(send, status, code, message, more=retry)


class _Held:
    """
    One request while it waits, and while it is at the engine.

    Attributes:
        is_whole: Its body is held, so that it can be sent again.
        wait_ms: How long it has waited here in all.
    """

    def __init__(self, queue: HeldQueue, decision: Decision, receive: Receive) -> None:
        self._queue = queue
        self._decision = decision
        self._receive = receive
        self._messages: list[Message] = []
        self._next: asyncio.Future[Message] | None = None  # of the client's, after its body
        self._sent: Sent | None = None
        self.is_whole = False
        self.wait_ms = 0.0

    async def read(self) -> None:
        """Take the body, if it is held as a whole already; a larger one streams through later."""
        if self._decision.outcome.decision in ("too_large", "buffers_full"):
            return
        while not self.is_whole:
            message = await self._receive()
            self._messages.append(message)
            self.is_whole = not message.get("more_body", False)
        self._next = asyncio.ensure_future(self._receive())

    async def enter(self) -> bool:
        """Wait for room; False: the client left meanwhile."""
        began_s = time.perf_counter()
        key = self._decision.outcome.key or 0
        tells_begin = self._decision.is_stream
        entering = asyncio.ensure_future(self._queue.enter(key, tells_begin=tells_begin))
        waits: list[asyncio.Future[Any]] = [entering]
        if self._next is not None:
            waits.append(self._next)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not entering.done():
                return False
            self._sent = entering.result()
        finally:
            if not entering.done():
                entering.cancel()
                await asyncio.wait((entering,))
            elif self._sent is None and not entering.cancelled() and not entering.exception():
                self._queue.leave(entering.result())  # cancelled just as there was room
            self.wait_ms += 1000 * (time.perf_counter() - began_s)
        return True

    def begin(self) -> None:
        """The engine begins to answer."""
        if self._sent is not None:
            self._queue.begin(self._sent)

    def leave(self, num_bytes: int) -> None:
        """It is at the engine no longer, which sent so many bytes."""
        if self._sent is not None:
            self._queue.leave(self._sent, num_bytes)

    def go_back(self, pause_s: float) -> None:
        """The engine had no room for it."""
        if self._sent is not None:
            self._queue.send_back(self._sent, pause_s)
            self._sent = None

    def end(self) -> None:
        """Nothing more is asked of the client."""
        if self._next is not None and not self._next.done():
            self._next.cancel()

    def receiver(self) -> Receive:
        """The request from its start, then what the client does."""
        held: Iterator[Message] = iter(self._messages)

        async def replayed() -> Message:
            message = next(held, None)
            if message is not None:
                return message
            if self._next is not None:
                return await asyncio.shield(self._next)
            return await self._receive()

        return replayed


class _Answer:
    """
    An answer on its way to the client; one that says "busy" is kept from it.

    Attributes:
        num_bytes: Of its body, so far.
        is_busy: It was such a one.
        retry_after_s: As it asked for; 0: it did not.
    """

    def __init__(self, send: Send, held: _Held, *, may_go_back: bool) -> None:
        self._send = send
        self._held = held
        self._may_go_back = may_go_back and held.is_whole
        self.num_bytes = 0
        self.is_busy = False
        self.retry_after_s = 0.0

    async def send(self, message: Message) -> None:
        """Pass the message on."""
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            self.is_busy = message["status"] in BUSY and self._may_go_back
            if self.is_busy:
                self.retry_after_s = _retry_after_s(headers)
                return
            told = (WAIT_HEADER, b"%d" % round(self._held.wait_ms))
            message = {**message, "headers": [*headers, told]}
        elif self.is_busy:
            return
        elif body := message.get("body"):
            self.num_bytes += len(body)
            self._held.begin()
        await self._send(message)


def _retry_after_s(headers: list[tuple[bytes, bytes]]) -> float:
    told = next((value for name, value in headers if name.lower() == b"retry-after"), b"")
    try:
        return min(max(float(told), 0.0), MAX_PAUSE_S)
    except ValueError:  # none, or a date
        return 0.0
