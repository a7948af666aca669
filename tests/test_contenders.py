"""Contenders: whose key is smaller, with and without age, and what each may look at."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pars.errors import ParsError
from pars.prove.workload.contenders import NAMES, Contender
from pars.prove.workload.line import keys_of
from pars.prove.workload.workload import WorkloadRequest
from pars.scheduling.demand import Calibration

SHORT = WorkloadRequest("0", 0.0, "short", 30, 10, max_tokens=900)
LONG = WorkloadRequest("1", 0.0, "long", 20, 500, max_tokens=600)
MIDDLE = WorkloadRequest("2", 0.0, "middle", 10, 100, max_tokens=700)
REQUESTS = (SHORT, LONG, MIDDLE)


def order(policy, requests=REQUESTS, **more):
    keys = keys_of(Contender.parse(policy), requests, **more)
    return [requests[row].prompt for row in sorted(range(len(requests)), key=keys.__getitem__)]


@pytest.mark.parametrize("aging", ["", "@30"])
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("oracle", ["short", "middle", "long"]),
        ("reversed", ["long", "middle", "short"]),
        ("prompt-length", ["middle", "long", "short"]),
        ("max-tokens", ["long", "middle", "short"]),
    ],
)
def test_of_requests_that_come_together_the_least_cost_goes_first(policy, expected, aging):
    """By true length, the longest first, prompt tokens, and the client's limit."""
    assert order(policy + aging) == expected


def test_the_ranker_goes_by_its_scores():
    """Whatever the true lengths are."""
    assert order("ranker", scores=[3.0, 1.0, 2.0]) == ["long", "middle", "short"]
    assert order("ranker@5", scores=[3.0, 1.0, 2.0]) == ["long", "middle", "short"]


@given(tokens=st.lists(st.integers(1, 10_000), min_size=3, max_size=3), aged=st.booleans())
def test_the_ranker_never_sees_the_length_that_is_replayed(tokens, aged):
    """Other true lengths, the same keys."""
    contender = Contender.parse("ranker@30" if aged else "ranker")
    others = [replace(it, output_tokens=n) for it, n in zip(REQUESTS, tokens, strict=True)]
    calibration = Calibration((0.0, 1.0), (10.0, 1000.0))
    scores = [0.1, 0.9, 0.5]

    keys = keys_of(contender, REQUESTS, scores, calibration)
    assert keys_of(contender, others, scores, calibration) == keys


def test_a_clients_limit_bounds_what_the_ranker_expects():
    """900 tokens expected, 600 allowed: less than the 700 of the one that may have 900."""
    calibration = Calibration((0.0, 1.0), (0.0, 1000.0))

    assert order("ranker", (SHORT, LONG), scores=[0.7, 0.9], calibration=calibration) == [
        "long",
        "short",
    ]


@given(first=st.integers(1, 5000), second=st.integers(1, 5000), later_s=st.floats(30.0, 1e6))
def test_with_aging_nobody_is_passed_by_one_who_comes_that_much_later(first, second, later_s):
    """30 seconds, whatever both lengths are."""
    requests = [
        replace(SHORT, output_tokens=first),
        replace(LONG, output_tokens=second, arrival_s=later_s),
    ]
    keys = keys_of(Contender.parse("oracle@30"), requests)

    assert keys[0] < keys[1]


def test_fcfs_goes_by_arrival_alone():
    """Who comes together has one key, so that the engine's own order decides; later is larger."""
    keys = keys_of(Contender.parse("fcfs"), [*REQUESTS, replace(SHORT, arrival_s=0.5)])

    assert keys == [keys[0], keys[0], keys[0], keys[0] + 500_000]


@pytest.mark.parametrize(
    "text", [*NAMES, "oracle@0", "ranker@30", "reversed@2.5", "oracle@1.5x", "ranker:own@2x"]
)
def test_a_policy_is_spelled_as_it_was_parsed(text):
    """The spelling names it in results."""
    assert str(Contender.parse(text)) == text


def test_infinite_aging_is_none():
    """`@inf` is the plain order."""
    assert str(Contender.parse("oracle@inf")) == "oracle"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sjf", "'sjf' is none of fcfs, ranker, online, oracle"),
        ("fcfs@30", "fcfs is without aging"),
        ("oracle@soon", "after @ come seconds"),
        ("oracle@-1", "after @ come seconds"),
        ("oracle@0.5x", "before x comes a ratio from 1 on"),
        ("oracle@twicex", "before x comes a ratio from 1 on"),
        ("fcfs@2x", "fcfs is without aging"),
    ],
)
def test_a_policy_that_is_none_is_named(text, problem):
    """With what would be right."""
    with pytest.raises(ParsError, match=problem):
        Contender.parse(text)


def test_what_a_policy_needs_and_does_not_find_is_said():
    """Scores for the ranker, limits for max-tokens."""
    nameless = [replace(SHORT, prompt=None, max_tokens=None)]

    with pytest.raises(ParsError, match="policy ranker: there are no scores"):
        keys_of(Contender.parse("ranker"), nameless)
    with pytest.raises(ParsError, match="no request of the workload has max_tokens"):
        keys_of(Contender.parse("max-tokens"), nameless)


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [("orcale@30", "oracle"), ("Ranker", "ranker"), ("max_tokens", "max-tokens")],
)
def test_a_misspelt_policy_is_met_with_the_right_name(spelled: str, meant: str) -> None:
    """Beside all that there are."""
    with pytest.raises(ParsError, match=rf"did you mean {meant}\?"):
        Contender.parse(spelled)
