"""Keys order a queue by expected cost, age exactly linearly, and bound every wait."""

import heapq
import itertools
import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pars.errors import ParsError
from pars.request.prompts import Prompt, Request
from pars.scheduling.demand import Calibration, Demand, demand_of
from pars.scheduling.keys import EPOCH_S, MAX_OFFSET_S, NARROW_EPOCH_S
from pars.scheduling.policies.shortest_first import (
    DEFAULT_MAX_OVERTAKE_S,
    ShortestFirst,
    cost_share,
)

LONG = 1000.0
NOW_S = EPOCH_S + 3600.0  # of 1970: small numbers to reckon with


@dataclass
class Facts:
    score_quantiles: list[float] | None = None
    expected_tokens: list[float] | None = None


def key(policy: ShortestFirst, cost: float, arrival_s: float = NOW_S, offset_s: float = 0.0) -> int:
    return policy.place(Demand(cost, cost), arrival_s, long_tokens=LONG, offset_s=offset_s).key


# Calibration


def test_calibration_interpolates_and_stops_at_its_ends() -> None:
    """Between two known scores the tokens lie on the straight line; beyond them they stay."""
    calibration = Calibration.of(Facts([0.0, 1.0, 3.0], [10.0, 20.0, 60.0]))
    asked = [-9.0, 0.0, 0.5, 2.0, 3.0, 9.0]
    assert [calibration.expected_tokens(x) for x in asked] == [10, 10, 15, 40, 60, 60]
    assert calibration.neutral_tokens == 20.0
    assert calibration.long_tokens == pytest.approx(20 + 0.8 * 40)  # quantile 0.9 of three points


def test_quantiles_alone_are_spread_over_the_assumed_range() -> None:
    """Without expected tokens the middle score stands for sqrt(16 * 2048) = 181 tokens."""
    calibration = Calibration.of(Facts([-1.0, 0.0, 1.0]))
    assert calibration.expected_tokens(-1.0) == 16.0
    assert calibration.expected_tokens(0.0) == pytest.approx(181.02, abs=0.01)
    assert calibration.expected_tokens(1.0) == 2048.0


def test_no_calibration_takes_the_logistic_as_quantile() -> None:
    """A ranker that says nothing of its scores still orders them: score 0 is the middle."""
    calibration = Calibration.of(Facts())
    assert calibration.expected_tokens(0.0) == pytest.approx(181.02, abs=0.01)
    assert calibration.expected_tokens(-800.0) < calibration.expected_tokens(800.0)


def test_a_damaged_calibration_is_made_monotone() -> None:
    """Expected tokens that fall with the score count as their running maximum."""
    calibration = Calibration.of(Facts([0.0, 1.0, 2.0], [10.0, 5.0, 20.0]))
    assert calibration.expected_tokens(1.0) == 10.0


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20),
    st.lists(st.floats(0, 1e6), min_size=2, max_size=20),
    st.tuples(st.floats(-1e7, 1e7), st.floats(-1e7, 1e7)),
)
def test_calibration_never_turns_two_scores_round(
    scores: list[float], tokens: list[float], pair: tuple[float, float]
) -> None:
    """A higher score is never expected to take fewer tokens, whatever the ranker folder says."""
    calibration = Calibration.of(Facts(scores, tokens))
    low, high = sorted(pair)
    assert calibration.expected_tokens(low) <= calibration.expected_tokens(high) * (1 + 1e-9) + 1e-9


# Cost


def test_cost_is_capped_multiplied_and_has_a_prompt_part() -> None:
    """
    Two answers capped at 50 tokens and 300 prompt tokens: the root of 100 * (100 + 300) is 200;
    uncapped at 450 tokens each, that of 900 * (900 + 700) is 1,200.
    """
    request = Request((Prompt("x", 300.0),), max_tokens=50, num_answers=2)
    assert demand_of(request, [450.0]).cost == 200.0
    long_prompt = replace(request, prompts=(Prompt("x", 700.0),))
    assert demand_of(long_prompt, [450.0], obey_limits=False).cost == 1200.0


