"""A policy in front of a simulated or live engine: what it is told, and when."""

from pars.prove.workload.contenders import Contender
from pars.prove.workload.line import START_S, Line
from pars.prove.workload.workload import WorkloadRequest
from pars.scheduling.policies.max_slowdown import MaxSlowdown
from pars.scheduling.policies.policy import Place, Policy

REQUEST = WorkloadRequest("a", 2.0, "prompt", 30, 10)


class Told(Policy):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.heard = []

    def place(self, demand, arrival_s, *, long_tokens, offset_s=0.0, is_ordered=True):
        self.heard.append(("place", demand, arrival_s, is_ordered))
        return Place(7)

    def began(self, place):
        self.heard.append(("began", place.key))

    def ended(self, place, now_s):
        self.heard.append(("ended", place.key, now_s))

    def correct(self, place, true_work, answers=None):
        self.heard.append(("correct", place.key, true_work, answers))


def test_a_policy_hears_arrival_first_token_end_and_the_true_work():
    """The true work is the answer's tokens and the prompt's, 10 + 30."""
    policy, oracle = Told(), Contender.parse("oracle")
    estimator = oracle.fitted([REQUEST])
    line = Line(policy, estimator)

    assert line.key(REQUEST) == 7
    line.began("a")
    line.ended("a", 3.5, answer_tokens=10, prompt_tokens=30)

    assert policy.heard == [
        ("place", estimator.demand(REQUEST), START_S + 2.0, True),
        ("began", 7),
        ("ended", 7, 3.5),
        ("correct", 7, 40.0, 10),
    ]


def test_an_answer_that_never_came_corrects_nothing():
    """A request that failed is done, and nobody knows what it would have taken."""
    policy = Told()
    line = Line(policy, Contender.parse("oracle").fitted([REQUEST]))
    line.key(REQUEST)
    line.ended("a", 3.5, answer_tokens=None, prompt_tokens=30)

    assert [name for name, *_ in policy.heard] == ["place", "ended"]


def test_each_line_has_a_policy_of_its_own():
    """What one queue's express lane knows says nothing of another queue."""
    contender = Contender.parse("oracle@2x")
    first = Line(contender.policy, contender.fitted([REQUEST]))
    first.key(REQUEST)

    assert isinstance(contender.policy, MaxSlowdown)
    assert contender.policy.num_waiting == 0
