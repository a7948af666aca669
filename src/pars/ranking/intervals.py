"""
How sure a tau-b or an accuracy is: 95% intervals, from a formula or from resampled items.

    tau_b_interval(pair_sums(scores, lengths))               # no drawing: for many looks
    bootstrap(sums, "tau_b", clusters=prompts)               # whole prompts are drawn together
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pars.ranking.order_metrics import FORMULAS, FloatArray, PairSums, groups_of

NORMAL_95 = 1.959964  # standard errors to either side


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95% interval; nan where it is undefined."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """The three numbers, with null for an undefined one (JSON has no NaN)."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if np.isnan(x) else round(x, 4) for name, x in numbers.items()}

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "-"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def tau_b_interval(sums: PairSums) -> Estimate:
    """
    Tau-b and its asymptotic 95% interval, in O(num_items): `bootstrap` without drawing.

    Tau-b is a smooth function of sums over pairs, so its variance is that of the sum of each
    item's part in it (Hoeffding 1948; for Kendall's tau Noether 1967 and Samara, Randles 1988,
    Communications in Statistics, Theory and Methods 17:3191; with ties and censoring Newson 2006,
    Stata Journal 6:309).
    """
    columns = sums.columns()
    num_items, value = len(columns), sums.tau_b()
    if num_items < 3 or np.isnan(value):
        return Estimate(value, float("nan"), float("nan"))
    concordant, discordant, comparable, score_distinct = columns.T
    total_comparable, total_distinct = comparable.sum(), score_distinct.sum()
    # What tau-b changes by when an item counts once more; a pair counts at both of its items.
    parts = 2 * (concordant - discordant) / np.sqrt(total_comparable * total_distinct)
    parts -= value * (comparable / total_comparable + score_distinct / total_distinct)
    error = float(np.sqrt((parts**2).sum() * num_items / (num_items - 1)))
    low, high = value - NORMAL_95 * error, value + NORMAL_95 * error
    return Estimate(value, max(low, -1.0), min(high, 1.0))


def bootstrap(
    sums: PairSums,
    statistic: str,
    *,
    clusters: Sequence[Any] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """
    A 95% percentile interval from resampling items, or whole clusters of them (one prompt's).

    The sums over pairs are linear in the items' weights to first order (Hájek's projection of a
    U-statistic), so a resample costs one product of vectors instead of a new count of all pairs.

    Args:
        statistic: "tau_b" or "accuracy".
        clusters: [num_items] labels; items with the same label are drawn together.
    """
    formula = FORMULAS[statistic]
    columns = sums.columns()
    value = float(formula(columns.sum(axis=0)))
    return _interval(value, formula, columns, clusters, num_resamples, seed)


def bootstrap_difference(
    sums: PairSums | Sequence[PairSums],
    other: PairSums | Sequence[PairSums],
    statistic: str,
    *,
    clusters: Sequence[Any] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """
    `bootstrap` of how much higher the statistic of `sums` is than that of `other`.

    All are of the same items, and every resample draws the same items for all: what makes an
    item hard for either drops out, so the interval is narrower than two separate ones suggest.
    Of several trainings of one kind the mean of the statistic counts.
    """
    ones, others = ([it] if isinstance(it, PairSums) else list(it) for it in (sums, other))
    single = FORMULAS[statistic]

    def mean(totals: FloatArray, first: int, count: int) -> FloatArray:
        parts = [single(totals[..., 4 * at : 4 * at + 4]) for at in range(first, first + count)]
        average: FloatArray = np.mean(parts, axis=0)
        return average

    def formula(totals: FloatArray) -> FloatArray:
        return mean(totals, 0, len(ones)) - mean(totals, len(ones), len(others))

    columns = np.concatenate([it.columns() for it in (*ones, *others)], axis=1)
    value = float(formula(columns.sum(axis=0)))
    return _interval(value, formula, columns, clusters, num_resamples, seed)


def _interval(
    value: float,
    formula: Callable[[FloatArray], FloatArray],
    columns: FloatArray,
    clusters: Sequence[Any] | None,
    num_resamples: int,
    seed: int,
) -> Estimate:
    """The percentiles of `formula` over resampled totals of `columns`, [num_items, any]."""
    totals = columns.sum(axis=0)
    per_cluster = (
        np.stack([columns[members].sum(axis=0) for members in groups_of(clusters, len(columns))])
        if clusters is not None
        else columns
    )
    num_clusters = len(per_cluster)
    if num_clusters < 2 or np.isnan(value):
        return Estimate(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    draws = np.empty((num_resamples, len(totals)))
    for row in range(num_resamples):
        weights = np.bincount(rng.integers(num_clusters, size=num_clusters), minlength=num_clusters)
        draws[row] = 2 * (weights @ per_cluster) - totals
    values = formula(draws)
    if np.isnan(values).all():
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
