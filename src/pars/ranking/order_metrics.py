"""
How well scores order answer lengths: Kendall tau-b, pairwise accuracy (`intervals`: how sure).

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
    concordant when the longer one has the higher score. An answer that was cut short (censored) is
    longer than its length by nobody knows how much: it is comparable with shorter, whole ones only.
    """

    concordant: FloatArray
    discordant: FloatArray
    comparable: FloatArray  # with `score_distinct`, the two counts under tau-b's square root
    score_distinct: FloatArray  # different scores, and lengths known to be equal or not

    def tau_b(self) -> float:
        """Kendall's tau-b; nan when all lengths or all scores are equal."""
        return float(tau_b_of(self._totals()))

    def accuracy(self) -> float:
        """Share of comparable pairs in the right order, a tied score counting half; else nan."""
        return float(accuracy_of(self._totals()))

    @property
    def num_pairs(self) -> int:
        """Comparable pairs, each counted once."""
        return int(self.comparable.sum() / 2)

    def columns(self) -> FloatArray:
        return np.stack(
            [self.concordant, self.discordant, self.comparable, self.score_distinct], axis=1
        )

    def _totals(self) -> FloatArray:
        totals: FloatArray = self.columns().sum(axis=0)
        return totals


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
    for members in groups_of(strata, len(x)):
        columns[:, members] = _count_pairs(x[members], y[members], censored[members], threshold)
    return PairSums(
        concordant=columns[0],
        discordant=columns[1],
        comparable=columns[2],
        score_distinct=columns[3],
    )


def tau_b_of(totals: FloatArray) -> FloatArray:
    concordant, discordant, comparable, score_distinct = np.moveaxis(totals, -1, 0)
    product = comparable * score_distinct
    defined = (comparable > 0) & (score_distinct > 0)
    return np.where(
        defined, (concordant - discordant) / np.sqrt(np.where(defined, product, 1.0)), np.nan
    )


def accuracy_of(totals: FloatArray) -> FloatArray:
    concordant, discordant, comparable, _ = np.moveaxis(totals, -1, 0)
    defined = comparable > 0
    tied = comparable - concordant - discordant
    return np.where(defined, (concordant + tied / 2) / np.where(defined, comparable, 1.0), np.nan)


FORMULAS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "tau_b": tau_b_of,
    "accuracy": accuracy_of,
}


def groups_of(labels: Sequence[Any] | None, num_items: int) -> list[IntArray]:
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
