"""
What a request is expected to take, in answer tokens: from a ranker's score to cost and work.

    tokens = Calibration.of(ranker.info).expected_tokens(score)
    demand = demand_of(request, [tokens])                    # what `policies` order by
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import NamedTuple, Protocol

from pars.request.prompts import Request

# Of the work of an answer token. Where there is a queue, batches are full: an 8B model on an H100
# takes 0.035 ms a prompt token, and 10 ms for a token to each of 256 answers, 0.04 ms a token.
PROMPT_TOKEN_WORK = 1.0

LONG_QUANTILE = 0.9  # of the answers that are expected: from here on one counts as long

# A ranker without calibration gives an order only; its quantiles are spread over these lengths.
ASSUMED_RANGE_TOKENS = (16.0, 2048.0)


def _assumed(num_points: int) -> tuple[float, ...]:
    """Token counts at evenly spaced quantiles, if lengths are spread evenly in the logarithm."""
    low, high = ASSUMED_RANGE_TOKENS
    return tuple(low * (high / low) ** (i / (num_points - 1)) for i in range(num_points))


class RankerFacts(Protocol):
    """The part of `pars.ranking.ranker.RankerInfo` read here."""

    @property
    def score_quantiles(self) -> list[float] | None: ...

    @property
    def expected_tokens(self) -> list[float] | None: ...


@dataclass(frozen=True, slots=True)
class Calibration:
    """
    Expected answer tokens for a score, monotone: straight lines through known points.

    Attributes:
        scores: Rising scores, or () to take the score's logistic as its quantile.
        tokens: Expected answer tokens at each score; with `scores` (), at evenly spaced quantiles.
        neutral_tokens: What a request without a score is expected to take: the middle answer.
        long_tokens: From here on an answer counts as long.
    """

    scores: tuple[float, ...] = ()
    tokens: tuple[float, ...] = _assumed(101)
    neutral_tokens: float = field(init=False)
    long_tokens: float = field(init=False)
    _mean_score: float = field(init=False, repr=False)
    _score_deviation: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "neutral_tokens", self.at_quantile(0.5))
        object.__setattr__(self, "long_tokens", max(1.0, self.at_quantile(LONG_QUANTILE)))
        object.__setattr__(self, "_mean_score", fmean(self.scores or (0.0,)))
        object.__setattr__(self, "_score_deviation", pstdev(self.scores or (0.0,)) or 1.0)

    @classmethod
    def of(cls, facts: RankerFacts) -> "Calibration":
        """The ranker's own calibration; without one, its quantiles over an assumed range."""
        scores, tokens = facts.score_quantiles, facts.expected_tokens
        if not scores or len(scores) < 2:
            return cls()
        if not tokens or len(tokens) != len(scores):
            tokens = list(_assumed(len(scores)))
        points = sorted(zip(scores, tokens, strict=True))
        return cls(tuple(s for s, _ in points), _rising([max(0.0, t) for _, t in points]))

    @classmethod
    def of_scores(cls, scores: Iterable[float]) -> "Calibration":
        """Of scores in a scale of their own: spread by their rank over an assumed range."""
        quantiles = _quantiles(scores)
        return cls(quantiles, _assumed(len(quantiles))) if quantiles else cls()

    @classmethod
    def of_pairs(cls, tokens_at: Mapping[float, float]) -> "Calibration":
        """Of scores, two or more, with the expected tokens at each; a hundred and one are kept."""
        scores = sorted(tokens_at)
        points = [scores[round(it * (len(scores) - 1) / 100)] for it in range(101)]
        return cls(tuple(points), _rising([max(0.0, tokens_at[it]) for it in points]))

    @classmethod
    def of_tokens(cls, tokens: Iterable[float]) -> "Calibration":
        """Of numbers that are expected tokens already: each stands for itself."""
        quantiles = _quantiles(max(0.0, it) for it in tokens)
        return cls(quantiles, quantiles) if quantiles else cls()

    def expected_tokens(self, score: float) -> float:
        """Expected answer tokens at a finite `score`; beyond the known range, those at its end."""
        if not self.scores:
            return self.at_quantile(_logistic(score))
        high = bisect_right(self.scores, score)
        if high == 0 or high == len(self.scores):
            return self.tokens[min(high, len(self.tokens) - 1)]
        low = high - 1
        part = (score - self.scores[low]) / (self.scores[high] - self.scores[low])
        return self.tokens[low] + part * (self.tokens[high] - self.tokens[low])

    def standard(self, score: float) -> float:
        """The score in standard deviations from the mean of the known ones, -3 to 3."""
        return min(max((score - self._mean_score) / self._score_deviation, -3.0), 3.0)

    def at_quantile(self, quantile: float) -> float:
        """Expected answer tokens of the validation prompt at `quantile`, 0 to 1."""
        position = min(max(quantile, 0.0), 1.0) * (len(self.tokens) - 1)
        low = min(int(position), len(self.tokens) - 2)
        return self.tokens[low] + (position - low) * (self.tokens[low + 1] - self.tokens[low])


