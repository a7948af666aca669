"""
Virtual time: how far an engine has come in serving tenants by weight, and who waits by it.

It is what start-time fair queueing calls v(t): the start of what is served now. Here an engine
serves several at once and tells late, or never, what it has begun; so it is the start of the first
who waits, since nobody has a smaller one. `fair_tenants` orders by it.
"""

import heapq
from dataclasses import dataclass
from itertools import count

from pars.scheduling.policies.policy import Place

FIRST_RATE = 1e4  # work a second, until it is seen: less than that of an 8B model on an H100
RATE_OVER_S = 10.0
CREDIT_S = 15.0  # of its share that a tenant may have at once when it comes late


@dataclass(slots=True, eq=False)
class FairPlace(Place):
    """
    Attributes:
        inside: As the tenant's own policy has it.
        start_s: Of virtual time.
        charge: Of work, for itself and what it stands for; 0: its tenant's others pay for it.
        period: Of the virtual clock.
        is_moved: It stands elsewhere than its start, by somebody's wish.
        is_behind: Its tenant had more than its share in the queue when it came.
    """

    inside: Place | None = None
    start_s: float = 0.0
    charge: float = 0.0
    period: int = 0
    is_moved: bool = False
    is_behind: bool = False


class Waiting:
    """
    Places that wait, by their starts.

    Attributes:
        num: How many do.
    """

    def __init__(self) -> None:
        self.num = 0
        self._heap: list[tuple[float, int, FairPlace]] = []  # some have begun
        self._numbers = count()

    def __len__(self) -> int:
        """Places that are kept, those that have begun among them."""
        return len(self._heap)

    def add(self, place: FairPlace) -> None:
        """It waits from here on."""
        self.num += 1
        heapq.heappush(self._heap, (place.start_s, next(self._numbers), place))

    def leave(self) -> None:
        """One of them has begun, or is gone: `has_begun` of its place is set."""
        self.num -= 1
        if len(self._heap) > 2 * self.num + 64:  # most of them
            self._heap = [it for it in self._heap if not it[2].has_begun]
            heapq.heapify(self._heap)

    @property
    def first_s(self) -> float | None:
        """The smallest start; None: nobody waits."""
        while self._heap and self._heap[0][2].has_begun:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


class VirtualTime:
    """
    The clock of one queue.

    Attributes:
        now_s: Seconds since the epoch of keys; real time whenever nobody waits.
        work_in_s: Of the whole engine, in one of these seconds: what it was seen to do, so that
            the clocks of several gateways stay near each other while somebody waits.
        period: How many times nobody waited.
        last_begun_s: The largest start of those that the engine has begun, ever.
        waiting: Everybody who waits.
    """

    def __init__(self) -> None:
        self.now_s = self._period_s = 0.0
        self.work_in_s = FIRST_RATE
        self.period = 0
        self.last_begun_s = 0.0
        self.waiting = Waiting()
        self._highest_rate = self._work = 0.0
        self._since_s: float | None = None

    @property
    def late_s(self) -> float:
        """The time from which on somebody who had nothing waiting has a claim."""
        credit_s = CREDIT_S * (self._highest_rate or FIRST_RATE) / self.work_in_s
        return max(self._period_s, self.now_s - credit_s)

    def arrives(self, since_epoch_s: float) -> None:
        """Somebody comes: if nobody waits, virtual time is the time, and nobody owes anything."""
        if self.waiting.num == 0:
            self.now_s = self._period_s = since_epoch_s
            self.work_in_s = self._highest_rate or FIRST_RATE
            self.period += 1

    def leaves(self, place: FairPlace, most_s: float | None) -> None:
        """
        One waits no longer; `has_begun` of its place is set.

        The first who waits moves the time on. Where it is not heard who has begun, as with answers
        that come whole, those that end do so too, each by a little: one that begins out of turn, or
        that the engine refuses, must not move it past those that wait.

        Args:
            most_s: By how much this one moves it at most; None: it was never served.
        """
        self.waiting.leave()
        if (first_s := self.waiting.first_s) is not None:
            self.now_s = max(self.now_s, first_s)
        if most_s is not None:
            self.last_begun_s = max(self.last_begun_s, place.start_s)
        if most_s is not None and place.period == self.period and not place.is_moved:
            self.now_s = max(self.now_s, min(place.start_s, self.now_s + most_s))

    def saw(self, work: float, now_s: float) -> None:
        """So much was done, by now (Unix time)."""
        self._work += work
        if self._since_s is None or now_s < self._since_s:
            self._since_s, self._work = now_s, 0.0
        elif (seconds := now_s - self._since_s) >= RATE_OVER_S:
            self._highest_rate = max(self._highest_rate, self._work / seconds)
            self._since_s, self._work = now_s, 0.0

    def saw_more(self, work: float) -> None:
        """So much more was done in what was seen already."""
        self._work += work
