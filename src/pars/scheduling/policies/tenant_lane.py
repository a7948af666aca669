"""
One tenant's requests in a queue shared by weight: where each starts, and who is express.

`fair_tenants` says how the queue is shared, `virtual_time` what the time is in it.
"""

from pars.scheduling.demand import Demand
from pars.scheduling.keys import EPOCH_S, Keys, bounded_offset_s
from pars.scheduling.policies.max_slowdown import MaxSlowdown
from pars.scheduling.policies.policy import LONG_TOKENS, Place, Policy
from pars.scheduling.policies.virtual_time import FairPlace, VirtualTime, Waiting

AHEAD_BUCKETS = 1.0  # that a tenant may be given more than others, and still have express
BEHIND_S = 2.0  # of virtual time, that a tenant's queue is longer than its share of it
LEAD_S = 0.3  # of virtual time, from the shortest express request to the longest
LONG_COST = 1e4  # from here on they are alike
FIRST_WORK = 2e4  # answer tokens for which the first guess of `stands_for` counts
MEMORY = 1 / 200  # of what was served: a request's weight in `stands_for`
MOST_STANDS_FOR = 8.0
MOST_STEP = 2.0  # of its own charges, by which a request that begins moves virtual time on


class SharedQueue:
    """
    What the lanes of one queue have in common.

    Attributes:
        behind: Lanes that have more than their shares in it; some have caught up by now.
    """

    def __init__(self, time: VirtualTime, keys: Keys) -> None:
        self.time = time
        self.keys = keys
        self.behind: set[TenantLane] = set()

    @property
    def least_received_s(self) -> float | None:
        """Of the lanes that are behind, what the one was given that was given least."""
        self.behind = {lane for lane in self.behind if lane.is_behind}
        return min((lane.received_s for lane in self.behind), default=None)