class Demand(NamedTuple):
    """
    What a request is expected to take, in answer tokens.

    Attributes:
        cost: What it is ordered by, 0 or more.
        work: What it takes of the engine.
        most: That its answers can be, by the request's own limit.
    """

    cost: float
    work: float
    most: float = math.inf

    @property
    def answers(self) -> float:
        """Of the work, the tokens of its answers; what is left is the prompt's."""
        return min(self.cost * self.cost / self.work, self.work) if self.work > 0 else 0.0


def demand_of(
    request: Request, expected_tokens: Sequence[float], *, obey_limits: bool = True
) -> Demand:
    """
    What the request is expected to take; the prompts of a list add up.

    The root of answer * (answer + prompt), by Smith's rule (1956, doi:10.1002/nav.3800030106): a
    weighted mean of completion times is least in the order of work over weight. The work is that of
    answer and prompt, and time per answer token weighs a request by 1 / answer. Without a prompt it
    is the answer's length. (docs/serving.md: measured against weighted sums)

    Args:
        expected_tokens: For each prompt, of one answer.
        obey_limits: Keep each answer between the request's min_tokens and max_tokens.
    """
    limit = math.inf if request.max_tokens is None else request.max_tokens
    answers = work = most = 0.0
    for prompt, tokens in zip(request.prompts, expected_tokens, strict=True):
        tokens = max(tokens, 1.0)  # no answer is shorter, however long its prompt
        answer = min(max(tokens, request.min_tokens), limit) if obey_limits else tokens
        num_answers = request.num_answers * prompt.num_prompts
        answers += num_answers * answer
        most += num_answers * limit
        work += num_answers * answer + PROMPT_TOKEN_WORK * prompt.num_tokens
    return Demand(cost_of(answers, work), work, most if obey_limits else math.inf)


def cost_of(answers: float, work: float) -> float:
    """What a request is ordered by, of the tokens of its answers and its work."""
    return math.sqrt(answers * work)


def _quantiles(values: Iterable[float]) -> tuple[float, ...]:
    """At 0, 0.01, … 1; none of fewer than two values."""
    known = sorted(values)
    if len(known) < 2:
        return ()
    found = []
    for percent in range(101):
        position = percent / 100 * (len(known) - 1)
        low = min(int(position), len(known) - 2)
        found.append(known[low] + (position - low) * (known[low + 1] - known[low]))
    return tuple(found)


def _logistic(score: float) -> float:
    return 1 / (1 + math.exp(-min(max(score, -50.0), 50.0)))


def _rising(values: Sequence[float]) -> tuple[float, ...]:
    """The running maximum: a damaged calibration must not turn the order round."""
    highest, rising = 0.0, []
    for value in values:
        highest = max(highest, value)
        rising.append(highest)
    return tuple(rising)
