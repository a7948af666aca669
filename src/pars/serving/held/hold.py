"""
Holds requests until an engine has room: an ASGI layer between the middleware and the relays.

Only what has a place in the queue is held, which are generation requests. Health checks, lists of
models and the like pass. A request that an engine sends back as "busy" (429, 503) before a byte of
an answer goes back to its place here; its client hears nothing of it. So does one whose engine
failed before it answered, where there is another.
"""

import math
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from prometheus_client import CollectorRegistry

from pars.outcomes.decision import DECISION, Decision
from pars.request.body import ByteBudget, Message, Receive, Scope, Send
from pars.scheduling.trust import keys_in
from pars.serving.answer import UpstreamError
from pars.serving.held.client import Client, HeldRequest, is_large
from pars.serving.held.metrics import HoldMetrics
from pars.serving.held.queue import HeldQueue, QueueIsFull, WaitedTooLong
from pars.serving.held.replica import Replica, Turn
from pars.serving.held.slots import Caller
from pars.serving.relay import Relay
from pars.serving.replies import send_error

WAIT_HEADER = b"x-pars-wait-ms"
BUSY = (429, 503)
FIRST_PAUSE_S, MAX_PAUSE_S = 0.25, 30.0
MOST_TRIES = 8  # a minute or so; then the client hears what the engine says
RETRY_AFTER_S = 5  # what clients are told that find no room
NO_CONNECTION = ("upstream_unreachable", "upstream_connect_timeout")
NO_ANSWER = "upstream_closed"  # it had the request, and died: twice made an answer costs tokens


