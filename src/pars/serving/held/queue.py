"""Requests that wait here until the engine has room, by their keys."""

import asyncio
import math
import time
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from pars.serving.held.slots import Sent, Slots

LOOK_EVERY_S = 0.25


class QueueIsFull(Exception):
    """As many wait as may."""


class WaitedTooLong(Exception):
    """There was no room within the time that a request may wait."""


class HeldQueue:
    """
    One engine's queue. On one event loop.

    Args:
        max_held: Requests that may wait.
        max_held_s: How long one may.

    Attributes:
        num_waiting: Requests in it.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        max_held: int,
        max_held_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = slots
        self.num_waiting = 0
        self._max_held = max_held
        self._max_held_s = max_held_s
        self._clock = clock
        self._heap: list[tuple[int, int, bool, asyncio.Future[Sent]]] = []
        self._numbers = count()
        self._paused_until_s = -math.inf

    async def enter(self, key: int, *, tells_begin: bool) -> Sent:
        """
        Wait for room at the engine; `leave` afterwards, whatever happens.

        Args:
            key: Smaller goes first; equal ones as they came.
            tells_begin: The answer's first byte will tell when the engine began.

        Raises:
            QueueIsFull, WaitedTooLong: There is no place for it, and why.
        """
        if not self._heap and self._has_room:
            return self.slots.send(tells_begin=tells_begin)
        if self.num_waiting >= self._max_held:
            raise QueueIsFull
        place: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        heappush(self._heap, (key, next(self._numbers), tells_begin, place))
        self.num_waiting += 1
        try:
            async with asyncio.timeout(self._max_held_s):
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

    def begin(self, sent: Sent) -> None:
        """The engine begins to answer."""
        self.slots.begin(sent)
        self._fill()

    def leave(self, sent: Sent, num_bytes: int = 0) -> None:
        """The request is at the engine no longer, which sent so many bytes."""
        self.slots.end(sent, num_bytes)
        self._fill()

    def send_back(self, sent: Sent, pause_s: float) -> None:
        """The engine has no room for it now; nothing is sent for so long."""
        self.slots.busy(sent)
        self._paused_until_s = max(self._paused_until_s, self._clock() + pause_s)

    def look(self) -> None:
        """See whether the engine is full, or has room again."""
        self.slots.look()
        self._fill()

    @property
    def _has_room(self) -> bool:
        return self.slots.has_room and self._clock() >= self._paused_until_s

    def _fill(self) -> None:
        """Send the first of those that wait, as long as there is room."""
        while self._heap and self._has_room:
            _, _, tells_begin, place = heappop(self._heap)
            if not place.done():
                place.set_result(self.slots.send(tells_begin=tells_begin))

    def _tidy(self) -> None:
        """Drop from the heap's top those that left."""
        while self._heap and self._heap[0][3].done():
            heappop(self._heap)
        if len(self._heap) > 2 * self.num_waiting + 64:  # most of it left
            self._heap = [it for it in self._heap if not it[3].done()]
            self._heap.sort(key=lambda it: it[:2])
