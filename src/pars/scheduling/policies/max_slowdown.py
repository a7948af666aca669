"""
No request waits more than R times what first come, first served would have made it wait.

A share x = 1 - 1/R of the engine's work goes to an express class, shortest first; everybody else is
first come, first served. Which requests are short enough is told by the running distribution of
costs: the cheapest, that together make up the share x of the work. The share is enforced and not
assumed: a bucket is charged for each express request that passes somebody, and a request that finds
it empty is ordinary, which is no worse than first come, first served. So floods of short requests,
wrong predictions and gaming cost express its place, and never the bound.

    key = arrival                         ordinary
    key = 28 February 2026 + cost         express

Both are static, so that an engine's stock heap is enough. docs/bound.md has the statement and its
proof (two-class head-of-line priority, Cobham 1954, doi:10.1287/opre.2.1.70, with a token bucket).
"""

import math
from itertools import accumulate
from typing import Self

from pars.errors import ParsError
from pars.scheduling.demand import Demand
from pars.scheduling.keys import EPOCH_S, Keys, bounded_offset_s
from pars.scheduling.policies.policy import LONG_TOKENS, Place, Policy

DEFAULT_MAX_SLOWDOWN = 1.5  # benchmarks/frontier.py
EXPRESS_S = 5e6  # since the epoch: before all that arrives today, and no negative number
COST_A_SECOND, MOST_COST = 1e3, 1e9  # of an express key: 12 days at most
LAST_EXPRESS_S = EXPRESS_S + MOST_COST / COST_A_SECOND
BUCKET_S = 3.0  # of the engine's whole work: how far express may run ahead of its share
FULL_SHARES = 0.75  # of a full bucket, in shares that last: the shortest use them best
BINS_AN_OCTAVE = 4
NUM_BINS = 30 * BINS_AN_OCTAVE
MEMORY = 4096.0  # requests after which the distribution of costs has forgotten half
LOOK_EVERY = 32  # requests between two looks at the threshold


