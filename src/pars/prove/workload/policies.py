"""
Policies: who goes first. A policy turns a workload into one integer a request, smaller first.

    policy = Policy.parse("oracle@30")                  # true lengths, at most 30 s of overtaking
    priorities = policy.keys(workload.requests)         # what X-Vllm-Priority would carry
    priorities = Policy.parse("ranker").keys(requests, scores, Calibration.of(ranker.info))

Of several rankers each has a name: `ranker:NAME`. `NAME` alone orders by cost whatever the age (as
`--max-overtake-s inf`); `NAME@SECONDS` is linear aging with that bound (docs/serving.md).
Priorities are static, from the same `scheduling.priority` as in the gateway. The ranker's see
the prompt and the client's limit, never the true length.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pars.errors import ParsError
from pars.prove.workload.workload import WorkloadRequest
from pars.request.prompts import GenerationRequest, Prompt
from pars.scheduling.priority import (
    EPOCH_S,
    LONG_QUANTILE,
    MAX_RANGE_S,
    Calibration,
    PriorityPolicy,
    cost_tokens,
)

NAMES = {
    "fcfs": "first come, first served",
    "ranker": "expected length by a ranker",
    "oracle": "true length",
    "prompt-length": "tokens of the prompt",
    "max-tokens": "the client's own limit",
    "reversed": "true length, longest first: the worst case",
}
NO_LIMIT_TOKENS = 1 << 20  # what a request without max_tokens is taken to ask for


@dataclass(frozen=True, slots=True)
class Policy:
    """
    One way to order requests.

    Attributes:
        name: One of NAMES.
        max_overtake_s: A request is overtaken only by those that arrive within this time after it;
            infinity is order by cost alone.
        max_slowdown: R, of `scheduling.slowdown`, in place of seconds.
        which: Which ranker, by the name it was given; "" is the only or the default one.
    """

    name: str
    max_overtake_s: float = math.inf
    which: str = ""
    max_slowdown: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Policy":
        """
        The policy spelled NAME, NAME@SECONDS or NAME@RATIOx, where NAME may be ranker:WHICH.

        Raises:
            ParsError: the name is unknown, the seconds are no number from 0 on, the ratio none from
                1 on, or fcfs has any.
        """
        spelled, at, seconds = text.strip().partition("@")
        name, colon, which = spelled.partition(":")
        if name not in NAMES or (colon and (name != "ranker" or not which)):
            raise ParsError(f"policy {text!r}: {spelled!r} is none of {', '.join(NAMES)}")
        if not at:
            return cls(name, which=which)
        if name == "fcfs":
            raise ParsError(f"policy {text!r}: fcfs is without aging; write fcfs")
        if seconds.endswith("x"):
            return cls(name, which=which, max_slowdown=_ratio(text, seconds))
        try:
            max_overtake_s = float(seconds)
        except ValueError:
            max_overtake_s = math.nan
        if not (0 <= max_overtake_s <= MAX_RANGE_S or max_overtake_s == math.inf):
            raise ParsError(
                f"policy {text!r}: after @ come seconds from 0 to {MAX_RANGE_S:.0f}, as in"
                f" {name}@30"
            )
        return cls(name, max_overtake_s, which)

    def __str__(self) -> str:
        spelled = f"{self.name}:{self.which}" if self.which else self.name
        if self.max_slowdown is not None:
            return f"{spelled}@{self.max_slowdown:g}x"
        return spelled if math.isinf(self.max_overtake_s) else f"{spelled}@{self._seconds}"

    @property
    def _seconds(self) -> str:
        return f"{self.max_overtake_s:.6f}".rstrip("0").rstrip(".")

    @property
    def needs_scores(self) -> bool:
        """Whether the keys come from a ranker's scores."""
        return self.name == "ranker"

    def keys(
        self,
        requests: Sequence[WorkloadRequest],
        scores: Sequence[float] | None = None,
        calibration: Calibration | None = None,
    ) -> list[int]:
        """
        The priority of each request, smaller first; with aging, `arrival_s` is the clock.

        Args:
            scores: [num_requests], of the requests' prompts; for `ranker` only.
            calibration: The ranker's, from score to expected tokens.

        Raises:
            ParsError: scores are missing, or no request has the field that the policy reads.
        """
        key_of = self.fitted(requests, calibration)
        return [
            key_of(request, None if scores is None else float(scores[row]))
            for row, request in enumerate(requests)
        ]

    def fitted(
        self, requests: Iterable[WorkloadRequest], calibration: Calibration | None = None
    ) -> "KeyOf":
        """Look at the workload once, and be ready to give each request's key."""
        if self.name == "fcfs":
            return KeyOf(self, calibration or Calibration(), 1.0, 0.0)
        if self.needs_scores:
            calibration = calibration or Calibration()
            return KeyOf(self, calibration, calibration.long_tokens, 0.0)
        costs = Counter(round(_cost(self.name, request)) for request in requests)
        if self.name == "max-tokens" and set(costs) <= {NO_LIMIT_TOKENS}:
            raise ParsError("policy max-tokens: no request of the workload has max_tokens")
        longest = max(costs, default=0)
        if self.name == "reversed":
            costs = Counter({longest - cost: count for cost, count in costs.items()})
        return KeyOf(self, Calibration(), max(1.0, _quantile(costs)), float(longest))


