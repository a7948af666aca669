"""
Corrects what is expected of answers by what answers really turned out to be.

    hindsight = Hindsight()
    answer = hindsight.answer(300.0)         # expected 300 tokens; what came of such before
    answer.mean, answer.typical              # 180.0 tokens on average, most are below
    hindsight.learn(300.0, 140.0)            # what became of it

A line through the logarithms of expected and true tokens (least squares, with forgetting). Where
predictions say little the line is flat, so that all are expected to take the mean: an order by them
moves nobody far. Where they are upside down it falls, and the order is turned round. Where they
say nothing at all, as far as can be told, nobody should be ordered by them: `is_useful`.

Until answers have come predictions count as told. It takes and tells no more than eight numbers.
"""

import math
from typing import NamedTuple

HALF_LIFE = 2000.0  # answers after which one counts half
AS_TOLD = 32.0  # answers that it takes to weigh as much as the predictor's own word
LEAST_SEEN = 128.0  # answers before predictions can count as useless
LEAST_EVIDENCE = 16.0  # of a correlation, by its square times the answers: four standard errors
LEAST_SPREAD = 0.05  # variance of log tokens; answers that are more alike need no prediction
MOST_LOG = 20.0  # of tokens: beyond any answer


class Answer(NamedTuple):
    """
    How long an answer will be, in tokens.

    Attributes:
        mean: On average: what it takes of the engine.
        typical: 1 over the mean of 1 / tokens: what it weighs in time per token. At most the mean.
    """

    mean: float
    typical: float


class Hindsight:
    """
    What came of predictions, as a line through their logarithms.

    O(1) a request in time and in memory. On one thread.

    Attributes:
        num_seen: Answers that count, older ones for less.
        mean_expected, mean_beyond: Of log expected, and of log true minus log expected.
        spread_expected, joint, spread_beyond: Sums of squares and products from these means.
    """

    def __init__(self) -> None:
        self.num_seen = 0.0
        self.mean_expected = self.mean_beyond = 0.0
        self.spread_expected = self.joint = self.spread_beyond = 0.0
        self._level, self._slope, self._variance = 0.0, 0.0, 0.0
        self.is_useful = True

    def learn(self, expected: float, came: float) -> None:
        """
        An answer ended.

        Args:
            expected, came: Tokens, finite; below 1 they count as 1.
        """
        at = math.log(max(expected, 1.0))
        beyond = math.log(max(came, 1.0)) - at
        keep = 0.5 ** (1 / HALF_LIFE)
        self.num_seen = keep * self.num_seen + 1
        off_at, off_beyond = at - self.mean_expected, beyond - self.mean_beyond
        self.mean_expected += off_at / self.num_seen
        self.mean_beyond += off_beyond / self.num_seen
        now_at = at - self.mean_expected
        self.spread_expected = keep * self.spread_expected + off_at * now_at
        self.joint = keep * self.joint + off_beyond * now_at
        self.spread_beyond = keep * self.spread_beyond + off_beyond * (beyond - self.mean_beyond)
        self._fit()

    def answer(self, expected: float, most: float = math.inf) -> Answer:
        """
        What an answer of which so much is expected will be.

        Args:
            expected: Tokens.
            most: Tokens that it cannot exceed. What is expected to reach it says nothing about the
                predictor, and is left as it is.
        """
        if expected >= most:
            return Answer(expected, expected)
        at = math.log(max(expected, 1.0))
        middle = at + self._level + self._slope * (at - self.mean_expected)
        mean = math.exp(min(max(middle + self._variance / 2, 0.0), MOST_LOG))
        typical = math.exp(min(max(middle - self._variance / 2, 0.0), MOST_LOG))
        return Answer(min(mean, most), min(typical, most))

    def _fit(self) -> None:
        """The line, drawn towards the predictor's own word while little is known."""
        weight = self.num_seen / (self.num_seen + AS_TOLD)
        self._level = weight * self.mean_beyond
        self._slope = self.joint / (self.spread_expected + AS_TOLD)
        left = self.spread_beyond - 2 * self._slope * self.joint
        left += self._slope**2 * self.spread_expected
        self._variance = weight * max(0.0, left) / self.num_seen
        spread_came = self.spread_expected + 2 * self.joint + self.spread_beyond
        along = self.spread_expected + self.joint
        evidence = LEAST_EVIDENCE * self.spread_expected * spread_came
        self.is_useful = (
            self.num_seen < LEAST_SEEN
            or spread_came < LEAST_SPREAD * self.num_seen
            or along**2 * self.num_seen > evidence
        )
