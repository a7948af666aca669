"""
Contenders: who goes first, as `--policies` spells it: what is known of a request, and a policy.

    contender = Contender.parse("oracle@30")            # true lengths, at most 30 s of overtaking
    Contender.parse("ranker:mine@1.33x").policy         # MaxSlowdown(1.33)
    contender.fitted(requests)                          # what it knows of each: `line` gives keys

Of several rankers each has a name, `ranker:NAME`, and so have the scores of another system, `NAME`.
A name alone orders by cost whatever the age; `NAME@SECONDS` and `NAME@RATIOx` have a bound. The
policies are those of `scheduling.policies`, as in the gateway. The ranker's see the prompt and the
client's limit, never the true length.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from pars.errors import ParsError
from pars.prove.workload.learning import LearningEstimator
from pars.prove.workload.workload import WorkloadRequest
from pars.request.prompts import Prompt, Request
from pars.scheduling.demand import LONG_QUANTILE, Calibration, Demand, demand_of
from pars.scheduling.policies.fcfs import FCFS
from pars.scheduling.policies.policy import Policy
from pars.scheduling.policies.shortest_first import MAX_RANGE_S, ShortestFirst
from pars.scheduling.policies.spelled import policy_of

NAMES = {
    "fcfs": "first come, first served",
    "ranker": "expected length by a ranker",
    "online": "expected length by a ranker that learns as answers end",
    "oracle": "true length",
    "prompt-length": "tokens of the prompt",
    "max-tokens": "the client's own limit",
    "reversed": "true length, longest first: the worst case",
}
SCORES = "scores"  # of another system, by name
NO_LIMIT_TOKENS = 1 << 20  # what a request without max_tokens is taken to ask for
NOTHING_KNOWN = Demand(0.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """
    One way to order requests.

    Attributes:
        by: What is known of them: one of NAMES, or SCORES.
        policy: What orders them by it.
        which: Which ranker or scores, by the name given; "" is the only or the default ranker.
    """

    by: str
    policy: Policy
    which: str = ""

    @classmethod
    def parse(cls, text: str, scores: Collection[str] = ()) -> "Contender":
        """
        The contender spelled NAME, NAME@SECONDS or NAME@RATIOx, where NAME may be ranker:WHICH.

        Args:
            scores: More names: of scores of another system.

        Raises:
            ParsError: the name is unknown, the seconds are no number from 0 on, the ratio none from
                1 on, or fcfs has any.
        """
        spelled, at, bound = text.strip().partition("@")
        by, colon, which = spelled.partition(":")
        if by not in NAMES or (colon and (by != "ranker" or not which)):
            if spelled not in scores:
                known = list(dict.fromkeys([*NAMES, *scores]))
                near = get_close_matches(spelled.lower().replace("_", "-"), known, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                told = f"policy {text!r}: {spelled!r} is none of {', '.join(known)}{hint}"
                raise ParsError(told)
            by, which = SCORES, spelled
        if by == "fcfs":
            if at:
                raise ParsError(f"policy {text!r}: fcfs is without aging; write fcfs")
            return cls(by, FCFS())
        return cls(by, _bounded(text, by, bound) if at else ShortestFirst(), which)

    def __str__(self) -> str:
        return self.known + self.policy.suffix

    @property
    def known(self) -> str:
        """What it orders by, as spelled: "oracle", "ranker:mine", or the name of scores."""
        if self.by == SCORES:
            return self.which
        return f"{self.by}:{self.which}" if self.which else self.by

    @property
    def needs_scores(self) -> bool:
        """Whether it orders by scores, a ranker's or another system's."""
        return self.by in ("ranker", SCORES)

    def fitted(
        self, requests: Iterable[WorkloadRequest], calibration: Calibration | None = None
    ) -> "Estimator | LearningEstimator":
        """Look at the workload once, and be ready to say what each request takes."""
        if self.by == "online":
            return LearningEstimator()
        if self.by == "fcfs":
            return Estimator(self, Calibration(), 1.0, 0.0)
        if self.needs_scores:
            calibration = calibration or Calibration()
            return Estimator(self, calibration, calibration.long_tokens, 0.0)
        costs = Counter(round(_known(self.by, request).cost) for request in requests)
        if self.by == "max-tokens" and set(costs) <= {NO_LIMIT_TOKENS}:
            raise ParsError("policy max-tokens: no request of the workload has max_tokens")
        longest = max(costs, default=0)
        if self.by == "reversed":
            costs = Counter({longest - cost: count for cost, count in costs.items()})
        return Estimator(self, Calibration(), max(1.0, _quantile(costs)), float(longest))


@dataclass(frozen=True, slots=True)
class Estimator:
    """
    What a contender knows of each request of its workload.

    Attributes:
        long_tokens: Cost from which a request counts as long: the ranker's calibration knows it;
            for every other it is the 0.9 quantile of its own costs.
        longest: The largest cost, from which `reversed` counts down.
    """

    contender: Contender
    calibration: Calibration
    long_tokens: float
    longest: float

    def demand(self, request: WorkloadRequest, score: float | None = None) -> Demand:
        """
        What the request is expected to take.

        Raises:
            ParsError: a ranker orders, and there is no prompt or no score.
        """
        by = self.contender.by
        if self.contender.needs_scores:
            return self._by_score(request, score)
        if by == "reversed":
            cost = max(0.0, self.longest - _known(by, request).cost)
            return Demand(cost, cost)
        return _known(by, request)

    @property
    def is_ordered(self) -> bool:
        """Whether anything is known of the requests."""
        return True

    def learn(self, request_id: str, answer_tokens: int | None) -> None:
        """A request ended; nothing is learned from it."""

    def _by_score(self, request: WorkloadRequest, score: float | None) -> Demand:
        if score is None:
            raise ParsError(f"policy {self.contender}: there are no scores")
        return _answer(request, self.calibration.expected_tokens(score), request.max_tokens)


def _bounded(text: str, by: str, bound: str) -> Policy:
    """The policy of what stands behind the @."""
    try:
        return policy_of(bound)
    except (ValueError, ParsError):
        if bound.endswith("x"):
            want = "before x comes a ratio from 1 on, as in oracle@1.33x"
        else:
            want = f"after @ come seconds from 0 to {MAX_RANGE_S:.0f}, as in {by}@30"
        raise ParsError(f"policy {text!r}: {want}") from None


def _known(by: str, request: WorkloadRequest) -> Demand:
    if by == "fcfs":
        return NOTHING_KNOWN
    if by == "prompt-length":
        return Demand(float(request.prompt_tokens), float(request.prompt_tokens))
    if by == "max-tokens":
        limit = float(request.max_tokens or NO_LIMIT_TOKENS)
        return Demand(limit, limit + request.prompt_tokens)
    return _answer(request, float(request.output_tokens), None)


def _answer(request: WorkloadRequest, expected_tokens: float, max_tokens: int | None) -> Demand:
    prompt = Prompt(request.prompt, request.prompt_tokens)
    return demand_of(Request((prompt,), max_tokens), [expected_tokens])


def _quantile(costs: Counter[int]) -> float:
    """The LONG_QUANTILE of counted whole costs, of those with a limit."""
    counted = sorted(item for item in costs.items() if item[0] < NO_LIMIT_TOKENS)
    wanted = LONG_QUANTILE * sum(count for _, count in counted)
    seen = 0
    for cost, count in counted:
        seen += count
        if seen >= wanted:
            return float(cost)
    return 1.0