class MaxSlowdown(Policy):
    """
    No request waits more than R times what first come, first served would have made it wait.

        key = arrival                                    ordinary: first come, first served
        key = before all arrivals, in order of cost      express: the share 1 - 1/R of the work

    It needs to be told when requests begin and end (`began`, `ended`, `correct`): the bucket fills
    by that, and without it everybody is ordinary. On one thread.

    Bound: an ordinary request waits at most R times what first come, first served would have made
    it wait, and a constant; docs/bound.md has both, and the proof. Source: two-class head-of-line
    priority (Cobham 1954, doi:10.1287/opre.2.1.70) with a token bucket.

    Several processes before one engine each keep their own: each gives to express the share x of
    the work that it sees, and the shares of the parts make up the share of the whole.

    Args:
        max_slowdown: R, 1 or more. 1 is first come, first served, infinity shortest first.
        shares_engine: Others send to the same engine. That nobody ordinary waits here says nothing
            then: the bucket is not filled by it, and every express request is charged.
        bits: Of the engine's integer: 64, or 32.

    Attributes:
        level: Of the bucket, in answer tokens; below 0: express has had more than its share.
        num_waiting: Ordinary requests that the engine has not begun to answer.

    Raises:
        ParsError: `max_slowdown` is below 1, or `bits` is neither.
    """

    hears_engine = True

    def __init__(
        self,
        max_slowdown: float = DEFAULT_MAX_SLOWDOWN,
        *,
        shares_engine: bool = False,
        bits: int = 64,
    ) -> None:
        if not max_slowdown >= 1:
            raise ParsError(f"max_slowdown must be 1 or more, not {max_slowdown}")
        self.max_slowdown = max_slowdown
        self._keys = Keys(bits)
        self.share = 1.0 - 1.0 / max_slowdown
        self.level = 0.0
        self._shares_engine = shares_engine
        self.num_waiting = 0
        self._work_in_bin = [0.0] * NUM_BINS
        self._num_seen = 0.0
        self._until_look = 0
        self._cheaper = [1.0] * NUM_BINS
        self._rate = _Rate()

    @property
    def capacity(self) -> float:
        """Of the bucket, in answer tokens."""
        return BUCKET_S * self._rate.work_per_s

    @property
    def bucket_ratio(self) -> float:
        """The bucket's level, of its capacity; 1 before anything was seen."""
        return self.level / self.capacity if self.capacity > 0 else 1.0

    def __repr__(self) -> str:
        return f"MaxSlowdown({self.max_slowdown:g})"

    def fresh(self) -> Self:
        return type(self)(
            self.max_slowdown, shares_engine=self._shares_engine, bits=self._keys.bits
        )

    @property
    def in_words(self) -> str:
        if self.max_slowdown == 1:
            return "first come, first served"
        if math.isinf(self.max_slowdown):
            return "shortest first"
        return f"at most {self.max_slowdown:g} times the wait of first come, first served"

    @property
    def suffix(self) -> str:
        return f"@{self.max_slowdown:g}x"

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
            is_ordered: False: nothing is known of it, so it is ordinary.
        """
        cost, work = demand
        if is_ordered:
            self._see(cost, work)
        if self.num_waiting == 0 and not self._shares_engine:
            self.level = self.capacity
        share_now = 1.0 if self.share == 1 else self._share_now()
        is_express = is_ordered and self._cheaper_work(cost) < share_now
        since_s = key_s(is_express, cost, arrival_s - EPOCH_S) + bounded_offset_s(offset_s)
        place = Place(self._keys.at(since_s), is_express, work)
        if not is_express:
            self.num_waiting += 1
        elif self.num_waiting or self._shares_engine:
            place.charged = work
            self.level -= work
        return place

    def began(self, place: Place) -> None:
        """The engine answers it; it waits no longer."""
        if not place.has_begun:
            place.has_begun = True
            self.num_waiting -= not place.is_express

    def ended(self, place: Place, now_s: float) -> None:
        """It is done, or gone: so far what was expected of it counts as done."""
        self.began(place)
        self._rate.see(place.work, now_s)
        self.level = min(self.level + self.share * place.work, self.capacity)

    def correct(self, place: Place, true_work: float) -> None:
        """What it truly took became known, after its end."""
        beyond = true_work - place.work
        self._rate.add(beyond)
        self.level += self.share * beyond - (beyond if place.charged else 0.0)
        self.level = min(self.level, self.capacity)
        place.work = true_work

    def _see(self, cost: float, work: float) -> None:
        """Count the request into the distribution, and now and then find the threshold anew."""
        place = int(BINS_AN_OCTAVE * math.log2(max(cost, 1.0)))
        self._work_in_bin[min(place, NUM_BINS - 1)] += work
        self._num_seen += 1
        self._until_look -= 1
        if self._until_look > 0:
            return
        self._until_look = LOOK_EVERY
        if self._num_seen > MEMORY:
            self._work_in_bin = [it / 2 for it in self._work_in_bin]
            self._num_seen /= 2
        total = sum(self._work_in_bin)
        self._cheaper = [it / total for it in accumulate(self._work_in_bin)]

    def _share_now(self) -> float:
        """
        Of the work, cheapest first, that is express at the bucket's level.

        The lower the level, the shorter a request must be: when there is room for few, the shortest
        have it. It is always less than the share that lasts: the bucket pays for bursts of them.
        """
        if self.level <= 0 or self.capacity <= 0:
            return 0.0
        return FULL_SHARES * self.share * self.level / self.capacity

    def _cheaper_work(self, cost: float) -> float:
        """The share of the work that cheaper requests make."""
        place = min(int(BINS_AN_OCTAVE * math.log2(max(cost, 1.0))), NUM_BINS - 1)
        return self._cheaper[place - 1] if place else 0.0


def key_s(is_express: bool, cost: float, since_epoch_s: float) -> float:
    """The key of a class in seconds since the epoch, before any offset."""
    if is_express:
        return EXPRESS_S + min(cost, MOST_COST) / COST_A_SECOND
    return since_epoch_s


class _Rate:
    """The work that an engine is seen to do, in answer tokens a second, over about ten seconds."""

    MEMORY_S = 10.0

    def __init__(self) -> None:
        self._work = self._seconds = 0.0
        self._last_s: float | None = None

    @property
    def work_per_s(self) -> float:
        return self._work / self._seconds if self._seconds > 0 else 0.0

    def see(self, work: float, now_s: float) -> None:
        """So much was done, by now."""
        if self._last_s is not None:
            since_s = min(max(0.0, now_s - self._last_s), self.MEMORY_S)
            kept = math.exp(-since_s / self.MEMORY_S)
            self._work *= kept
            self._seconds = self._seconds * kept + since_s
        self._work += work
        self._last_s = now_s

    def add(self, work: float) -> None:
        """So much more was done in what was seen already."""
        self._work = max(0.0, self._work + work)
