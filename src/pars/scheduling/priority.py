"""
From an expected answer length to the one integer that orders an engine's queue. Pure functions.

    key = ticks(arrival) + ticks(cost),   0 <= cost < max_overtake_s,   smaller first

The key never changes while the request waits, yet it is exact linear aging: of two that wait,
`c_i - (now - t_i) < c_j - (now - t_j)` and `c_i + t_i < c_j + t_j` are the same comparison. And it
bounds waiting: what arrives `max_overtake_s` or more after a request has no smaller key, however
short it is. docs/serving.md has the proof, the clocks and the choice of the constants.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pars.request.prompts import GenerationRequest

EPOCH_S = 1_767_225_600.0  # 2026-01-01T00:00:00Z, the same for every gateway of an engine
DEFAULT_MAX_OVERTAKE_S = 30.0
MAX_OFFSET_S = 10_000_000.0  # 115 days: longer than any queue, and far from any overflow
MAX_RANGE_S = 1e9

# Of the work of an answer token. Where there is a queue, batches are full: an 8B model on an H100
# takes 0.035 ms a prompt token, and 10 ms for a token to each of 256 answers, 0.04 ms a token.
PROMPT_TOKEN_WORK = 1.0

# Answers expected to be among the longest tenth share the last twentieth of the range, so that the
# rest of it separates the short from the middling. (docs/serving.md: measured against other curves)
LONG_QUANTILE = 0.9
LONG_SHARE = 0.05

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "neutral_tokens", self.at_quantile(0.5))
        object.__setattr__(self, "long_tokens", max(1.0, self.at_quantile(LONG_QUANTILE)))

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

    def at_quantile(self, quantile: float) -> float:
        """Expected answer tokens of the validation prompt at `quantile`, 0 to 1."""
        position = min(max(quantile, 0.0), 1.0) * (len(self.tokens) - 1)
        low = min(int(position), len(self.tokens) - 2)
        return self.tokens[low] + (position - low) * (self.tokens[low + 1] - self.tokens[low])


class Demand(NamedTuple):
    """
    What a request is expected to take, in answer tokens.

    Attributes:
        cost: What it is ordered by.
        work: What it takes of the engine.
    """

    cost: float
    work: float


def cost_tokens(
    request: GenerationRequest, expected_tokens: Sequence[float], *, obey_limits: bool = True
) -> float:
    """The cost of `demand_of`."""
    return demand_of(request, expected_tokens, obey_limits=obey_limits).cost


def demand_of(
    request: GenerationRequest, expected_tokens: Sequence[float], *, obey_limits: bool = True
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
    answers = work = 0.0
    for prompt, tokens in zip(request.prompts, expected_tokens, strict=True):
        tokens = max(tokens, 1.0)  # no answer is shorter, however long its prompt
        answer = min(max(tokens, request.min_tokens), limit) if obey_limits else tokens
        num_answers = request.num_answers * prompt.num_prompts
        answers += num_answers * answer
        work += num_answers * answer + PROMPT_TOKEN_WORK * prompt.num_tokens
    return Demand(math.sqrt(answers * work), work)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityPolicy:
    """
    Turns costs and arrival times into keys.

    Attributes:
        max_overtake_s: A request can be overtaken only by requests that arrive within this many
            seconds after it. 0 is first come, first served; infinity is shortest first.
        bits: 64 counts microseconds from the epoch (safe for 292,000 years, and exact in a double
            until 2311); 32 counts tenths of a second from -2**31 (until 2039, then saturated).
        larger_first: The engine takes larger values first: the key is negated.
    """

    max_overtake_s: float = DEFAULT_MAX_OVERTAKE_S
    bits: int = 64
    larger_first: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.max_overtake_s <= MAX_RANGE_S or self.max_overtake_s == math.inf):
            raise ValueError(
                f"max_overtake_s must be from 0 to {MAX_RANGE_S:.0f}, or inf,"
                f" not {self.max_overtake_s}"
            )
        if self.bits not in (32, 64):
            raise ValueError(f"bits must be 32 or 64, not {self.bits}")

    def key(
        self, cost: float, arrival_s: float, *, long_tokens: float, offset_s: float = 0.0
    ) -> int:
        """
        The request's priority. Never raises for finite `cost` >= 0 and `arrival_s`.

        Args:
            cost: Expected cost in tokens.
            arrival_s: Unix time.
            long_tokens: Cost from which a request counts as long.
            offset_s: Seconds to pretend the request came later (or, negative, earlier); tokens
                when `max_overtake_s` is infinite.
        """
        ticks_per_s = self._ticks_per_s
        offset_s = min(max(offset_s, -MAX_OFFSET_S), MAX_OFFSET_S)
        if math.isinf(self.max_overtake_s):
            since_s, added = offset_s, int(min(cost, MAX_OFFSET_S) * ticks_per_s)
        else:
            # Whole ticks on both sides, so that no rounding can break the bound.
            since_s = arrival_s - EPOCH_S + offset_s
            range_ticks = math.floor(self.max_overtake_s * ticks_per_s)
            share = cost_share(cost, long_tokens)
            added = min(int(share * range_ticks), max(range_ticks - 1, 0))
        return self._in_range(math.floor(since_s * ticks_per_s) + added)

    def key_at(self, since_epoch_s: float) -> int:
        """The key of a place in seconds since EPOCH_S, whatever the request costs."""
        return self._in_range(math.floor(since_epoch_s * self._ticks_per_s))

    @property
    def _ticks_per_s(self) -> int:
        return 1_000_000 if self.bits == 64 else 10

    def _in_range(self, ticks: int) -> int:
        key = ticks if self.bits == 64 else ticks - (1 << 31)
        limit = (1 << (self.bits - 1)) - 1  # -limit too, so that a negated key is in range
        key = min(max(key, -limit), limit)
        return -key if self.larger_first else key


def cost_share(cost: float, long_tokens: float) -> float:
    """
    `cost` as a share of the overtaking range: from 0 towards 1, strictly rising.

    Linear up to `long_tokens`, which is 0.95; then 0.95 + 0.05 * (1 - long_tokens / cost).
    """
    if cost <= long_tokens:
        return (1 - LONG_SHARE) * cost / long_tokens
    return 1 - LONG_SHARE * long_tokens / cost


def _logistic(score: float) -> float:
    return 1 / (1 + math.exp(-min(max(score, -50.0), 50.0)))


def _rising(values: Sequence[float]) -> tuple[float, ...]:
    """The running maximum: a damaged calibration must not turn the order round."""
    highest, rising = 0.0, []
    for value in values:
        highest = max(highest, value)
        rising.append(highest)
    return tuple(rising)
