"""
How many requests an engine answers at once, as far as it is told or seen.

An engine without priorities answers so many and keeps the others first come, first served, out of
our reach. So no more are sent than it has slots, and a few that keep it busy. The slots are what
the operator says, what the engine's pages tell, or what is seen:

* A stream that has begun has a slot. Where several that were sent have not begun for long, while
  others go on, the engine is full: it has as many slots as answers are under way.
* It has more than was thought where more are under way at once.
* An engine that answers "busy" has no more than it answers now.
* vLLM and SGLang tell at most how many they answer; their memory may be full before, which is seen.
* Of answers that come whole, the throughput tells (`knee`).

Nothing is held before any of these: an engine that was never seen full is sent everything. Where no
streams show it, what was seen is doubted now and then: one more is sent, and the throughput shows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from pars.serving.held.knee import Knee

SPARE = 2  # sent beyond the slots, so that one is there when another ends
LATE_S = 1.0  # a stream that has not begun for so long, or for
LATE_BEGINS = 4.0  # so many times what streams took that were sent when there was room
DOUBTED_AFTER_S, BUSY_DOUBTED_AFTER_S = 60.0, 10.0
TRIED_BEYOND = 1.5  # times the knee, before it is back there
Caller = frozenset[bytes]
BEGIN_MEMORY = 0.1  # of the running time that a stream takes to begin


@dataclass(slots=True, eq=False)
class Sent:
    """
    A request at the engine.

    Attributes:
        tells_begin: It is a stream, so its first byte tells when it began.
        met_room: All that were sent before had begun, so it waited for nobody.
        caller: Whose it is: all keys that it shows.
    """

    at_s: float
    tells_begin: bool
    met_room: bool
    caller: Caller = frozenset()
    knee_at: float = 0.0  # what `Knee.answer` is to know
    has_begun: bool = False


class Slots:
    """
    One engine's. On one event loop.

    Args:
        given: By the operator; 0: not.
        clock: Seconds, never set.
        told, told_most: By the engine's pages at this moment, or no more than; None: not.

    Attributes:
        seen: None: it was never seen full.
    """

    def __init__(
        self,
        given: int,
        clock: Callable[[], float],
        told: Callable[[], int | None] = lambda: None,
        told_most: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.given = given
        self.told = told
        self.told_most = told_most
        self.seen: int | None = None
        self._clock = clock
        self._sent: dict[Sent, None] = {}  # in the order in which they were sent
        self._begin_s = math.nan
        self._knee = Knee()
        self._doubted_at_s = math.inf

    @property
    def num_sent(self) -> int:
        """Requests at the engine."""
        return len(self._sent)

    @property
    def num(self) -> int | None:
        """The slots; None: not known."""
        bounds = [it for it in (self.seen, self.told_most()) if it is not None]
        return self.given or self.told() or min(bounds, default=None)

    @property
    def source(self) -> str:
        """By whom the slots are known, for people."""
        if self.given:
            return "the operator"
        num = self.num
        if num is None:
            return "nobody yet"
        return "the engine" if num in (self.told(), self.told_most()) else "what was seen"

    @property
    def has_room(self) -> bool:
        """Whether another request may be sent."""
        num = self.num
        return num is None or len(self._sent) < num + min(SPARE, num)

    def has_only(self, caller: Caller) -> bool:
        """Whether all requests at the engine are this caller's."""
        return all(it.caller == caller for it in self._sent)

    def send(self, *, tells_begin: bool, caller: Caller = frozenset()) -> Sent:
        """A request is sent."""
        met_room = all(it.has_begun for it in self._sent)
        sent = Sent(self._clock(), tells_begin, met_room, caller)
        self._sent[sent] = None
        sent.knee_at = self._knee.change(len(self._sent), self._clock())
        return sent

    def begin(self, sent: Sent) -> None:
        """The engine begins to answer it."""
        if sent.has_begun or not sent.tells_begin or sent not in self._sent:
            return
        sent.has_begun = True
        if sent.met_room:
            took_s = self._clock() - sent.at_s
            known = took_s if math.isnan(self._begin_s) else self._begin_s
            self._begin_s = known + BEGIN_MEMORY * (took_s - known)
        if self.seen is not None:
            self.seen = max(self.seen, self._num_busy())

    def end(self, sent: Sent, num_bytes: int = 0) -> None:
        """It is at the engine no longer; its answer had so many bytes."""
        if sent not in self._sent:
            return
        was_full = not self.has_room
        if num_bytes:
            self._knee.answer(num_bytes, sent.at_s, sent.knee_at, self._clock())
        del self._sent[sent]
        self._knee.change(len(self._sent), self._clock())
        is_doubted = not sent.tells_begin and self._clock() >= self._doubted_at_s
        if was_full and is_doubted and self.seen is not None:
            self._see(self.seen + 1, DOUBTED_AFTER_S)

    def busy(self, sent: Sent) -> None:
        """The engine sent it back: it has no slot for it."""
        self.end(sent)
        self._see(max(1, len(self._sent)), BUSY_DOUBTED_AFTER_S)

    def look(self) -> None:
        """See whether the engine is full."""
        if self.given or self.told():
            return
        usual_s = self._begin_s if math.isfinite(self._begin_s) else 0.0
        late_s = self._clock() - max(LATE_S, LATE_BEGINS * usual_s)
        num_busy = self._num_busy()
        num_late = sum(
            it.tells_begin and not it.has_begun and it.at_s < late_s for it in self._sent
        )
        if num_busy and num_late > SPARE:
            self._see(num_busy, DOUBTED_AFTER_S)
        elif not num_busy and (knee := self._knee.num) is not None:
            is_beyond = self.seen is None or self.seen > TRIED_BEYOND * knee
            if is_beyond:
                self._see(knee, DOUBTED_AFTER_S)

    def _see(self, num: int, doubted_after_s: float) -> None:
        self.seen, self._doubted_at_s = num, self._clock() + doubted_after_s

    def _num_busy(self) -> int:
        """Answers under way: streams that have begun, and what was sent before the last of them."""
        sent = list(self._sent)
        begun = [at for at, it in enumerate(sent) if it.has_begun]
        if not begun:
            return 0
        return sum(it.has_begun or not it.tells_begin for it in sent[: begun[-1] + 1])
