"""From order to cost: the answer length to expect at a score, never falling as the score rises."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

NUM_KNOTS = 101
# Tokens of one unit of length, for data prepared in words or characters: the usual rule of thumb
# for English under a GPT-4-like vocabulary. Order does not depend on it, only the scale.
TOKENS_PER_UNIT = {"tokens": 1.0, "words": 4 / 3, "characters": 1 / 4}

QUANTILES = (0.1, 0.5, 0.9)  # of the answers to prompts of about one score
WINDOW_SHARE, LEAST_WINDOW = 0.05, 50  # of the prompts: those around a knot
NUM_TENTHS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """
    Scores at the quantiles 0, 0.01, … 1 and the expected answer tokens there, both [101].

    `token_quantiles` has the spread: by "0.1", "0.5" and "0.9" the tokens that this share of the
    answers stays within, [101] each, never falling either.
    """

    score_quantiles: list[float]
    expected_tokens: list[float]
    token_quantiles: dict[str, list[float]]


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
    tokens_per_unit = TOKENS_PER_UNIT.get(length_unit, 1.0)
    expected = np.interp(knots, centers, values) * tokens_per_unit
    spread = _quantiles_around(knots, x, y) * tokens_per_unit
    return Calibration(
        [round(float(s), 6) for s in knots],
        _rounded(expected),
        {f"{share:g}": _rounded(curve) for share, curve in zip(QUANTILES, spread, strict=True)},
    )


def lengths_if_whole(scores: ArrayLike, lengths: ArrayLike, is_censored: ArrayLike) -> FloatArray:
    """
    The answer lengths [num_prompts], those of answers that were cut short as if they had not been.

    That is the mean of the lengths beyond the cut among answers of like score, by the Kaplan-Meier
    estimate (1958, doi:10.1080/01621459.1958.10501452), its longest answer taken as whole (Efron
    1967). To leave cut answers out, or to take them as whole, would expect too little.
    """
    y, cut = np.array(lengths, dtype=np.float64), np.asarray(is_censored, dtype=bool)
    if not cut.any():
        return y
    window = max(LEAST_WINDOW, round(WINDOW_SHARE * len(y)))
    by_score = np.argsort(np.asarray(scores), kind="stable")
    for alike in np.array_split(by_score, max(1, len(y) // window)):
        by_length = alike[np.lexsort([cut[alike], y[alike]])]  # of equal lengths, whole ones first
        y[by_length] = _means_beyond(y[by_length], cut[by_length])
    return y


def _means_beyond(lengths: FloatArray, is_cut: NDArray[np.bool_]) -> FloatArray:
    """Rising lengths, each cut one as the Kaplan-Meier mean of those after it."""
    at_risk = np.arange(len(lengths), 0, -1)
    ends = ~is_cut
    ends[-1] = True
    survival = np.concatenate([[1.0], np.cumprod(np.where(ends, 1 - 1 / at_risk, 1.0))])
    jumps = survival[:-1] - survival[1:]
    mass_beyond, sum_beyond = (
        np.append(np.cumsum(parts[::-1])[::-1][1:], 0.0) for parts in (jumps, jumps * lengths)
    )
    is_mended = is_cut & (mass_beyond > 0)
    means = sum_beyond / np.where(is_mended, mass_beyond, 1.0)
    return np.where(is_mended, means, lengths)


def _quantiles_around(knots: FloatArray, scores: FloatArray, lengths: FloatArray) -> FloatArray:
    """Quantiles of the lengths whose scores are nearest to each knot, [num_quantiles, 101]."""
    order = np.argsort(scores, kind="stable")
    scores, lengths = scores[order], lengths[order]
    window = min(len(scores), max(LEAST_WINDOW, round(WINDOW_SHARE * len(scores))))
    low, high = (np.searchsorted(scores, knots, side=side) for side in ("left", "right"))
    starts = np.clip((low + high - window) // 2, 0, len(scores) - window)
    found = [
        # Equal scores are one point here, too: all of them are around it, or none.
        np.quantile(lengths[min(start, at) : max(start + window, end)], QUANTILES)
        for start, at, end in zip(starts, low, high, strict=True)
    ]
    curves = [pool_adjacent_violators(curve, np.ones(len(knots))) for curve in np.transpose(found)]
    return np.stack([np.repeat(values, widths) for values, widths in curves])


def _rounded(tokens: FloatArray) -> list[float]:
    return [round(float(t), 3) for t in tokens]


class Calibrated(Protocol):
    """The part of `pars.ranking.ranker.RankerInfo` read here."""

    @property
    def score_quantiles(self) -> list[float] | None: ...

    @property
    def expected_tokens(self) -> list[float] | None: ...

    @property
    def token_quantiles(self) -> Mapping[str, Sequence[float]] | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenth:
    """A tenth of the held-out prompts, by score: mean answer tokens, expected and real."""

    expected_tokens: float
    answer_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationCheck:
    """
    A calibration beside held-out answers.

    Attributes:
        error: Mean over the tenths of |expected - real|, over the mean of the real.
        share_between: Of the answers, those from the 0.1 to the 0.9 quantile at their score, which
            should be 0.8; None for a ranker without them.
    """

    tenths: tuple[Tenth, ...]
    error: float
    share_between: float | None

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def check_calibration(
    info: Calibrated, scores: ArrayLike, answer_tokens: ArrayLike
) -> CalibrationCheck | None:
    """
    Compare expected answer tokens with real ones, both [num_prompts], by tenths of the scores.

    None for a ranker that expects nothing, and for fewer than ten prompts.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(answer_tokens, dtype=np.float64)
    if not info.score_quantiles or not info.expected_tokens or len(x) < NUM_TENTHS:
        return None
    expected = np.interp(x, info.score_quantiles, info.expected_tokens)
    tenths = [
        Tenth(
            expected_tokens=round(float(expected[part].mean()), 2),
            answer_tokens=round(float(y[part].mean()), 2),
        )
        for part in np.array_split(np.argsort(x, kind="stable"), NUM_TENTHS)
    ]
    misses = [abs(tenth.expected_tokens - tenth.answer_tokens) for tenth in tenths]
    share_between = None
    if info.token_quantiles:
        low, high = (
            np.interp(x, info.score_quantiles, info.token_quantiles[f"{share:g}"])
            for share in (QUANTILES[0], QUANTILES[-1])
        )
        share_between = round(float(((low <= y) & (y <= high)).mean()), 4)
    error = float(np.mean(misses) / max(float(y.mean()), 1e-9))
    return CalibrationCheck(
        tenths=tuple(tenths), error=round(error, 4), share_between=share_between
    )


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