class Hold:
    """
    Args:
        relays: To each server of the queue.
        is_on: Whether requests are held at this moment.
        max_held_bytes: Of the bodies of all that are held; one beyond is refused. Bodies too large
            to be read, which come slowly, may have half of it.
    """

    def __init__(
        self,
        relays: Mapping[Replica, Relay],
        queue: HeldQueue,
        is_on: Callable[[], bool],
        registry: CollectorRegistry,
        *,
        max_held_bytes: int,
    ) -> None:
        self._relays = relays
        self._queue = queue
        self._is_on = is_on
        self._metrics = HoldMetrics(registry)
        self._budget = ByteBudget(max_held_bytes)
        self._large_budget = ByteBudget(max_held_bytes // 2)

    def look(self) -> None:
        """See whether the engines are full or have room again, and show it."""
        self._queue.look()
        self._metrics.show(self._queue)

    def as_json(self) -> dict[str, Any] | None:
        """What is held, for the page; None: nothing is."""
        if not self._is_on():
            return None
        replicas = [
            {
                "url": it.name,
                "num_at_engine": it.slots.num_sent,
                "slots": it.slots.num,
                "slots_by": it.slots.source,
                "problem": it.problem or None,
            }
            for it in self._queue.replicas
        ]
        num_slots = [it.slots.num for it in self._queue.replicas]
        return {
            "num_waiting": self._queue.num_waiting,
            "num_at_engine": self._queue.num_sent,
            "slots": None if None in num_slots else sum(it or 0 for it in num_slots),
            "slots_by": self._queue.replicas[0].slots.source,
            "replicas": replicas,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        decision: Decision | None = scope.get(DECISION)
        if scope["type"] == "http" and decision is not None and self._is_on():
            await self._hold(decision, scope, receive, send)
        elif scope["type"] == "http" and len(self._relays) > 1:
            await self._pass(scope, receive, send)
        else:
            await self._relays[self._queue.replicas[0]](scope, receive, send)

    async def _hold(self, decision: Decision, scope: Scope, receive: Receive, send: Send) -> None:
        budgets = (self._budget, self._large_budget) if is_large(decision) else (self._budget,)
        held = HeldRequest(self._queue, decision, Client(receive), self._caller(scope), budgets)
        try:
            await held.read()
            for number in count(1):
                turn = await held.enter()
                if turn is None or await self._try(held, turn, number, scope, send):
                    return
        except QueueIsFull as error:
            self._metrics.refused.labels("full").inc()
            await _refuse(send, 429, "queue_full", str(error))
        except WaitedTooLong:
            self._metrics.refused.labels("too_long").inc()
            await _refuse(send, 503, "waited_too_long", "the engine had no room for it in time")
        finally:
            held.end()

    async def _try(
        self, held: HeldRequest, turn: Turn, number: int, scope: Scope, send: Send
    ) -> bool:
        """Send the request where its turn is; False: it is to wait once more."""
        may_repeat = held.client.is_whole and number < MOST_TRIES
        answer = _Answer(send, held, turn, may_go_back=may_repeat)
        self._metrics.waits.observe(held.wait_s)
        try:
            relay = self._relays[turn.replica]
            await relay.carry(scope, held.client.receiver(), answer.send)
            if answer.has_begun:  # else it is the client that left
                turn.replica.problem = ""
            if answer.is_busy:
                self._go_back(held, turn, answer, number)
            return not answer.is_busy
        except UpstreamError as error:
            if error.status in BUSY and may_repeat:  # our own bound on connections
                self._queue.send_back(turn, FIRST_PAUSE_S)
                return False
            if not (may_repeat and self._can_go_elsewhere(turn.replica, error, number)):
                await send_error(answer.send_on, error.status, error.code, str(error))
                return True
            self._metrics.moved.inc()
            held.avoided.add(turn.replica)
            return False
        finally:
            self._queue.leave(turn, answer.num_bytes)

    def _go_back(self, held: HeldRequest, turn: Turn, answer: "_Answer", number: int) -> None:
        """The request, and if need be its engine, gets a pause."""
        pause_s = answer.retry_after_s or min(FIRST_PAUSE_S * 2**number, MAX_PAUSE_S)
        replica = turn.replica
        if replica.refuses_all(turn.sent, held):
            self._queue.send_back(turn, pause_s)
        else:
            held.rest_s = pause_s
            if replica.slots.has_only(held.caller):  # it has no slot more, for this caller at least
                replica.slots.busy(turn.sent)
        self._metrics.sent_back.inc()

    def _caller(self, scope: Scope) -> Caller:
        """Whose request it is to the engines: all keys that it shows, as any may count there."""
        if next(iter(self._relays.values())).upstream.has_own_key:
            return frozenset()
        return frozenset(keys_in(scope["headers"]))

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on a request that is not held, to another server if one cannot be reached."""
        client = Client(receive)
        await client.read_next()
        for number in count(1):
            replica = self._queue.for_unheld()

            async def heard(message: Message, replica: Replica = replica) -> None:
                replica.num_heard += 1
                await send(message)

            try:
                await self._relays[replica].carry(scope, client.receiver(), heard)
                return
            except UpstreamError as error:
                is_lost = error.code not in NO_CONNECTION or not client.is_whole
                if not self._can_go_elsewhere(replica, error, number) or is_lost:
                    await send_error(send, error.status, error.code, str(error))
                    return

    def _can_go_elsewhere(self, replica: Replica, error: UpstreamError, number: int) -> bool:
        """
        Whether there is another for a request; a server that cannot be reached is out of use.

        A request at which a server died gets no more tries than there are servers: it may be the
        reason.
        """
        if error.code in NO_CONNECTION:
            replica.problem = str(error)
        elif error.code != NO_ANSWER or number >= len(self._queue.replicas):
            return False
        others = [it for it in self._queue.replicas if it is not replica and not it.problem]
        return bool(others) and number < MOST_TRIES


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    retry = [(b"retry-after", b"%d" % RETRY_AFTER_S)]
    await send_error(send, status, code, message, more=retry)


class _Answer:
    """
    An answer on its way to the client; one that says "busy" is kept from it.

    Attributes:
        num_bytes: Of its body, so far.
        has_begun: Its head came.
        is_busy: It was such a one.
        retry_after_s: As it asked for; 0: it did not.
    """

    def __init__(self, send: Send, held: HeldRequest, turn: Turn, *, may_go_back: bool) -> None:
        self._send = send
        self._held = held
        self._turn = turn
        self._may_go_back = may_go_back
        self.num_bytes = 0
        self.has_begun = self.is_busy = False
        self.retry_after_s = 0.0

    async def send(self, message: Message) -> None:
        """Pass the engine's message on."""
        self._turn.replica.num_heard += 1
        self.has_begun = True
        if message["type"] == "http.response.start":
            self.is_busy = message["status"] in BUSY and self._may_go_back
            self.retry_after_s = _retry_after_s(message.get("headers", ()))
        elif (body := message.get("body")) and not self.is_busy:
            self.num_bytes += len(body)
            self._held.begin(self._turn)
        if not self.is_busy:
            await self.send_on(message)

    async def send_on(self, message: Message) -> None:
        """Send a message to the client, which is told how long its request waited."""
        if message["type"] == "http.response.start":
            told = (WAIT_HEADER, b"%d" % round(1000 * self._held.wait_s))
            message = {**message, "headers": [*message.get("headers", ()), told]}
        await self._send(message)


def _retry_after_s(headers: Any) -> float:
    told = next((value for name, value in headers if name.lower() == b"retry-after"), b"")
    try:
        seconds = float(told)
    except ValueError:  # none, or a date
        return 0.0
    return min(max(seconds, 0.0), MAX_PAUSE_S) if math.isfinite(seconds) else 0.0
