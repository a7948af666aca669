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

NORMAL_95 = 1.959964  # standard errors to either side


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSums:
    """
    For each item, a count over the pairs it belongs to; every array is [num_items].

    A pair is *comparable* when |a-b| / max(a, b) >= threshold and the lengths a, b differ. It is
    concordant when the longer one has the higher score. An answer that was cut short (censored) is
    longer than its length by nobody knows how much: it is comparable with shorter, whole ones only.
    """

    concordant: FloatArray
    discordant: FloatArray
    comparable: FloatArray  # with `score_distinct`, the two counts under tau-b's square root
    score_distinct: FloatArray  # different scores, and lengths known to be equal or not

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


def kendall_tau_b(scores: ArrayLike, lengths: ArrayLike) -> float:
    """Kendall's tau-b between `scores` and `lengths`, both [num_items], in O(n log n)."""
    return pair_sums(scores, lengths).tau_b()


def pair_sums(
    scores: ArrayLike,
    lengths: ArrayLike,
    *,
    threshold: float = 0.0,
    strata: Sequence[Any] | None = None,
    is_censored: ArrayLike | None = None,
) -> PairSums:
    """
    Count each item's pairs.

    With censored items, accuracy is Harrell's C (1982, doi:10.1001/jama.1982.03320430047030), and
    tau-b is taken over the pairs whose order, or equality, is known.

    Args:
        scores, lengths: [num_items], finite; lengths are not negative.
        threshold: least relative difference of length of a comparable pair, 0..1.
        strata: [num_items] labels; only items of the same stratum are paired (for instance the
            models of a mixed log, since requests to different models never compete).
        is_censored: [num_items], whether the length is only a lower bound.

    Raises:
        ParsError: the arrays differ in length, or hold a value that is not finite.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ParsError(f"scores {x.shape} and lengths {y.shape} must be two lists of one length")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ParsError("scores and lengths must be finite numbers")
    columns = np.zeros((4, len(x)))
    censored = np.zeros(len(x), dtype=bool)
    if is_censored is not None:
        censored[:] = is_censored
    for members in _groups(strata, len(x)):
        columns[:, members] = _count_pairs(x[members], y[members], censored[members], threshold)
    return PairSums(
        concordant=columns[0],
        discordant=columns[1],
        comparable=columns[2],
        score_distinct=columns[3],
    )


def tau_b_interval(sums: PairSums) -> Estimate:
    """
    Tau-b and its asymptotic 95% interval, in O(num_items): `bootstrap` without drawing.

    Tau-b is a smooth function of sums over pairs, so its variance is that of the sum of each
    item's part in it (Hoeffding 1948; for Kendall's tau Noether 1967 and Samara, Randles 1988,
    Communications in Statistics, Theory and Methods 17:3191; with ties and censoring Newson 2006,
    Stata Journal 6:309).
    """
    columns = sums._columns()
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
    columns = sums._columns()
    value = float(formula(columns.sum(axis=0)))
    return _interval(value, formula, columns, clusters, num_resamples, seed)


def bootstrap_difference(
    sums: PairSums,
    other: PairSums,
    statistic: str,
    *,
    clusters: Sequence[Any] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """
    `bootstrap` of how much higher the statistic of `sums` is than that of `other`.

    Both are of the same items, and every resample draws the same items for both: what makes an
    item hard for either drops out, so the interval is narrower than two separate ones suggest.
    """
    single = FORMULAS[statistic]

    def formula(totals: FloatArray) -> FloatArray:
        return single(totals[..., :4]) - single(totals[..., 4:])

    columns = np.concatenate([sums._columns(), other._columns()], axis=1)
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
        np.stack([columns[members].sum(axis=0) for members in _groups(clusters, len(columns))])
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


FORMULAS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "tau_b": _tau_b,
    "accuracy": _accuracy,
}


def _groups(labels: Sequence[Any] | None, num_items: int) -> list[IntArray]:
    """Positions of the items of each label, in order of first appearance."""
    if labels is None:
        return [np.arange(num_items)]
    codes: dict[Any, int] = {}
    coded = np.array([codes.setdefault(label, len(codes)) for label in labels], dtype=np.int64)
    by_code = np.argsort(coded, kind="stable")
    starts = np.searchsorted(coded[by_code], np.arange(1, len(codes)))
    return [np.asarray(part) for part in np.split(by_code, starts)]


def _count_pairs(
    scores: FloatArray, lengths: FloatArray, is_censored: NDArray[np.bool_], threshold: float
) -> FloatArray:
    """The four columns of `PairSums` for one stratum, [4, num_items]."""
    _, ranks, multiplicity = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = ranks.reshape(-1).astype(np.int64)
    columns = np.empty((4, len(scores)))
    columns[:3] = _count_orders(ranks, lengths, is_censored, threshold)
    if not is_censored.any():
        columns[3] = len(scores) - multiplicity[ranks]
        return columns
    known = columns if threshold == 0 else _count_orders(ranks, lengths, is_censored, 0.0)
    columns[3] = known[0] + known[1]
    whole = ~is_censored
    same_length = _multiplicity(lengths[whole, None])
    same_both = _multiplicity(np.stack([lengths[whole], ranks[whole]], axis=1))
    columns[3, whole] += same_length - same_both
    return columns


def _multiplicity(rows: FloatArray) -> IntArray:
    """How often each row stands in `rows` [num_rows, any]."""
    _, positions, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    multiplicity: IntArray = counts[positions.reshape(-1)]
    return multiplicity


def _count_orders(
    ranks: IntArray, lengths: FloatArray, is_censored: NDArray[np.bool_], threshold: float
) -> FloatArray:
    """Concordant, discordant and comparable partners of each item, [3, num_items]."""
    num_items = len(ranks)
    order = np.argsort(lengths, kind="stable")
    sorted_lengths, ranks = lengths[order], ranks[order]
    is_whole = ~is_censored[order]

    # In order of length an item's comparable partners are a prefix (shorter) and a suffix (longer).
    # The 1e-12 keeps a difference of exactly the threshold in, whatever a product rounds to.
    shorter_end = np.searchsorted(sorted_lengths, sorted_lengths, side="left")
    longer_start = np.searchsorted(sorted_lengths, sorted_lengths, side="right")
    if threshold > 0:
        bound = sorted_lengths * (1 - threshold) * (1 + 1e-12)
        shorter_end = np.minimum(shorter_end, np.searchsorted(sorted_lengths, bound, side="right"))
        above = np.searchsorted(bound, sorted_lengths, side="left")
        longer_start = np.maximum(longer_start, above)
    # The shorter one of a pair must be whole: the prefix is one of whole items, and a censored
    # item has no suffix.
    shorter = np.concatenate([[0], np.cumsum(is_whole)])[shorter_end]
    longer_start = np.where(is_whole, longer_start, num_items)
    longer = num_items - longer_start

    both = np.concatenate([ranks, ranks + 1])
    zeros, ends = np.zeros(2 * num_items, dtype=np.int64), np.full(2 * num_items, num_items)
    below, upto = np.split(_count_less(ranks[is_whole], zeros, np.tile(shorter, 2), both), 2)
    longer_below, longer_upto = np.split(
        _count_less(ranks, np.tile(longer_start, 2), ends, both), 2
    )
    columns = np.empty((3, num_items))
    columns[0, order] = below + (longer - longer_upto)
    columns[1, order] = (shorter - upto) + longer_below
    columns[2, order] = shorter + longer
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
