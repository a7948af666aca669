"""
How well scores order answer lengths: Kendall tau-b and pairwise accuracy, with intervals.

Everything here is a ratio of sums over pairs of items. `PairSums` holds those sums item by item
(a pair counts at both of its items), which costs O(n log n) and makes a bootstrap over items cheap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pars.errors import ParsError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSums:
    """
    For each item, a count over the pairs it belongs to; every array is [num_items].

    A pair is *comparable* when |a-b| / max(a, b) >= threshold and the lengths a, b differ. It is
    concordant when the longer one has the higher score.
    """

    concordant: FloatArray
    discordant: FloatArray
    comparable: FloatArray  # with `score_distinct`, the two counts under tau-b's square root
    score_distinct: FloatArray  # any two items with different scores, whatever their lengths

    def tau_b(self) -> float:
        """Kendall's tau-b; nan when all lengths or all scores are equal."""
        return float(_tau_b(self._totals()))

    def accuracy(self) -> float:
        """Share of comparable pairs in the right order, a tied score counting half; else nan."""
        return float(_accuracy(self._totals()))

    @property
    def num_pairs(self) -> int:
        """Comparable pairs, each counted once."""
        return int(self.comparable.sum() / 2)

    def _columns(self) -> FloatArray:
        return np.stack(
            [self.concordant, self.discordant, self.comparable, self.score_distinct], axis=1
        )

    def _totals(self) -> FloatArray:
        totals: FloatArray = self._columns().sum(axis=0)
        return totals


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its bootstrap 95% interval; nan where it is undefined."""

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


def kendall_tau_b(scores: ArrayLike, lengths: ArrayLike) -> float:
    """Kendall's tau-b between `scores` and `lengths`, both [num_items], in O(n log n)."""
    return pair_sums(scores, lengths).tau_b()


