"""The express lane: who is in it, what it costs the others, and that nothing breaks its bound."""

import heapq
import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pars.errors import ParsError
from pars.scheduling.demand import Demand
from pars.scheduling.policies.max_slowdown import (
    BUCKET_REQUESTS,
    BUCKET_S,
    EXPRESS_RANGE_S,
    MaxSlowdown,
)
from pars.scheduling.policies.policy import Place
from pars.serving.settings import Settings

RATE = 100.0  # work a second that the simulated engine does
NOON_S = 1_795_694_400.0  # of a day in November 2026


def serve(lane: MaxSlowdown, place: Place, now_s: float) -> None:
    """The engine answers it, and it ends."""
    lane.began(place)
    lane.ended(place, now_s)


def test_what_never_began_counts_for_nothing() -> None:
    """A refused request that asked for two thousand million tokens is no work that was done."""
    lane = MaxSlowdown(1.5)
    for second in range(60):
        serve(lane, placed(lane, 100.0, 100.0), float(second))
    capacity, level = lane.capacity, lane.level

    lane.ended(placed(lane, 2e9, 2e9), 60.0)

    assert lane.capacity <= capacity
    assert lane.level <= level
    for second in range(61, 121):  # also once the costs of all have been looked at again
        serve(lane, placed(lane, 100.0, 100.0), float(second))
    assert lane.capacity <= 2 * capacity
    assert lane.num_waiting == 0


def placed(lane: MaxSlowdown, cost: float, work: float, arrival_s: float = 0.0) -> Place:
    """The place of a request that comes so long after noon."""
    return lane.place(Demand(cost, work), NOON_S + arrival_s)


class Engine:
    """
    One server behind one heap, and gateways before it, each with a lane of its own.

    Every request takes its true work / RATE seconds, one at a time, which is the queue of the
    bound's proof.
    """

    def __init__(self, max_slowdown: float, num_gateways: int = 1) -> None:
        shares = num_gateways > 1
        self.lanes = [MaxSlowdown(max_slowdown, shares_engine=shares) for _ in range(num_gateways)]

    def waits(
        self, requests: list[tuple[float, float, float]], skew_s: float = 0.0
    ) -> tuple[list[float], list[bool]]:
        """Seconds from arrival to start of (arrival_s, true work, predicted work), and classes."""
        heap: list[tuple[int, int]] = []
        places: list[Place] = []
        begins, upcoming, now_s = [0.0] * len(requests), 0, 0.0
        while upcoming < len(requests) or heap:
            if not heap:
                now_s = max(now_s, requests[upcoming][0])
            while upcoming < len(requests) and requests[upcoming][0] <= now_s:
                arrival_s, _, predicted = requests[upcoming]
                gateway = upcoming % len(self.lanes)
                lane = self.lanes[gateway]
                place = placed(lane, predicted, predicted, arrival_s + skew_s * gateway)
                places.append(place)
                heapq.heappush(heap, (place.key, upcoming))
                upcoming += 1
            _, chosen = heapq.heappop(heap)
            lane, work = self.lanes[chosen % len(self.lanes)], requests[chosen][1]
            lane.began(places[chosen])
            begins[chosen] = now_s
            now_s += work / RATE
            serve(lane, places[chosen], now_s)
            lane.correct(places[chosen], work)
        waits = [begin - arrival for begin, (arrival, _, _) in zip(begins, requests, strict=True)]
        return waits, [place.is_express for place in places]


def load(seed: int, guess: Callable[[random.Random, float], float], num_requests: int = 600):
    """Bursty arrivals a little above what the engine gets done, log-normal work."""
    chance, at_s, requests = random.Random(seed), 0.0, []
    for _ in range(num_requests):
        at_s += chance.expovariate(1.0) * (0.2 if chance.random() < 0.8 else 4.0)
        work = math.exp(chance.gauss(4.0, 1.0))
        requests.append((at_s, work, max(1.0, guess(chance, work))))
    return requests


