"""
SageSched (arXiv 2603.07917): past answers to similar prompts are the distribution of the next one.

Its abstract: prompt contents and past inference results give a distribution of lengths, and the
policy is aware of its uncertainty. The score here is the Gittins index of that distribution
(Gittins 1979): the least expected work for a chance to end, min over d of E[min(X, d)] / P(X <= d).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pars.prove.rivals.predictor import Answered, FloatArray, Predicted

NUM_NEIGHBOURS = 20
PROMPTS_A_CALL = 500


def gittins(lengths: FloatArray) -> FloatArray:
    """The index of each row of past lengths [num_requests, num_neighbours]; lower goes first."""
    rising = np.sort(lengths, axis=1)
    count = rising.shape[1]
    ended = np.arange(1, count + 1)
    # At d = the k-th length, those up to k count whole, the others d each.
    work = np.cumsum(rising, axis=1) + rising * (count - ended)
    index: FloatArray = (work / ended).min(axis=1)
    return index


class SageSched:
    """The nearest past prompts by the cosine of their TF-IDF words."""

    source = "SageSched, arXiv 2603.07917 (abstract), and the README of Sakura66/sagesched"
    differs = (
        "TF-IDF words instead of sentence embeddings in FAISS; 20 neighbours, without a threshold;"
        " the cost is tokens alone, without its model of memory"
    )

    def __init__(self) -> None:
        self._words: Any = None
        self._past: Any = None
        self._tokens: FloatArray = np.empty(0)

    def fit(self, requests: Sequence[Answered]) -> None:
        """Keep the past."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.neighbors import NearestNeighbors

        self._words = TfidfVectorizer(sublinear_tf=True, max_features=50_000)
        columns = self._words.fit_transform([request.prompt for request in requests])
        near = min(NUM_NEIGHBOURS, len(requests))
        self._past = NearestNeighbors(n_neighbors=near, metric="cosine").fit(columns)
        self._tokens = np.array([request.tokens for request in requests], dtype=np.float64)

    def predict(self, requests: Sequence[Answered]) -> Predicted:
        """By the neighbours' own answers."""
        parts = [
            self._past.kneighbors(
                self._words.transform(
                    [it.prompt for it in requests[start : start + PROMPTS_A_CALL]]
                ),
                return_distance=False,
            )
            for start in range(0, len(requests), PROMPTS_A_CALL)
        ]
        lengths = self._tokens[np.concatenate(parts)]
        low, high = np.quantile(lengths, [0.1, 0.9], axis=1)
        return Predicted(gittins(lengths), lengths.mean(axis=1), low, high)
