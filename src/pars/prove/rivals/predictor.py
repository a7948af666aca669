"""
What a predictor is for the leaderboard: it learns from answered requests, and predicts others.

    predictor.fit(training)
    told = predictor.predict(held_out)           # told.scores [num_requests], higher for longer

A predictor sees of a request what a server sees when it comes: never `tokens`, unless it learns as
answers come (`rivals.online`), which it then hears after its prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pars.request.features import Signals

FloatArray = NDArray[np.float64]
COVERAGE = 0.8  # of the answers that are meant to lie between `low` and `high`


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """
    A request of a log, and how long its answer became.

    Attributes:
        prompt: With the note of what came before it, where the log tells that.
        tokens: Of the answer; of one that was cut short, at least so many.
        model: Only answers of one model are compared.
        conversation: Its label; the prompt's own where none is known.
    """

    request_id: str
    prompt: str
    tokens: float
    prompt_tokens: int
    is_censored: bool
    model: str | None
    conversation: str
    signals: Signals


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """
    What is told of some requests, [num_requests] each.

    Attributes:
        scores: Higher for a longer answer: what is ordered by.
        tokens: Expected tokens; None: it tells an order only.
        low, high: Eight of ten answers are meant to be between them.
    """

    scores: FloatArray
    tokens: FloatArray | None = None
    low: FloatArray | None = None
    high: FloatArray | None = None


class Predictor(Protocol):
    """Anything that predicts; `differs` says in words what is not as it was published."""

    source: str
    differs: str

    def fit(self, requests: Sequence[Answered]) -> None:
        """Learn from answered requests; called once."""
        ...

    def predict(self, requests: Sequence[Answered]) -> Predicted:
        """Of requests in the order of their arrival."""
        ...


def logs_of(requests: Sequence[Answered]) -> FloatArray:
    """log(1 + tokens) of the answers, [num_requests]."""
    return np.log1p(np.array([request.tokens for request in requests], dtype=np.float64))


def held_back(requests: Sequence[Answered], share: float = 0.1) -> tuple[list[int], list[int]]:
    """Places to fit on, and to measure the misses on: every so manieth conversation."""
    codes = {it.conversation: 0 for it in requests}
    every = max(2, round(1 / share))
    for number, conversation in enumerate(codes):
        codes[conversation] = number % every
    kept = [place for place, it in enumerate(requests) if codes[it.conversation]]
    apart = [place for place, it in enumerate(requests) if not codes[it.conversation]]
    return kept, apart


@dataclass(frozen=True, slots=True)
class Misses:
    """
    How far log lengths lie from a point prediction: its 80% interval (split conformal prediction,
    Papadopoulos et al. 2002, doi:10.1007/3-540-36755-1_29).
    """

    low: float
    high: float

    @classmethod
    def of(cls, logs: FloatArray, predicted: FloatArray) -> "Misses":
        """Of log lengths and predictions [num_requests] that were not fitted on."""
        if not len(logs):
            return cls(0.0, 0.0)
        low, high = np.quantile(logs - predicted, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        return cls(float(low), float(high))

    def around(self, predicted: FloatArray) -> Predicted:
        """What log predictions tell in tokens; the score is the prediction."""
        low, middle, high = (
            np.maximum(0.0, np.expm1(predicted + it)) for it in (self.low, 0.0, self.high)
        )
        return Predicted(predicted, middle, low, high)