PREDICTORS: dict[str, Callable[[random.Random, float], float]] = {
    "perfect": lambda chance, work: work,
    "noisy": lambda chance, work: work * math.exp(chance.gauss(0, 0.7)),
    "random": lambda chance, work: math.exp(chance.gauss(4.0, 1.0)),
    "inverted": lambda chance, work: 5000.0 / work,
    "all short": lambda chance, work: 1.0,
    "too small": lambda chance, work: work / 20,
}


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("num_gateways", [1, 3])
@pytest.mark.parametrize("ratio", [1.25, 1.5, 2.0])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=12, derandomize=True)
def test_no_ordinary_request_waits_more_than_the_bound(
    ratio: float, num_gateways: int, predictor: str, seed: int
):
    """
    R times the first-come wait and a constant, whoever predicts, however many gateways with skewed
    clocks: the constant is the buckets', the largest request's, and the skew.
    """
    skew_s = 0.05 if num_gateways > 1 else 0.0
    requests = load(seed, PREDICTORS[predictor])
    first_come, _ = Engine(1.0).waits(requests)

    waits, is_express = Engine(ratio, num_gateways).waits(requests, skew_s)

    largest_s = max(work for _, work, _ in requests) / RATE
    behind_s = max(predicted for _, _, predicted in requests) / RATE
    mean_s = statistics.fmean(max(work, predicted) for _, work, predicted in requests) / RATE
    bucket_s = BUCKET_S + BUCKET_REQUESTS * mean_s
    constant_s = num_gateways * (bucket_s + 2 * largest_s + behind_s + 4 * skew_s)
    for wait_s, fcfs_s, express in zip(waits, first_come, is_express, strict=True):
        if not express:
            assert wait_s <= ratio * (fcfs_s + constant_s)


def test_a_share_of_one_to_one_is_first_come_first_served():
    """R = 1 gives express nothing."""
    requests = load(1, PREDICTORS["noisy"])

    assert Engine(1.0).waits(requests)[1] == [False] * len(requests)


def test_without_a_bound_the_shortest_go_first():
    """R = inf: everybody is express, in the order of cost."""
    lane = MaxSlowdown(math.inf)
    keys = []
    for cost in (300.0, 100.0, 200.0):
        keys.append(placed(lane, cost, cost).key)

    assert sorted(keys) == [keys[1], keys[2], keys[0]]
    assert max(keys) < NOON_S * 1e6


def test_short_requests_gain_where_the_queue_is_long():
    """At 1.5 the mean slowdown (wait over work) is less than half of first come, first served."""
    requests = load(2, PREDICTORS["noisy"], 2000)

    def mean_slowdown(ratio: float) -> float:
        waits, _ = Engine(ratio).waits(requests)
        return sum(w / work for w, (_, work, _) in zip(waits, requests, strict=True))

    assert mean_slowdown(1.5) < 0.5 * mean_slowdown(1.0)


def test_an_empty_bucket_makes_everybody_ordinary():
    """A flood of requests that look short passes until the bucket is empty, and then no more."""
    lane = MaxSlowdown(1.5)
    for second in range(20):
        serve(lane, placed(lane, 100.0, 100.0), float(second))
    waiting = placed(lane, 1e6, 1e6)
    assert not waiting.is_express

    flood = [placed(lane, 1.0, 50.0) for _ in range(500)]

    num_express = sum(place.is_express for place in flood)
    assert 0 < num_express * 50.0 <= lane.capacity + 50.0
    assert not any(place.is_express for place in flood[num_express:])
    for place in (waiting, *flood):
        lane.began(place)
    assert placed(lane, 1.0, 50.0).is_express  # nobody waits: the bucket is full again


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_burst_before_a_server_that_was_just_started_finds_a_full_bucket(is_shared: bool):
    """It was full when nobody waited, however large it is: but nobody tells of other gateways."""
    lane = MaxSlowdown(1.5, shares_engine=is_shared)
    burst = [placed(lane, 100.0, 100.0) for _ in range(30)]
    assert not any(place.is_express for place in burst)

    for second in range(3):
        serve(lane, burst[second], NOON_S + second)
        lane.correct(burst[second], 100.0)

    assert (lane.bucket_ratio == 1.0) is not is_shared
    # 300 in the last 2 s or since the first end, and four requests of 100
    assert lane.capacity == pytest.approx(2.0 * 300.0 / 2.0 + 4 * 100.0, rel=0.2)


