"""TF-IDF and ridge regression on the log length: the strongest baseline of ten lines."""

from collections.abc import Sequence
from typing import Any

from pars.prove.rivals.predictor import Answered, Misses, Predicted, held_back, logs_of


class TfidfRidge:
    """Words and pairs of neighbours, as `pars evaluate` has it."""

    source = "scikit-learn; the baseline of `pars evaluate`"
    differs = ""

    def __init__(self) -> None:
        self._words: Any = None
        self._ridge: Any = None
        self._misses = Misses(0.0, 0.0)

    def fit(self, requests: Sequence[Answered]) -> None:
        """On nine tenths of the conversations; the rest tells the misses."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge

        kept, apart = held_back(requests)
        logs = logs_of(requests)
        self._words = TfidfVectorizer(
            ngram_range=(1, 2),
            sublinear_tf=True,
            token_pattern=r"(?u)\w+|[^\w\s]",
            max_features=200_000,
        )
        columns = self._words.fit_transform([requests[i].prompt for i in kept])
        self._ridge = Ridge(alpha=1.0, solver="sparse_cg").fit(columns, logs[kept])
        if apart:
            told = self.predict([requests[i] for i in apart]).scores
            self._misses = Misses.of(logs[apart], told)

    def predict(self, requests: Sequence[Answered]) -> Predicted:
        """Expected log tokens."""
        columns = self._words.transform([request.prompt for request in requests])
        return self._misses.around(self._ridge.predict(columns))
