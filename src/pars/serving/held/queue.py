"""
Requests that wait here until a server has room, by their keys.

Where a request goes is decided when it goes, not when it comes: to the well server with the least
of its slots taken; or, where that is hardly fuller, to the one that had its beginning before.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

from pars.serving.held.prefixes import Marks, Prefixes
from pars.serving.held.replica import Replica, Turn, well
from pars.serving.held.slots import Caller

LOOK_EVERY_S = 0.25
AFFINITY_LOAD = 0.25  # of its slots, by which the server that had the beginning may be fuller


class QueueIsFull(Exception):
    """As many wait as may."""


class WaitedTooLong(Exception):
    """There was no room within the time that a request may wait."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """
    What counts of a request while it waits.

    Attributes:
        key: Smaller goes first; equal ones as they came.
        tells_begin: The answer's first byte will tell when the engine began.
        caller: Whose it is, as the engine tells callers apart.
        marks: Of its beginnings.
        avoided: Servers that failed it: it goes to them where no other has room.
    """

    key: int
    tells_begin: bool
    caller: Caller = frozenset()
    marks: Marks = ()
    avoided: frozenset[Replica] = field(default_factory=frozenset)


class HeldQueue:
    """
    The queue of one engine, or of several that do the same. On one event loop.

    Args:
        max_held: Requests that may wait.
        max_held_s: How long one may, in all.

    Attributes:
        num_waiting: Requests in it.
        prefixes: Who had which beginning; None: there is only one server.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        max_held: int,
        max_held_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.replicas = list(replicas)
        self.num_waiting = 0
        self.prefixes = Prefixes() if len(self.replicas) > 1 else None
        self._max_held = max_held
        self._max_held_s = max_held_s
        self._clock = clock
        self._heap: list[tuple[int, int, Waiting, asyncio.Future[Turn]]] = []
        self._numbers = count()

    @property
    def num_sent(self) -> int:
        """Requests at the engines."""
        return sum(it.slots.num_sent for it in self.replicas)

    def left_s(self, waited_s: float) -> float:
        """How long a request may still wait that has waited so long, all its turns together."""
        return max(0.0, self._max_held_s - waited_s)

    async def enter(self, waiting: Waiting, waited_s: float = 0.0) -> Turn:
        """
        Wait for room at an engine; `leave` afterwards, whatever happens.

        Args:
            waited_s: How long it has waited for turns before this one.

        Raises:
            QueueIsFull, WaitedTooLong: There is no place for it, and why.
        """
        if not self._heap and (replica := self._replica_for(waiting)) is not None:
            return self._send(replica, waiting)
        if self.num_waiting >= self._max_held:
            raise QueueIsFull(f"{self.num_waiting} requests wait already, as many as may")
        place: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        heappush(self._heap, (waiting.key, next(self._numbers), waiting, place))
        self.num_waiting += 1
        try:
            async with asyncio.timeout(self.left_s(waited_s)):
                return await asyncio.shield(place)
        except BaseException as error:
            if place.done() and not place.cancelled():
                self.leave(place.result())  # it came just as nobody waited for it any more
            else:
                place.cancel()
            if isinstance(error, TimeoutError):
                raise WaitedTooLong from None
            raise
        finally:
            self.num_waiting -= 1
            self._tidy()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """One more waits, though not for room: its caller was sent back."""
        self.num_waiting += 1
        try:
            yield
        finally:
            self.num_waiting -= 1

    def begin(self, turn: Turn) -> None:
        """The engine begins to answer."""
        turn.replica.slots.begin(turn.sent)
        self._fill()

    def leave(self, turn: Turn, num_bytes: int = 0) -> None:
        """The request is at the engine no longer, which sent so many bytes."""
        turn.replica.slots.end(turn.sent, num_bytes)
        self._fill()

    def send_back(self, turn: Turn, pause_s: float) -> None:
        """The engine has no room for it now; nothing is sent there for so long."""
        replica = turn.replica
        replica.slots.busy(turn.sent)
        replica.paused_until_s = max(replica.paused_until_s, self._clock() + pause_s)

    def look(self) -> None:
        """See whether the engines are full, or have room again."""
        for replica in self.replicas:
            replica.slots.look()
        self._fill()

    def for_unheld(self) -> Replica:
        """Where a request goes that is not held."""
        return min(well(self.replicas), key=lambda it: it.load)

    def _fill(self) -> None:
        """Send the first of those that wait, as long as there is room."""
        while self._heap:
            _, _, waiting, place = self._heap[0]
            replica = None if place.done() else self._replica_for(waiting)
            if replica is None and not place.done():
                return
            heappop(self._heap)
            if replica is not None:
                place.set_result(self._send(replica, waiting))

    def _send(self, replica: Replica, waiting: Waiting) -> Turn:
        if self.prefixes is not None:
            self.prefixes.note(waiting.marks, replica)
        sent = replica.slots.send(tells_begin=waiting.tells_begin, caller=waiting.caller)
        return Turn(replica, sent)

    def _replica_for(self, waiting: Waiting) -> Replica | None:
        """Where it can go now; None: nowhere."""
        now_s = self._clock()
        free = [it for it in well(self.replicas) if it.has_room(now_s)]
        free = [it for it in free if it not in waiting.avoided] or free
        if not free:
            return None
        freest = min(free, key=lambda it: it.load)
        known = self.prefixes.find(waiting.marks) if self.prefixes is not None else None
        is_near = known in free and known.load <= freest.load + AFFINITY_LOAD
        return known if is_near else freest

    def _tidy(self) -> None:
        """Drop from the heap's top those that left."""
        while self._heap and self._heap[0][3].done():
            heappop(self._heap)
        if len(self._heap) > 2 * self.num_waiting + 64:  # most of it left
            self._heap = [it for it in self._heap if not it[3].done()]
            heapify(self._heap)