def pair_sums(
    scores: ArrayLike,
    lengths: ArrayLike,
    *,
    threshold: float = 0.0,
    strata: Sequence[Any] | None = None,
) -> PairSums:
    """
    Count each item's pairs.

    Args:
        scores, lengths: [num_items], finite; lengths are not negative.
        threshold: least relative difference of length of a comparable pair, 0..1.
        strata: [num_items] labels; only items of the same stratum are paired (for instance the
            models of a mixed log, since requests to different models never compete).

    Raises:
        ParsError: the arrays differ in length, or hold a value that is not finite.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ParsError(f"scores {x.shape} and lengths {y.shape} must be two lists of one length")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ParsError("scores and lengths must be finite numbers")
    columns = np.zeros((4, len(x)))
    for members in _groups(strata, len(x)):
        columns[:, members] = _count_pairs(x[members], y[members], threshold)
    return PairSums(
        concordant=columns[0],
        discordant=columns[1],
        comparable=columns[2],
        score_distinct=columns[3],
    )


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
    formula: Callable[[FloatArray], FloatArray] = {"tau_b": _tau_b, "accuracy": _accuracy}[
        statistic
    ]
    columns = sums._columns()
    totals = columns.sum(axis=0)
    value = float(formula(totals))
    per_cluster = (
        np.stack([columns[members].sum(axis=0) for members in _groups(clusters, len(columns))])
        if clusters is not None
        else columns
    )
    num_clusters = len(per_cluster)
    if num_clusters < 2 or np.isnan(value):
        return Estimate(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    draws = np.empty((num_resamples, 4))
    for row in range(num_resamples):
        weights = np.bincount(rng.integers(num_clusters, size=num_clusters), minlength=num_clusters)
        draws[row] = 2 * (weights @ per_cluster) - totals
    low, high = np.nanpercentile(formula(draws), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _tau_b(totals: FloatArray) -> FloatArray:
    concordant, discordant, comparable, score_distinct = np.moveaxis(totals, -1, 0)
    product = comparable * score_distinct
    defined = (comparable > 0) & (score_distinct > 0)
    return np.where(
        defined, (concordant - discordant) / np.sqrt(np.where(defined, product, 1.0)), np.nan
    )


def _accuracy(totals: FloatArray) -> FloatArray:
    concordant, discordant, comparable, _ = np.moveaxis(totals, -1, 0)
    defined = comparable > 0
    tied = comparable - concordant - discordant
    return np.where(defined, (concordant + tied / 2) / np.where(defined, comparable, 1.0), np.nan)


def _groups(labels: Sequence[Any] | None, num_items: int) -> list[IntArray]:
    """Positions of the items of each label, in order of first appearance."""
    if labels is None:
        return [np.arange(num_items)]
    codes: dict[Any, int] = {}
    coded = np.array([codes.setdefault(label, len(codes)) for label in labels], dtype=np.int64)
    by_code = np.argsort(coded, kind="stable")
    starts = np.searchsorted(coded[by_code], np.arange(1, len(codes)))
    return [np.asarray(part) for part in np.split(by_code, starts)]


def _count_pairs(scores: FloatArray, lengths: FloatArray, threshold: float) -> FloatArray:
    """The four columns of `PairSums` for one stratum, [4, num_items]."""
    num_items = len(scores)
    order = np.argsort(lengths, kind="stable")
    sorted_lengths = lengths[order]
    _, ranks, multiplicity = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = ranks.reshape(-1)[order].astype(np.int64)

    # In order of length an item's comparable partners are a prefix (shorter) and a suffix (longer).
    # The 1e-12 keeps a difference of exactly the threshold in, whatever a product rounds to.
    shorter_end = np.searchsorted(sorted_lengths, sorted_lengths, side="left")
    longer_start = np.searchsorted(sorted_lengths, sorted_lengths, side="right")
    if threshold > 0:
        bound = sorted_lengths * (1 - threshold) * (1 + 1e-12)
        shorter_end = np.minimum(shorter_end, np.searchsorted(sorted_lengths, bound, side="right"))
        above = np.searchsorted(bound, sorted_lengths, side="left")
        longer_start = np.maximum(longer_start, above)

    zeros, ends = np.zeros(num_items, dtype=np.int64), np.full(num_items, num_items)
    starts = np.concatenate([zeros, zeros, longer_start, longer_start])
    stops = np.concatenate([shorter_end, shorter_end, ends, ends])
    values = np.concatenate([ranks, ranks + 1, ranks, ranks + 1])
    below, upto, longer_below, longer_upto = np.split(_count_less(ranks, starts, stops, values), 4)
    shorter, longer = shorter_end, num_items - longer_start
    columns = np.empty((4, num_items))
    columns[0, order] = below + (longer - longer_upto)
    columns[1, order] = (shorter - upto) + longer_below
    columns[2, order] = shorter + longer
    columns[3, order] = num_items - multiplicity[ranks]
    return columns


def _count_less(
    sequence: IntArray, starts: IntArray, stops: IntArray, values: IntArray
) -> IntArray:
    """
    For each query, how many of sequence[start:stop] are less than value; all queries at once.

    A wavelet matrix (Claude, Navarro, Ordóñez 2015, doi:10.1016/j.is.2014.06.002), level by level:
    O(log max) vector operations on the sequence and on the queries.
    """
    counts = np.zeros(len(values), dtype=np.int64)
    start, stop = starts, stops
    for bit in reversed(range(int(values.max(initial=0)).bit_length())):
        is_one = (sequence >> bit) & 1
        zeros_before = np.concatenate([[0], np.cumsum(1 - is_one)])
        zeros_start, zeros_stop = zeros_before[start], zeros_before[stop]
        goes_right = ((values >> bit) & 1).astype(bool)
        counts += np.where(goes_right, zeros_stop - zeros_start, 0)
        num_zeros = zeros_before[-1]
        start = np.where(goes_right, num_zeros + start - zeros_start, zeros_start)
        stop = np.where(goes_right, num_zeros + stop - zeros_stop, zeros_stop)
        sequence = np.concatenate([sequence[is_one == 0], sequence[is_one == 1]])
    return counts
