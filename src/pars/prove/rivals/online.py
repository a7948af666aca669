"""The ranker that learns while it serves, from nothing (cold) or after the training part (warm)."""

from collections.abc import Sequence

import numpy as np

from pars.prove.rivals.predictor import Answered, Predicted
from pars.ranking.online.ranker import OnlineRanker


class Online:
    """
    `pars.OnlineRanker`: each request is predicted, then its answer is learned.

    Args:
        is_warm: Whether it learns the training part first.
    """

    source = "`pars gateway`, docs/learning.md"
    differs = (
        "an answer is learned before the next request comes, which a queue would delay; it does not"
        " hear the bundled ranker, which the gateway asks at first"
    )

    def __init__(self, *, is_warm: bool = True) -> None:
        self._is_warm = is_warm
        self._ranker = OnlineRanker(b"a leaderboard is not kept")

    def fit(self, requests: Sequence[Answered]) -> None:
        """One step a request, in their order."""
        for request in requests if self._is_warm else ():
            guess = self._ranker.expect(request.signals)
            self._ranker.learn(guess, request.tokens, is_lower_bound=request.is_censored)

    def predict(self, requests: Sequence[Answered]) -> Predicted:
        """One by one, each learned after it was predicted."""
        told = []
        for request in requests:
            guess = self._ranker.expect(request.signals)
            told.append((guess.log_tokens, guess.tokens, guess.low_tokens, guess.high_tokens))
            self._ranker.learn(guess, request.tokens, is_lower_bound=request.is_censored)
        scores, tokens, low, high = np.array(told).T
        return Predicted(scores, tokens, low, high)


class OnlineCold(Online):
    """Begins with nothing."""

    def __init__(self) -> None:
        super().__init__(is_warm=False)


class OnlineWarm(Online):
    """Has seen the training part."""
