"""
No request waits more than R times what first come, first served would have made it wait.

A share x = 1 - 1/R of the engine's work goes to an express class, shortest first; everybody else is
first come, first served. Which requests are short enough is told by the running distribution of
costs: the cheapest, that together make up the share x of the work. The share is enforced and not
assumed: a bucket is charged for each express request that passes somebody, and a request that finds
it empty is ordinary, which is no worse than first come, first served. So floods of short requests,
wrong predictions and gaming cost express its place, and never the bound.

    key = arrival                                                 ordinary
    key = arrival of the ordinary request that has waited longest, less up to 0.1 s       express

Both are static, so that an engine's stock heap is enough. An express request goes before all that
wait, and behind all ordinary ones that run: where an engine that is out of memory stops the last by
key, that is one that has only just begun. Predictions count for what came of them (`hindsight`).
docs/bound.md has the statement and its proof (two-class head-of-line priority, Cobham 1954,
doi:10.1287/opre.2.1.70, with a token bucket).
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Self

from pars.errors import ParsError
from pars.scheduling.demand import Demand, cost_of
from pars.scheduling.keys import EPOCH_S, Keys, bounded_offset_s
from pars.scheduling.policies.cost_shares import CostShares
from pars.scheduling.policies.hindsight import Hindsight
from pars.scheduling.policies.policy import LONG_TOKENS, Place, Policy

DEFAULT_MAX_SLOWDOWN = 1.33  # benchmarks/frontier.py
EXPRESS_RANGE_S = 0.1  # of keys, from the shortest express request to the longest
LONG_COST = 1e5  # from here on express requests are alike
MOST_COST = 1e9  # the same, without a bound
BUCKET_S = 2.0  # of the engine's whole work: how far express may run ahead of its share
BUCKET_REQUESTS = 4.0  # of mean work, beside that: where each takes long, seconds are few of them
FULL_SHARES = 1.25  # of a full bucket, in shares that last: the shortest use them best
RESERVED = 0.5  # of true mean work, charged until it ends: a flood that looks short may be long
TRUE_MEMORY = 500.0  # requests, of that mean


@dataclass(slots=True, eq=False)
class ClassedPlace(Place):
    """
    Attributes:
        since_s: When it came, in seconds since the epoch.
        cost: That it is ordered by; 0: it was not counted in, as nothing is known of it.
        answers: Tokens of its answers, as the predictor told.
        prompt_work: Of its work, what is not its answers'.
        teaches: What comes of it says something of the predictor.
    """

    since_s: float = 0.0
    answers: float = 0.0
    prompt_work: float = 0.0
    cost: float = 0.0
    teaches: bool = False


class MaxSlowdown(Policy):
    """
    No request waits more than R times what first come, first served would have made it wait.

        key = arrival                                       ordinary: first come, first served
        key = just before all ordinary ones that wait       express: the share 1 - 1/R of the work

    It needs to be told when requests begin and end (`began`, `ended`, `correct`): the bucket fills
    by that, and without it everybody is ordinary. On one thread.

    Bound: an ordinary request waits at most R times what first come, first served would have made
    it wait, and a constant; docs/bound.md has both, and the proof. Source: two-class head-of-line
    priority (Cobham 1954, doi:10.1287/opre.2.1.70) with a token bucket.

    Several processes before one engine each keep their own: each gives to express the share x of
    the work that it sees, and the shares of the parts make up the share of the whole.

    Where the engine stops running requests for better keys (`is_preempting`), express is first
    come, first served as well: then no key is better than that of a request that runs.

    Args:
        max_slowdown: R, 1 or more. 1 is first come, first served, infinity shortest first.
        shares_engine: Others send to the same engine. That nobody ordinary waits here says nothing
            then: the bucket is not filled by it, and every express request is charged.
        bits: Of the engine's integer: 64, or 32.

    Attributes:
        level: Of the bucket, in answer tokens; below 0: express has had more than its share.
        num_waiting: Ordinary requests that the engine has not begun to answer.
        hindsight: What came of predictions.

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
        self._most_proven = 0.0  # of its capacity, since nobody waited
        self._shares_engine = shares_engine
        self.num_waiting = 0
        self.hindsight = Hindsight()
        self._costs = CostShares()
        self._rate = _Rate()
        self._true_work = self._num_true = 0.0  # the mean of what ended: nobody's word counts in it
        self._ordinary: deque[ClassedPlace] = deque()  # as they came; some have begun
        self._last_begun_s: float | None = None  # when the last ordinary one that began had come

    @property
    def capacity(self) -> float:
        """Of the bucket, in answer tokens."""
        if self._rate.work_per_s == 0:
            return 0.0
        return BUCKET_S * self._rate.work_per_s + BUCKET_REQUESTS * self._costs.mean_work

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
            arrival_s: Unix time.
            is_ordered: False: nothing is known of it, so it is ordinary.
        """
        since_s, answers = arrival_s - EPOCH_S, demand.answers
        teaches = is_ordered and answers < demand.most
        place = ClassedPlace(0, False, demand.work, 0.0, False, since_s, answers)
        place.prompt_work, place.teaches = demand.work - answers, teaches
        if is_ordered:
            cost, place.work = self._corrected(demand)
            place.cost = cost
            self._costs.see(cost, place.work)
            place.is_express = self._may_pass(cost)
        key_s, more_ticks = since_s, 0
        if place.is_express:
            key_s, more_ticks = self._express_key(cost, since_s)
            if self.num_waiting or self._shares_engine:
                place.charged = max(place.work, RESERVED * self._true_work)
                self.level -= place.charged
        else:
            self.num_waiting += 1
            self._ordinary.append(place)
        place.key = self._keys.at(key_s + bounded_offset_s(offset_s), more_ticks)
        return place

    def began(self, place: Place) -> None:
        """The engine answers it; it waits no longer."""
        if place.has_begun:
            return
        self._leave_line(place)
        if not place.is_express and isinstance(place, ClassedPlace):
            self._last_begun_s = max(place.since_s, self._last_begun_s or 0.0)

    def ended(self, place: Place, now_s: float) -> None:
        """
        It is done, or gone: so far what was expected of it counts as done. One that never began (it
        was refused, or its client left) took nothing, whatever it asked for.
        """
        if not place.has_begun:
            self._leave_line(place)
            if isinstance(place, ClassedPlace) and place.cost:
                self._costs.forget(place.cost, place.work)
            place.work = 0.0
        given_back = place.charged - place.work if place.charged else 0.0
        self._rate.see(place.work, now_s)
        self.level += given_back + self.share * place.work
        if not self._shares_engine:
            self._fill_what_grew()
        self.level = min(self.level, self.capacity)
        place.charged -= given_back

    def _fill_what_grew(self) -> None:
        """
        A bucket that was full when nobody waited is as large as the engine turns out to be fast: of
        a server that was just started nothing is known yet. By what has ended: a request that asks
        for much and waits enlarges the capacity, and gives nothing.
        """
        proven = BUCKET_S * self._rate.work_per_s + BUCKET_REQUESTS * self._true_work
        if (grown := proven - self._most_proven) > 0:
            self.level += grown
            self._most_proven += grown

    def _leave_line(self, place: Place) -> None:
        place.has_begun = True
        if not place.is_express:
            self.num_waiting -= 1

    def correct(self, place: Place, true_work: float, answers: float | None = None) -> None:
        """What it truly took became known, after its end."""
        beyond = true_work - place.work
        self._rate.add(beyond)
        self.level += self.share * beyond - (beyond if place.charged else 0.0)
        self.level = min(self.level, self.capacity)
        place.work = true_work
        self._num_true = min(self._num_true + 1.0, TRUE_MEMORY)
        self._true_work += (true_work - self._true_work) / self._num_true
        if isinstance(place, ClassedPlace) and place.teaches:
            came = true_work - place.prompt_work if answers is None else answers
            self.hindsight.learn(place.answers, came)

    def _corrected(self, demand: Demand) -> tuple[float, float]:
        """Cost and work, by what came of such predictions: answers weigh by 1 over their length."""
        answer = self.hindsight.answer(demand.answers, demand.most)
        work = answer.mean + demand.work - demand.answers
        return cost_of(answer.typical, work), work

    def _may_pass(self, cost: float) -> bool:
        """Whether a request of that cost is express now."""
        if self.num_waiting == 0 and not self._shares_engine:
            self.level = self._most_proven = self.capacity
        if self.share == 1:
            return True
        return self.hindsight.is_useful and self._costs.below(cost) < self._share_now()

    def _share_now(self) -> float:
        """
        Of the work, cheapest first, that is express at the bucket's level.

        The lower the level, the shorter a request must be: when there is room for few, the shortest
        have it.
        """
        if self.level <= 0 or self.capacity <= 0:
            return 0.0
        return FULL_SHARES * self.share * self.level / self.capacity

    def _express_key(self, cost: float, since_s: float) -> tuple[float, int]:
        """Seconds since the epoch, and ticks after it."""
        if self.share == 1:  # nobody else waits
            return self._keys.first_s, int(min(cost, MOST_COST) * self._keys.ticks_per_s / 1e3)
        while self._ordinary and self._ordinary[0].has_begun:
            self._ordinary.popleft()
        if self._ordinary:
            first_s = self._ordinary[0].since_s
        else:
            first_s = since_s if self._last_begun_s is None else self._last_begun_s
        if self.is_preempting:
            return first_s, -1
        range_ticks = max(1, int(EXPRESS_RANGE_S * self._keys.ticks_per_s))
        return first_s, int(range_ticks * min(cost / LONG_COST, 1.0)) - range_ticks - 1


class _Rate:
    """The work that an engine is seen to do, in answer tokens a second, over about ten seconds."""

    MEMORY_S = 10.0
    LEAST_S = BUCKET_S  # at the beginning: what was done within a moment is no rate

    def __init__(self) -> None:
        self._work = self._seconds = 0.0
        self._last_s: float | None = None

    @property
    def work_per_s(self) -> float:
        return self._work / max(self._seconds, self.LEAST_S)

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