def test_what_express_has_taken_is_not_filled_again_by_a_rate_that_goes_up_and_down():
    """Only what grows beyond the most so far is: a bucket gives its capacity once."""
    lane = MaxSlowdown(1.5)
    ordinary = [placed(lane, 100.0, 100.0) for _ in range(300)]
    now_s, given, work = NOON_S, 0.0, 0.0
    most = 0.0
    for index, place in enumerate(ordinary):
        now_s += 0.1 if index // 20 % 2 else 3.0  # of two rates by turns
        serve(lane, place, now_s)
        work += 100.0
        most = max(most, lane.capacity)
        while (short := placed(lane, 1.0, 10.0, now_s - NOON_S)).is_express:
            given += short.charged

    assert given <= most + work / 3 + 100.0


def test_a_giant_that_waits_fills_nobodys_bucket():
    """Whatever it asks for: what has ended says how fast the engine is."""
    lane = learnt(1.5)
    waiting = [placed(lane, 100.0, 100.0, 20.0) for _ in range(100)]
    while placed(lane, 1.0, 1.0, 20.0).is_express:
        pass
    empty = lane.level

    waiting += [placed(lane, work, work, 20.0) for work in (1e6, *[100.0] * 40)]
    serve(lane, waiting[0], NOON_S + 20.0)
    lane.correct(waiting[0], 100.0)

    assert lane.capacity > 10_000.0
    assert lane.level == pytest.approx(empty + 100.0 / 3)


def learnt(max_slowdown: float) -> MaxSlowdown:
    """It has seen an engine do 100 units of work a second, in requests of 100."""
    lane = MaxSlowdown(max_slowdown)
    for second in range(20):
        place = placed(lane, 100.0, 100.0)
        serve(lane, place, NOON_S + second)
        lane.correct(place, 100.0)
    return lane


def test_a_flood_that_looks_short_passes_by_half_the_mean_work_each():
    """Until they end nobody knows how long they are: 500 requests that expect one token each."""
    lane = learnt(1.5)
    capacity = lane.capacity
    assert not placed(lane, 1e4, 1e4).is_express

    flood = [placed(lane, 1.0, 1.0) for _ in range(500)]

    assert 0 < 50.0 * sum(place.is_express for place in flood) <= capacity + 50.0


def test_what_was_reserved_is_given_back_at_the_end():
    """A request of one token, for which 50 were set aside, has cost one of them when it ends."""
    lane = learnt(2.0)
    assert not placed(lane, 1e4, 1e4).is_express
    for _ in range(4):
        placed(lane, 1.0, 1.0)
    before = lane.level
    short = placed(lane, 1.0, 1.0)
    reserved = lane.level
    serve(lane, short, NOON_S + 21.0)
    lane.correct(short, 1.0)

    assert reserved == pytest.approx(before - 50.0)
    assert lane.level == pytest.approx(before - 1.0 + 0.5)


def test_the_truth_corrects_the_bucket():
    """An express answer ten times as long as expected is charged for all of it."""
    lane = MaxSlowdown(2.0)
    for second in range(20):
        serve(lane, placed(lane, 100.0, 100.0), float(second))
    placed(lane, 1e6, 1e6)
    for _ in range(5):
        placed(lane, 1.0, 50.0)
    short = placed(lane, 10.0, 10.0)
    assert short.is_express
    before = lane.level
    serve(lane, short, 21.0)
    lane.correct(short, 100.0)

    assert lane.level == pytest.approx(before + 0.5 * 100.0 - 90.0)


def test_who_leaves_waits_no_longer():
    """Begun or not, at its end a request is counted out once."""
    lane = MaxSlowdown(1.5)
    first, second = placed(lane, 10.0, 10.0), placed(lane, 20.0, 20.0)
    assert lane.num_waiting == 2
    lane.began(first)
    serve(lane, first, 1.0)
    serve(lane, second, 1.0)

    assert lane.num_waiting == 0


