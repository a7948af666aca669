"""What the order was worth is told from arrivals, begins and work alone."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pars.outcomes.counterfactual import fcfs_begins_s, ordered_begins_s
from pars.outcomes.decision import Decision
from pars.outcomes.records import Outcome
from pars.outcomes.tenant_watch import TenantMetrics
from pars.outcomes.worth import Seen, Worth
from pars.outcomes.worth_metrics import WorthMetrics
from pars.scheduling.policies.policy import Place

INF = math.inf


def test_a_short_request_that_went_first_would_have_waited_for_the_long_one() -> None:
    """
    One place, busy until 10: a long one (9 units) came first, the short one (1) went first.

    By first come, first served the middle of the long one's work, 4.5, has begun where 0.5 to 5.5
    lie between 10 and 11; the short one's, 9.5, is beyond all that has begun by then.
    """
    arrivals_s, begins_s = np.array([0.0, 1.0]), np.array([11.0, 10.0])

    found = fcfs_begins_s(arrivals_s, begins_s, np.array([9.0, 1.0]))

    assert found[0] == pytest.approx(10 + (4.5 - 0.5) / (5.5 - 0.5))
    assert math.isnan(found[1])


def test_what_follows_shows_when_the_last_would_have_begun() -> None:
    """A third request begins at 20: the short one's 9.5 is 4/5 of the way from 5.5 to 10.5."""
    arrivals_s, begins_s = np.array([0.0, 1.0, 2.0]), np.array([11.0, 10.0, 20.0])

    found = fcfs_begins_s(arrivals_s, begins_s, np.array([9.0, 1.0, 1.0]))

    assert found[1] == pytest.approx(11 + 9 * (9.5 - 5.5) / (10.5 - 5.5))


def test_once_nobody_is_under_way_the_last_is_known_too() -> None:
    """All 10 units were done at 20: 9.5 lies 8/9 of the way there from the long one's middle."""
    arrivals_s, begins_s = np.array([0.0, 1.0]), np.array([11.0, 10.0])

    found = fcfs_begins_s(arrivals_s, begins_s, np.array([9.0, 1.0]), idle_s=20.0)

    assert found[1] == pytest.approx(11 + 9 * (9.5 - 5.5) / (10 - 5.5))


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0.1, 50), st.floats(0, 20)), min_size=1, max_size=30
    )
)
def test_first_come_first_served_is_worth_nothing(requests: list[tuple[float, ...]]) -> None:
    """Where that was the order, it is found again exactly."""
    arrivals_s = np.sort(np.array([it[0] for it in requests]))
    begins_s = np.maximum.accumulate(arrivals_s + np.array([it[2] for it in requests]))

    found = fcfs_begins_s(arrivals_s, begins_s, np.array([it[1] for it in requests]))

    known = ~np.isnan(found)
    apart = np.diff(begins_s, prepend=-1) > 0  # of equal begins, any work lies at the same time
    assert known.all()
    assert found[apart] == pytest.approx(begins_s[apart], abs=1e-6)


def test_nothing_is_known_before_anything_began() -> None:
    """All wait: no work has begun."""
    assert np.isnan(fcfs_begins_s(np.zeros(2), np.full(2, INF), np.ones(2))).all()