@given(
    answer=st.floats(1, 1e5),
    more=st.floats(0, 1e5),
    prompt=st.floats(0, 1e5),
    later=st.floats(0, 1e5),
)
def test_cost_rises_with_the_answer_and_with_the_prompt(
    answer: float, more: float, prompt: float, later: float
) -> None:
    """Neither a longer answer nor a longer prompt ever buys a better place."""
    shorter = Request((Prompt("x", prompt),))
    longer = Request((Prompt("x", prompt + later),))
    cost, more_cost = demand_of(shorter, [answer]).cost, demand_of(longer, [answer + more]).cost
    assert cost <= more_cost * (1 + 1e-12)


def test_prompts_of_a_list_add_up() -> None:
    """A list of two prompts costs the sum of both; min_tokens is a floor."""
    request = Request((Prompt("a", 0.0), Prompt("b", 0.0)), min_tokens=30)
    assert demand_of(request, [10.0, 100.0]).cost == 130.0


# Keys


def test_key_in_microseconds_by_hand() -> None:
    """One hour after the epoch, half of a long answer, range 10 s: 3600 s + 4.75 s."""
    assert key(ShortestFirst(max_overtake_s=10), 500.0) == 3_604_750_000


def test_zero_range_is_first_come_first_served() -> None:
    """With max_overtake_s 0 the key is the arrival time alone."""
    fcfs = ShortestFirst(max_overtake_s=0)
    assert key(fcfs, 1e9, NOW_S) == key(fcfs, 0.0, NOW_S) < key(fcfs, 0.0, NOW_S + 0.001)


def test_infinite_range_is_shortest_first_whenever_it_came() -> None:
    """With max_overtake_s infinite a shorter request goes first, years later too."""
    shortest = ShortestFirst(max_overtake_s=math.inf)
    assert key(shortest, 10.0, NOW_S + 1e8) < key(shortest, 10.001, NOW_S)
    assert key(shortest, 10.0, NOW_S, offset_s=5.0) > key(shortest, 14.0, NOW_S)


def test_offset_moves_a_request_by_its_seconds() -> None:
    """An offset of 60 s puts a request where one that came 60 s later would be."""
    policy = ShortestFirst(DEFAULT_MAX_OVERTAKE_S)
    assert key(policy, 10.0, NOW_S, offset_s=60.0) == key(policy, 10.0, NOW_S + 60.0)
    assert key(policy, 1.0, NOW_S, offset_s=1e300) == key(policy, 1.0, NOW_S, MAX_OFFSET_S)


def test_32_bits_start_at_the_bottom_and_saturate() -> None:
    """In 32 bits the first tick is -2**31 + 1 or so, and after 2039 every key is the largest."""
    narrow = ShortestFirst(DEFAULT_MAX_OVERTAKE_S, bits=32)
    assert key(narrow, 0.0, NARROW_EPOCH_S + 1.0) == -(2**31) + 10
    assert key(narrow, 0.0, NARROW_EPOCH_S + 14 * 365.25 * 86400) == 2**31 - 1
    assert key(narrow, 0.0, 0.0) == -(2**31) + 1


@pytest.mark.parametrize("bad", [-1.0, math.nan, 2e9])
def test_a_range_that_makes_no_sense_is_refused(bad: float) -> None:
    """max_overtake_s must be a number of seconds from 0 to 1e9, or infinite."""
    with pytest.raises(ParsError, match="max_overtake_s must be from 0"):
        ShortestFirst(max_overtake_s=bad)


ranges = st.sampled_from([0.0, 0.25, 1.0, 30.0, 1e5]) | st.floats(0, 1e6)
costs = st.floats(0, 1e7)
arrivals = st.floats(EPOCH_S - 1e6, EPOCH_S + 3e8)


@given(ranges, costs, costs, arrivals, st.floats(0, 1e6), st.sampled_from([32, 64]))
def test_nothing_overtakes_from_beyond_the_range(
    range_s: float, cost: float, later_cost: float, arrival_s: float, extra_s: float, bits: int
) -> None:
    """A request that comes max_overtake_s or more later never has the smaller key."""
    policy = ShortestFirst(max_overtake_s=range_s, bits=bits)
    later_s = arrival_s + range_s + extra_s
    if later_s - arrival_s < range_s:  # the test's own rounding of the sum
        later_s = math.nextafter(later_s, math.inf)
    assert key(policy, later_cost, later_s) >= key(policy, cost, arrival_s)