def seen(lane: MaxSlowdown) -> MaxSlowdown:
    """It has seen an engine do 100 units of work a second; its bucket fills while nobody waits."""
    for second in range(20):
        serve(lane, placed(lane, 100.0, 100.0), NOON_S + second)
    return lane


@given(cost=st.floats(0, 1e12), ages_s=st.lists(st.floats(0, 1e6), min_size=2))
def test_express_goes_before_all_that_wait_and_behind_all_that_run(
    cost: float, ages_s: list[float]
):
    """Its key is less than that of the first who waits, by no more than a tenth of a second."""
    lane = seen(MaxSlowdown(2.0))
    came_s = sorted(ages_s)
    first, *rest = [lane.place(Demand(1e12, 1e12), NOON_S + at_s) for at_s in came_s]
    lane.began(first)
    lane.level = lane.capacity
    express = lane.place(Demand(min(cost, 20.0), 1.0), NOON_S + came_s[-1])

    assert express.is_express
    assert not any(it.is_express for it in (first, *rest))
    assert rest[0].key - 1e6 * EXPRESS_RANGE_S - 1 <= express.key < min(it.key for it in rest)


def test_where_the_engine_preempts_no_key_is_better_than_that_of_one_that_runs():
    """Express is first come, first served too, behind whoever runs and before whoever waits."""
    lane = seen(MaxSlowdown(2.0))
    lane.is_preempting = True
    runs, waits = placed(lane, 1e6, 1e6, 10.0), placed(lane, 1e6, 1e6, 11.0)
    lane.began(runs)
    first, second = placed(lane, 20.0, 20.0, 12.0), placed(lane, 2.0, 2.0, 13.0)

    assert (first.is_express, second.is_express) == (True, True)
    assert runs.key < first.key == second.key == waits.key - 1


def test_a_proxys_time_stamp_is_a_place_among_ours():
    """A request that pars never saw, with microseconds since 1970 as its key, stands as it came."""
    lane = seen(MaxSlowdown(2.0))
    before, after = placed(lane, 1e6, 1e6, 10.0), placed(lane, 1e6, 1e6, 12.0)
    unseen = round((NOON_S + 11.0) * 1e6)
    express = placed(lane, 2.0, 2.0, 13.0)

    assert express.is_express
    assert express.key < before.key < unseen < after.key


def test_predictions_that_say_nothing_order_nothing():
    """After some hundred answers that are nothing like them it is first come, first served."""
    lane, chance = seen(MaxSlowdown(2.0)), random.Random(0)
    for second in range(400):
        place = placed(lane, *2 * [math.exp(chance.gauss(4.0, 1.0))], float(second))
        serve(lane, place, NOON_S + 100.0 + second)
        lane.correct(place, math.exp(chance.gauss(4.0, 1.0)))

    assert not lane.hindsight.is_useful
    assert not any(placed(lane, work, work).is_express for work in (1.0, 10.0, 1e3))


@pytest.mark.parametrize("ratio", [0.9, -1.0, math.nan])
def test_a_ratio_below_one_is_refused(ratio: float):
    """One clear line with the setting's name."""
    for refused in (Settings, MaxSlowdown):
        with pytest.raises(ParsError, match="max_slowdown must be 1 or more"):
            refused(max_slowdown=ratio)


def test_a_fresh_one_knows_nothing_of_the_first():
    """The same bound for another queue."""
    lane = MaxSlowdown(2.0, shares_engine=True, bits=32)
    for second in range(20):
        serve(lane, placed(lane, 100.0, 100.0), float(second))

    fresh = lane.fresh()

    assert (fresh.max_slowdown, fresh.level, fresh.capacity) == (2.0, 0.0, 0.0)
    assert placed(fresh, 10.0, 10.0).key == placed(MaxSlowdown(2.0, bits=32), 10.0, 10.0).key