class KeyOf:
    """
    A policy that knows its workload: `key_of(request, score)` is the request's priority.

    Args:
        long_tokens: Cost from which a request counts as long: the ranker's calibration knows it;
            for every other policy it is the 0.9 quantile of its own costs.
        longest: The largest cost, from which `reversed` counts down.
    """

    __slots__ = ("calibration", "long_tokens", "longest", "policy", "priority")

    def __init__(
        self, policy: Policy, calibration: Calibration, long_tokens: float, longest: float
    ) -> None:
        self.policy = policy
        self.calibration = calibration
        self.long_tokens = long_tokens
        self.longest = longest
        self.priority = PriorityPolicy(max_overtake_s=policy.max_overtake_s)

    def __call__(self, request: WorkloadRequest, score: float | None = None) -> int:
        if self.policy.name == "fcfs":
            return 0
        cost = self.cost(request, score)
        return self.priority.key(cost, EPOCH_S + request.arrival_s, long_tokens=self.long_tokens)

    def cost(self, request: WorkloadRequest, score: float | None = None) -> float:
        """What the policy orders the request by."""
        name = self.policy.name
        if name == "ranker":
            return self._ranker_cost(request, score)
        if name == "reversed":
            return max(0.0, self.longest - _cost(name, request))
        return _cost(name, request)

    def _ranker_cost(self, request: WorkloadRequest, score: float | None) -> float:
        if request.prompt is None or score is None:
            raise ParsError(
                f"policy {self.policy}: request {request.request_id} has no prompt to score"
                " (the workload comes from a trace of lengths alone)"
                if request.prompt is None
                else f"policy {self.policy}: there are no scores"
            )
        return _answer_cost(request, self.calibration.expected_tokens(score), request.max_tokens)


def _ratio(text: str, spelled: str) -> float:
    try:
        ratio = float(spelled.removesuffix("x"))
    except ValueError:
        ratio = math.nan
    if not ratio >= 1:
        raise ParsError(f"policy {text!r}: before x comes a ratio from 1 on, as in oracle@1.5x")
    return ratio


def _cost(name: str, request: WorkloadRequest) -> float:
    if name == "prompt-length":
        return float(request.prompt_tokens)
    if name == "max-tokens":
        return float(request.max_tokens or NO_LIMIT_TOKENS)
    return _answer_cost(request, float(request.output_tokens), None)


def _answer_cost(request: WorkloadRequest, expected_tokens: float, max_tokens: int | None) -> float:
    prompt = Prompt(request.prompt, request.prompt_tokens)
    return cost_tokens(GenerationRequest((prompt,), max_tokens), [expected_tokens])


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
