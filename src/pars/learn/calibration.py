"""From order to cost: the answer length to expect at a score, never falling as the score rises."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

NUM_KNOTS = 101
# Tokens of one unit of length, for data prepared in words or characters: the usual rule of thumb
# for English under a GPT-4-like vocabulary. Order does not depend on it, only the scale.
TOKENS_PER_UNIT = {"tokens": 1.0, "words": 4 / 3, "characters": 1 / 4}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scores at the quantiles 0, 0.01, … 1 and the expected answer tokens there, both [101]."""

    score_quantiles: list[float]
    expected_tokens: list[float]


def calibrate(scores: ArrayLike, lengths: ArrayLike, length_unit: str) -> Calibration:
    """
    Isotonic regression of held-out answer lengths on scores, both [num_prompts], at 101 knots.

    The least-squares fit that never falls (Barlow et al. 1972), read off by linear interpolation
    between the mean scores of its steps.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    distinct, positions, counts = np.unique(x, return_inverse=True, return_counts=True)
    # Equal scores are one point, or the last of them would get the longest of their lengths.
    mean_lengths = np.bincount(positions.reshape(-1), y) / counts
    values, widths = pool_adjacent_violators(mean_lengths, counts)
    starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
    centers = np.add.reduceat(distinct * counts, starts) / np.add.reduceat(counts, starts)
    knots = np.quantile(x, np.linspace(0, 1, NUM_KNOTS))
    expected = np.interp(knots, centers, values) * TOKENS_PER_UNIT.get(length_unit, 1.0)
    return Calibration([round(float(s), 6) for s in knots], [round(float(t), 3) for t in expected])


def pool_adjacent_violators(
    values: ArrayLike, weights: ArrayLike
) -> tuple[FloatArray, NDArray[np.int64]]:
    """The steps of the closest non-decreasing sequence: the mean and width of each."""
    steps: list[tuple[float, float, int]] = []  # mean, weight, width
    for value, weight in zip(np.asarray(values), np.asarray(weights), strict=True):
        step = float(value), float(weight), 1
        while steps and steps[-1][0] >= step[0]:
            before = steps.pop()
            total = before[1] + step[1]
            mean = (before[0] * before[1] + step[0] * step[1]) / total
            step = mean, total, before[2] + step[2]
        steps.append(step)
    return np.array([s[0] for s in steps]), np.array([s[2] for s in steps], dtype=np.int64)