class TenantLane(Policy):
    """
    One tenant's own policy.

    Attributes:
        share: Of the engine, where everybody has requests waiting.
        num_waiting: Its requests that the engine has not begun to answer.
        is_preempting: The engine stops a running request for one of a better key: then nobody
            starts before one that runs, so that there is neither credit nor express.
    """

    hears_engine = True
    is_preempting = False

    def __init__(self, queue: SharedQueue, name: str, share: float, inside: MaxSlowdown) -> None:
        self.name = name
        self.share = share
        self.num_waiting = 0
        self._queue = queue
        self._time = queue.time
        self._inside = inside
        self._finish_s = 0.0  # of virtual time
        self._received_s = 0.0  # virtual time, by the work that it was given
        self._period = 0
        self._ordinary = Waiting()
        # Work that was given, and that of the requests that were charged for it.
        self._served, self._charged = FIRST_WORK / (1 - inside.share / 2), FIRST_WORK

    def __repr__(self) -> str:
        return f"TenantLane({self.name!r})"

    @property
    def in_words(self) -> str:
        return f"{self.share:.0%} of the engine; {self._inside.in_words}"

    @property
    def bucket_ratio(self) -> float:
        return self._inside.bucket_ratio

    @property
    def stands_for(self) -> float:
        """Work that the tenant is given for each token of work that an ordinary one expects."""
        return min(max(self._served / self._charged, 1 / MOST_STANDS_FOR), MOST_STANDS_FOR)

    def place(
        self,
        demand: Demand,
        arrival_s: float,
        *,
        long_tokens: float = LONG_TOKENS,
        offset_s: float = 0.0,
        is_ordered: bool = True,
    ) -> Place:
        """
        Give an arriving request its class and its key.

        Args:
            arrival_s: Unix time, later than March 2026.
        """
        self._time.arrives(arrival_s - EPOCH_S)
        self._catch_up()
        inside = self._inside.place(
            demand, arrival_s, is_ordered=is_ordered and self._may_pass(), long_tokens=long_tokens
        )
        is_behind = self.is_behind
        if inside.is_express and not inside.charged:  # its tenant has nobody there to be passed
            inside.is_express = False
            self._inside.num_waiting += 1
        place = FairPlace(
            is_express=inside.is_express,
            work=inside.work,
            charged=inside.charged,
            inside=inside,
            period=self._time.period,
            is_moved=offset_s != 0,
            is_behind=is_behind,
        )
        if inside.is_express:
            first_s = self._ordinary.first_s
            place.start_s = self._time.now_s if first_s is None else first_s
            place.start_s -= LEAD_S * (1 - min(demand.cost / LONG_COST, 1.0))
        else:
            place.start_s = max(self._first_start_s, self._finish_s)
            place.charge = max(inside.work, 1.0) * (self.stands_for if is_behind else 1.0)
            self._finish_s = place.start_s + self._seconds(place.charge)
            self._ordinary.add(place)
        place.key = self._queue.keys.at(place.start_s + bounded_offset_s(offset_s))
        self.num_waiting += 1
        self._time.waiting.add(place)
        return place

    @property
    def _first_start_s(self) -> float:
        """Before which it cannot start."""
        return self._time.last_begun_s if self.is_preempting else self._time.late_s

    def began(self, place: Place) -> None:
        """The engine answers it; it waits no longer."""
        if isinstance(place, FairPlace) and not place.has_begun:
            place.has_begun = True
            if place.inside is not None:
                self._inside.began(place.inside)
            self._leave(place, self._seconds(MOST_STEP * max(place.charge, place.work)))
            self._give(place, place.work)

    def ended(self, place: Place, now_s: float) -> None:
        """It is done, or gone: one that never began owes nothing."""
        if not isinstance(place, FairPlace) or place.inside is None:
            return
        if not place.has_begun:
            place.has_begun = True
            self._leave(place, None)
            self._owe(place, -place.charge)
        else:
            self._time.saw(place.work, now_s)
        self._inside.ended(place.inside, now_s)

    def correct(self, place: Place, true_work: float, answers: float | None = None) -> None:
        """What it truly took became known, after its end; of that, its answers, if it is known."""
        if not isinstance(place, FairPlace) or place.inside is None:
            return
        self._inside.correct(place.inside, true_work, answers)
        self._time.saw_more(true_work - place.work)
        self._give(place, true_work - place.work)
        self._owe(place, true_work - place.charge)
        if place.is_behind:
            self._served += true_work - MEMORY * self._served
            self._charged += (place.work if place.charge else 0.0) - MEMORY * self._charged
        place.work = true_work

    def _leave(self, place: FairPlace, most_s: float | None) -> None:
        self.num_waiting -= 1
        if place.charge:
            self._ordinary.leave()
        self._time.leaves(place, most_s)

    def _seconds(self, work: float) -> float:
        """Of virtual time, for so much work of this tenant."""
        return work / (self.share * self._time.work_in_s)

    def _catch_up(self) -> None:
        """Who had nothing waiting has no claim on what the others were given meanwhile."""
        if self._period != self._time.period:
            self._period = self._time.period
            self._finish_s = self._received_s = self._time.late_s
        if self.is_behind and self not in self._queue.behind:
            least_s = self._queue.least_received_s
            self._received_s = self._time.now_s if least_s is None else least_s
            self._queue.behind.add(self)

    @property
    def is_behind(self) -> bool:
        """Whether it has more than its share in the queue."""
        far_s = self._time.now_s + BEHIND_S
        return self._period == self._time.period and self._finish_s > far_s

    @property
    def received_s(self) -> float:
        """Virtual time by the work that it was given, since it is behind."""
        return self._received_s

    def _may_pass(self) -> bool:
        """Whether it was given no more than others that are behind, and part of a bucket."""
        if self.is_preempting:
            return False
        least_s = self._queue.least_received_s
        if self not in self._queue.behind or least_s is None:
            return True
        most_s = self._seconds(AHEAD_BUCKETS * self._inside.capacity)
        return self._received_s - least_s <= most_s

    def _give(self, place: FairPlace, work: float) -> None:
        if place.period == self._period:
            self._received_s += self._seconds(work)

    def _owe(self, place: FairPlace, work: float) -> None:
        if place.period == self._period:
            self._finish_s += self._seconds(work)
