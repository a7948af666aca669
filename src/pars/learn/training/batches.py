"""
What a training step sees: some prompts, each once, and which of them have the longer answer.

Two ways in. From a pair file every batch is `batch_size` pairs (PARS). From prompts with lengths it
is `batch_size` prompts and all their pairs that pass the threshold: up to n(n-1)/2 pairs for n
encodings, where a pair file costs up to two encodings a pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """
    Prompt indices [num_prompts]; pair k says prompts[longer[k]] outlasts prompts[shorter[k]].

    `certainty` [num_pairs] is the probability that another answer to each would say so too. The
    answers' `lengths` [num_prompts], and whether they were cut short there, are None of pairs.
    """

    prompts: IntArray
    longer: IntArray
    shorter: IntArray
    certainty: NDArray[np.float32]
    lengths: NDArray[np.float64] | None = None
    is_censored: NDArray[np.bool_] | None = None


class BatchSource(Protocol):
    """Batches of one epoch, the same ones for the same seed on every machine."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of that epoch, counted from 0."""
        ...


class PairBatches:
    """Batches of pairs, from a pair file's indices and labels [num_pairs] (1: A is longer)."""

    def __init__(
        self,
        index_a: ArrayLike,
        index_b: ArrayLike,
        labels: ArrayLike,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        a, b = np.asarray(index_a, dtype=np.int64), np.asarray(index_b, dtype=np.int64)
        a_is_longer = np.asarray(labels) == 1
        self._longer, self._shorter = np.where(a_is_longer, a, b), np.where(a_is_longer, b, a)
        self._batch_size, self._seed = batch_size, seed

    def __len__(self) -> int:
        return -(-len(self._longer) // self._batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for rows in _shuffled(len(self._longer), self._batch_size, self._seed, epoch):
            both = np.concatenate([self._longer[rows], self._shorter[rows]])
            prompts, positions = np.unique(both, return_inverse=True)
            longer, shorter = np.split(positions.reshape(-1), 2)
            yield Batch(prompts, longer, shorter, np.ones(len(longer), dtype=np.float32))


class LengthBatches:
    """
    Batches of prompts with answer lengths [num_prompts]; every pair that passes is in.

    Args:
        label_temperature: of the certainty of a pair, sigmoid(log(a / b) / temperature): answers
            vary from sample to sample, so a pair that differs little says little. 0 is certainty.
        is_censored: [num_prompts], whether an answer was cut short: it is longer than it seems, so
            it is the longer one of a pair or in none.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        *,
        threshold: float,
        batch_size: int,
        seed: int,
        label_temperature: float = 0.0,
        is_censored: ArrayLike | None = None,
    ) -> None:
        self._lengths = np.asarray(lengths, dtype=np.float64)
        censored = np.zeros(len(self._lengths)) if is_censored is None else is_censored
        self._is_censored = np.asarray(censored, dtype=bool)
        self._threshold, self._batch_size, self._seed = threshold, batch_size, seed
        self._label_temperature = label_temperature

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for prompts in _shuffled(len(self._lengths), self._batch_size, self._seed, epoch):
            longer, shorter = comparable_pairs(self._lengths[prompts], self._threshold)
            is_known = ~self._is_censored[prompts[shorter]]
            longer, shorter = longer[is_known], shorter[is_known]
            certainty = self._certainty(prompts[longer], prompts[shorter])
            lengths, cut = self._lengths[prompts], self._is_censored[prompts]
            yield Batch(prompts, longer, shorter, certainty, lengths, cut)

    def _certainty(self, longer: IntArray, shorter: IntArray) -> NDArray[np.float32]:
        if self._label_temperature == 0:
            return np.ones(len(longer), dtype=np.float32)
        log_ratio = np.log1p(self._lengths[longer]) - np.log1p(self._lengths[shorter])
        certainty: NDArray[np.float64] = 1 / (1 + np.exp(-log_ratio / self._label_temperature))
        return certainty.astype(np.float32)


def comparable_pairs(lengths: NDArray[np.float64], threshold: float) -> tuple[IntArray, IntArray]:
    """
    All (longer, shorter) positions whose lengths differ by at least `threshold` of the longer one.

    The paper's filter |a-b| / max(a, b) >= threshold (arXiv 2510.03243); equal lengths never pass.
    """
    longer, shorter = np.nonzero(lengths[:, None] > lengths[None, :])
    a, b = lengths[longer], lengths[shorter]
    passes = (a - b) / a >= threshold
    return longer[passes], shorter[passes]


def _shuffled(num_items: int, batch_size: int, seed: int, epoch: int) -> Iterator[IntArray]:
    order = np.random.default_rng([seed, epoch]).permutation(num_items)
    for start in range(0, num_items, batch_size):
        yield order[start : start + batch_size]