@given(costs, costs, st.floats(1e-6, 1e6))
def test_of_two_that_come_together_the_cheaper_goes_first(
    one: float, other: float, range_s: float
) -> None:
    """For one arrival time the keys follow the costs, however long the requests are."""
    policy = ShortestFirst(max_overtake_s=range_s)
    low, high = sorted((one, other))
    assert key(policy, low) <= key(policy, high)


@given(costs, costs, st.floats(1.0, 1e5))
def test_the_share_rises_and_stays_below_one(one: float, other: float, long: float) -> None:
    """cost_share is monotone, from 0 towards 1."""
    low, high = sorted((one, other))
    assert 0 <= cost_share(low, long) <= cost_share(high, long) <= 1


@given(st.floats(0, 1e300), st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_every_key_fits_its_field(cost: float, arrival_s: float, offset_s: float) -> None:
    """A key and its negation fit the engine's integer, whatever goes in."""
    for bits, range_s in ((32, 30.0), (64, 1e9), (64, math.inf)):
        policy = ShortestFirst(range_s, bits=bits)
        assert abs(key(policy, cost, arrival_s, offset_s)) < 2 ** (bits - 1)


# The bound in a queue, as an engine would run it


@dataclass(frozen=True)
class Arrival:
    at_s: float
    cost: float
    service_s: float


def admission_order(arrivals: list[Arrival], policy: ShortestFirst, num_slots: int) -> list[int]:
    """Indexes in the order in which a non-preemptive engine with static keys admits them."""
    by_time = sorted(range(len(arrivals)), key=lambda i: arrivals[i].at_s)
    queue: list[tuple[int, float, int]] = []
    running: list[float] = []
    admitted: list[int] = []
    waiting = iter(by_time)
    upcoming = next(waiting, None)
    while upcoming is not None or queue or running:
        next_s = arrivals[upcoming].at_s if upcoming is not None else math.inf
        now_s = min(next_s, running[0] if running else math.inf)
        while running and running[0] <= now_s:
            heapq.heappop(running)
        while upcoming is not None and arrivals[upcoming].at_s <= now_s:
            it = arrivals[upcoming]
            heapq.heappush(queue, (key(policy, it.cost, it.at_s), it.at_s, upcoming))
            upcoming = next(waiting, None)
        while queue and len(running) < num_slots:
            index = heapq.heappop(queue)[2]
            admitted.append(index)
            heapq.heappush(running, now_s + arrivals[index].service_s)
    return admitted


workloads = st.lists(
    st.builds(
        Arrival,
        at_s=st.floats(NOW_S, NOW_S + 50),
        cost=st.floats(0, 5000),
        service_s=st.floats(0.01, 20),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(workloads, st.sampled_from([0.0, 0.5, 5.0, 30.0]), st.integers(1, 4))
def test_bounded_overtaking_in_a_running_queue(
    workload: list[Arrival], range_s: float, num_slots: int
) -> None:
    """In any workload, what is admitted before a waiting request came within the range after it."""
    order = admission_order(workload, ShortestFirst(max_overtake_s=range_s), num_slots)
    assert sorted(order) == list(range(len(workload)))
    for earlier, later in itertools.combinations(order, 2):
        assert workload[earlier].at_s <= workload[later].at_s + range_s


def flood(num_short: int) -> list[Arrival]:
    """One slot, one long request, and short ones that arrive as fast as they are served."""
    long = Arrival(NOW_S + 0.5, cost=900.0, service_s=9.0)
    shorts = [Arrival(NOW_S + i, cost=10.0, service_s=1.0) for i in range(num_short)]
    return [long, *shorts]


def test_a_flood_of_short_requests_starves_a_long_one_without_ageing() -> None:
    """With max_overtake_s infinite the long request is served after all 100 short ones."""
    order = admission_order(flood(100), ShortestFirst(max_overtake_s=math.inf), 1)
    assert order[-1] == 0


def test_a_flood_of_short_requests_delays_a_long_one_by_the_range_at_most() -> None:
    """With a range of 20 s the long request goes ahead of every short one that came 20 s later."""
    order = admission_order(flood(100), ShortestFirst(max_overtake_s=20.0), 1)
    assert order.index(0) <= 21