class Bench:
    """Requests that end at once, as an engine's answers tell them."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.worth = Worth(lambda: self.now_s)

    def decision(
        self,
        at_s: float,
        work: float,
        *,
        is_express: bool = False,
        shadow_key: int | None = None,
    ) -> Decision:
        outcome = Outcome(arrival_s=at_s, path="/v1/completions", decision="scored")
        place = Place(is_express=is_express, work=work)
        decision = Decision(
            outcome=outcome, began_s=0.0, work=work, place=place, shadow_key=shadow_key
        )
        self.worth.arrived(decision)
        return decision

    def end(self, decision: Decision, wait_s: float, total_s: float, **told: Any) -> None:
        outcome = Outcome(
            arrival_s=decision.outcome.arrival_s,
            path="/v1/completions",
            decision="scored",
            **{"status": 200, "answer_tokens": 10, "wait_s": wait_s, "total_s": total_s} | told,
        )
        self.worth.ended(decision, outcome)


def test_a_gain_is_told_once_nobody_older_is_under_way() -> None:
    """By first come, first served the short one begins after the long one, which waits still."""
    bench = Bench()
    long = bench.decision(900.0, 90.0)
    short = bench.decision(901.0, 10.0, is_express=True)
    bench.end(short, 9.0, 10.0)

    assert bench.worth.look() == Seen()

    bench.end(long, 11.0, 20.0, answer_tokens=90)
    last = bench.decision(902.0, 10.0)
    bench.end(last, 18.0, 19.0)
    seen = bench.worth.look()
    gain, new = seen.gain, seen.new

    assert gain is not None
    assert gain.num_requests == 3
    assert [it.passed.is_express for it in new if it.fcfs_wait_s > it.wait_s + 1] == [True]
    assert gain.ntpot_ratio > 0
    assert bench.worth.look().new == []


@pytest.mark.parametrize("told", [{"status": 500}, {"answer_tokens": None}, {"status": None}])
def test_a_request_that_failed_counts_as_no_work(told: dict[str, Any]) -> None:
    """Nor does anybody wait for it."""
    bench = Bench()
    bench.end(bench.decision(900.0, 5.0), 1.0, 2.0, **told)

    assert (bench.worth.look(), bench.worth.num_waiting) == (Seen(), 0)


def test_an_answer_that_came_whole_began_as_long_ago_as_others_take() -> None:
    """A stream took 0.1 s a token, so 10 tokens that came whole at 5 s had begun at 4 s."""
    bench = Bench()
    bench.end(bench.decision(900.0, 11.0), 1.0, 2.0, answer_tokens=11)
    bench.end(bench.decision(901.0, 10.0), 5.0, 5.0)

    new = bench.worth.look().new

    assert [it.wait_s for it in new] == pytest.approx([1.0, 4.0])


def test_who_waits_and_for_how_long_is_known_at_any_moment() -> None:
    """Two wait, the older for 100 s."""
    bench = Bench()
    first = bench.decision(900.0, 5.0)
    bench.decision(950.0, 5.0)

    assert (bench.worth.num_waiting, bench.worth.num_running) == (2, 0)
    assert bench.worth.longest_waiting_s == pytest.approx(100.0)

    bench.worth.began(first)

    assert (bench.worth.num_waiting, bench.worth.num_running) == (1, 1)
    assert bench.worth.longest_waiting_s == pytest.approx(50.0)


def test_an_order_takes_up_the_same_work_at_the_same_times() -> None:
    """Begins at 10, 11 and 20 take up 9, 1 and 1 units; by key the short ones come before 9."""
    arrivals_s, begins_s = np.array([0.0, 1.0, 2.0]), np.array([10.0, 11.0, 20.0])

    found = ordered_begins_s(arrivals_s, begins_s, np.array([9.0, 1.0, 1.0]), np.array([9, 1, 2.0]))

    assert found.tolist() == [10.0, 10.0, 10.0]  # 9 units: two short ones, and more than half of 9


def test_shadow_mode_tells_what_the_order_would_have_gained() -> None:
    """First come, first served in truth; in thought the short one goes before the long one."""
    bench = Bench()
    busy = bench.decision(890.0, 30.0, shadow_key=0)
    long = bench.decision(900.0, 90.0, shadow_key=90)
    short = bench.decision(901.0, 10.0, shadow_key=10)
    bench.end(busy, 10.5, 20.0, answer_tokens=30)
    bench.end(long, 10.0, 19.0, answer_tokens=90)
    bench.end(short, 18.0, 19.0)

    seen = bench.worth.look()

    assert seen.gain is not None
    assert seen.gain.ntpot_ratio == pytest.approx(0.0, abs=1e-9)
    assert seen.shadow_gain is not None
    assert seen.shadow_gain.ntpot_ratio > 0


def test_ten_thousand_models_and_tenants_make_few_series() -> None:
    """Thirty-two models and sixty-four tenants have a label of their own; the rest share one."""
    registry = CollectorRegistry()
    worth, tenants = WorthMetrics(registry), TenantMetrics(registry)
    told = {"path": "/v1/completions", "decision": "scored", "arrival_s": 1.0}
    outcome = Outcome(**told, status=200, answer_tokens=4, wait_s=1.0, total_s=2.0)
    for number in range(10_000):
        name = f"name-{number}"
        worth.ended("none", 1.0, name, wait_s=1.0, e2e_s=2.0, tokens=4, request_id=name)
        tenants.ended(name, outcome, 5.0)
    counts = [
        sample.name.removesuffix("_count")
        for family in registry.collect()
        for sample in family.samples
        if sample.name.endswith("_count")
    ]

    assert counts.count("pars_model_time_per_output_token_seconds") == 33
    assert counts.count("pars_tenant_wait_seconds") == 64
    assert counts.count("pars_wait_seconds") == 1
