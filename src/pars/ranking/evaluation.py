"""How well scores order the lengths of answers, in one call, whoever made the scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pars.errors import ParsError
from pars.ranking.intervals import Estimate, bootstrap
from pars.ranking.order_metrics import FloatArray, pair_sums

NUM_PARTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """
    How well scores order the lengths of some answers; each estimate with its 95% interval.

    Attributes:
        num_rows: Answers.
        tau_b: Kendall's tau-b over all pairs: 1 is the perfect order, 0 chance, -1 the reverse.
        accuracy: Share of the pairs with different lengths that are in the right order.
        filtered_accuracy: The same of pairs whose lengths differ by at least the threshold.
        deciles: Mean length of each tenth of the answers, by rising score; empty below ten answers.
    """

    num_rows: int
    tau_b: Estimate
    accuracy: Estimate
    filtered_accuracy: Estimate
    deciles: tuple[float, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, null for what is undefined."""
        return {
            "num_rows": self.num_rows,
            "tau_b": self.tau_b.as_json(),
            "accuracy": self.accuracy.as_json(),
            "filtered_accuracy": self.filtered_accuracy.as_json(),
        }

    def __str__(self) -> str:
        return (
            f"{self.num_rows:,} answers: Kendall tau-b {self.tau_b}, accuracy {self.accuracy},"
            f" of pairs that differ enough {self.filtered_accuracy}"
        )


def evaluate(
    scores: ArrayLike,
    lengths: ArrayLike,
    *,
    threshold: float = 0.2,
    is_censored: ArrayLike | None = None,
    groups: Sequence[Any] | None = None,
    prompts: Sequence[Any] | None = None,
    num_resamples: int = 1000,
) -> Order:
    """
    How well `scores` order answers by `lengths`: tau-b and pairwise accuracy with intervals.

    Kendall's tau-b (1945, doi:10.1093/biomet/33.3.239) is what PARS reports (arXiv:2510.03243);
    the intervals are from a bootstrap over prompts. With two equal lengths only, or with equal
    scores, there is no order, and the estimates are nan.

    Args:
        scores: [num_answers], higher for a longer expected answer; expected tokens will do.
        lengths: [num_answers], of the answers as they came, in any unit.
        threshold: Least relative difference of length, 0 to 1, of a pair in `filtered_accuracy`.
        is_censored: [num_answers], whether an answer was cut short, so that its length is only a
            lower bound.
        groups: [num_answers], labels; only answers of one group are compared (models, say, whose
            requests never wait in one queue).
        prompts: [num_answers], labels; answers to one prompt are drawn together for the intervals.
        num_resamples: Of the bootstrap.

    Raises:
        ParsError: the lists differ in length, are empty, or hold a value that is not finite, or
            an argument is out of its range.
    """
    x, y = _numbers("scores", scores), _numbers("lengths", lengths)
    _check(x, y, threshold, num_resamples, {"groups": groups, "prompts": prompts})
    if is_censored is not None and np.shape(is_censored) != y.shape:
        raise ParsError(f"is_censored: {np.shape(is_censored)} must have a value for each answer")
    sums = partial(pair_sums, x, y, strata=groups, is_censored=is_censored)
    estimate = partial(bootstrap, clusters=prompts, num_resamples=num_resamples)
    every, filtered = sums(), sums(threshold=threshold)
    parts = np.array_split(np.argsort(x, kind="stable"), NUM_PARTS)
    return Order(
        num_rows=len(x),
        tau_b=estimate(every, "tau_b"),
        accuracy=estimate(every, "accuracy"),
        filtered_accuracy=estimate(filtered, "accuracy"),
        deciles=tuple(float(y[part].mean()) for part in parts) if len(x) >= NUM_PARTS else (),
    )


def _numbers(name: str, values: ArrayLike) -> FloatArray:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ParsError(f"{name}: want one list of numbers") from None
    if numbers.ndim == 1 and not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ParsError(f"{name}: value {row + 1} is {numbers[row]}: want finite numbers")
    return numbers


def _check(
    scores: FloatArray,
    lengths: FloatArray,
    threshold: float,
    num_resamples: int,
    labels: dict[str, Sequence[Any] | None],
) -> None:
    if scores.ndim == 1 and scores.shape == lengths.shape and not len(scores):
        raise ParsError("scores and lengths are empty: there is no order of no answers")
    if (lengths < 0).any():
        raise ParsError(f"lengths: {lengths.min():g} is below 0, and no answer is")
    if not 0 <= threshold <= 1:
        raise ParsError(f"threshold must be between 0 and 1, not {threshold}")
    if num_resamples < 1:
        raise ParsError(f"num_resamples must be 1 or more, not {num_resamples}")
    for name, values in labels.items():
        if values is not None and len(values) != len(scores):
            raise ParsError(f"{name}: {len(values)} labels of {len(scores)} answers")
