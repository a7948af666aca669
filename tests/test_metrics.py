"""Kendall tau-b, pairwise accuracy and their intervals, against hand counts and brute force."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pars.errors import ParsError
from pars.ranking.intervals import bootstrap, bootstrap_difference
from pars.ranking.order_metrics import kendall_tau_b, pair_sums


def brute_force(scores, lengths, threshold):
    """Concordant, discordant and comparable pairs, counted one by one."""
    concordant = discordant = comparable = 0
    for (x, a), (y, b) in combinations(zip(scores, lengths, strict=True), 2):
        if a == b or abs(a - b) / max(a, b) < threshold:
            continue
        comparable += 1
        concordant += (x - y) * (a - b) > 0
        discordant += (x - y) * (a - b) < 0
    return concordant, discordant, comparable


def test_tau_b_of_four_items_is_two_thirds():
    """Of six pairs five agree and one does not: (5 - 1) / 6."""
    assert kendall_tau_b([1, 2, 4, 3], [10, 20, 30, 40]) == pytest.approx(4 / 6)


def test_ties_shrink_the_denominator_of_tau_b():
    """One tie in the scores: 2 concordant, none discordant, over sqrt(3 * 2) (Kendall 1945)."""
    assert kendall_tau_b([1, 1, 2], [10, 20, 30]) == pytest.approx(2 / math.sqrt(6))


def test_a_tied_score_counts_half_in_the_accuracy():
    """Of three pairs two are right and one is a tie: 2.5 / 3."""
    assert pair_sums([1, 1, 2], [10, 20, 30]).accuracy() == pytest.approx(2.5 / 3)


def test_a_pair_exactly_at_the_threshold_is_comparable():
    """8 and 10 words differ by exactly 0.2 of the longer; 9 and 10 do not differ enough."""
    assert pair_sums([0, 1], [8, 10], threshold=0.2).num_pairs == 1
    assert pair_sums([0, 1], [9, 10], threshold=0.2).num_pairs == 0


def test_items_of_different_strata_are_never_paired():
    """Two items of each model: two pairs, both right, although the models' lengths cross."""
    sums = pair_sums([1, 2, 1, 2], [10, 20, 100, 200], strata=["a", "a", "b", "b"])

    assert (sums.num_pairs, sums.accuracy(), sums.tau_b()) == (2, 1.0, 1.0)


@pytest.mark.parametrize("lengths", [[], [5], [5, 5, 5]])
def test_without_two_lengths_there_is_no_order(lengths):
    """Nothing, one item, or equal lengths give nan, not a number."""
    assert math.isnan(kendall_tau_b(range(len(lengths)), lengths))


@pytest.mark.parametrize(("scores", "lengths"), [([1], [1, 2]), ([1, math.nan], [1, 2])])
def test_lists_that_cannot_be_compared_are_refused(scores, lengths):
    """Lists of two lengths, and values that are not finite, are an error and not a number."""
    with pytest.raises(ParsError):
        pair_sums(scores, lengths)


few_values = st.integers(min_value=0, max_value=12)


@given(
    items=st.lists(st.tuples(few_values, few_values), min_size=2, max_size=40),
    threshold=st.sampled_from([0.0, 0.2, 0.25, 0.5, 1.0]),
)
def test_counts_equal_those_of_every_pair_in_turn(items, threshold):
    """The O(n log n) counts are the counts of a double loop, ties and thresholds included."""
    scores, lengths = zip(*items, strict=True)

    sums = pair_sums(scores, lengths, threshold=threshold)

    counted = sums.concordant.sum() / 2, sums.discordant.sum() / 2, sums.num_pairs
    assert counted == brute_force(scores, lengths, threshold)


def test_interval_agrees_with_a_bootstrap_that_recounts_every_pair():
    """The linear resampling differs from 400 full recounts by less than 0.015 at either end."""
    rng = np.random.default_rng(7)
    scores = rng.normal(size=250)
    lengths = np.round(np.exp(scores + rng.normal(size=250)) * 50)
    recounted = []
    for _ in range(400):
        drawn = rng.integers(250, size=250)
        recounted.append(kendall_tau_b(scores[drawn], lengths[drawn]))

    estimate = bootstrap(pair_sums(scores, lengths), "tau_b")

    low, high = np.percentile(recounted, [2.5, 97.5])
    assert abs(estimate.low - low) < 0.015
    assert abs(estimate.high - high) < 0.015


def test_interval_widens_when_answers_to_one_prompt_are_drawn_together():
    """Ten copies of forty prompts carry the information of forty, and the interval says so."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=40).repeat(10)
    lengths = (scores[::10] + rng.normal(size=40)).repeat(10) - 0.001 * np.arange(400) % 10 + 20
    sums = pair_sums(scores, lengths)

    alone = bootstrap(sums, "tau_b")
    together = bootstrap(sums, "tau_b", clusters=list(np.arange(40).repeat(10)))

    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_an_undefined_estimate_is_null_in_json():
    """JSON has no NaN, so programs see null."""
    assert bootstrap(pair_sums([1, 2], [3, 3]), "tau_b").as_json() == {
        "value": None,
        "low": None,
        "high": None,
    }


def test_an_answer_cut_short_is_compared_with_shorter_whole_ones_only():
    """
    Of 10, 20 and 30 tokens the 20 were cut short: 20 and 30 after 10 are two pairs in order, and
    20 against 30 is none, whatever the scores; a cut answer never is the shorter one.
    """
    sums = pair_sums([1, 9, 5], [10, 20, 30], is_censored=[False, True, False])

    assert sums.num_pairs == 2
    assert sums.accuracy() == 1.0
    assert sums.tau_b() == 1.0


def test_two_cut_answers_and_a_cut_one_as_long_as_a_whole_one_are_no_pair():
    """Either may have become the longer one."""
    both = pair_sums([1, 2], [10, 20], is_censored=[True, True])
    equal = pair_sums([1, 2], [10, 10], is_censored=[True, False])

    assert (both.num_pairs, equal.num_pairs) == (0, 0)
    assert np.isnan(both.tau_b())


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.booleans()), max_size=25))
def test_pairs_with_cut_answers_are_counted_as_pair_by_pair(items):
    """Against a loop over all pairs: those in order, out of order, and of different scores."""
    scores, lengths, is_cut = np.array(items, dtype=float).reshape(-1, 3).T
    sums = pair_sums(scores, lengths, is_censored=is_cut)

    concordant = discordant = distinct = 0
    for (score_a, length_a, cut_a), (score_b, length_b, cut_b) in combinations(items, 2):
        shorter_is_cut = cut_a if length_a < length_b else cut_b
        if length_a == length_b:
            distinct += not cut_a and not cut_b and score_a != score_b
        elif not shorter_is_cut:
            product = (score_a - score_b) * (length_a - length_b)
            concordant += product > 0
            discordant += product < 0
            distinct += score_a != score_b
    if is_cut.any():
        assert sums.score_distinct.sum() / 2 == distinct
    assert sums.concordant.sum() / 2 == concordant
    assert sums.discordant.sum() / 2 == discordant


def test_a_difference_is_resampled_in_pairs():
    """Two rankers that differ by a constant differ by nothing; a better one by more than noise."""
    rng = np.random.default_rng(0)
    lengths = rng.random(300)
    noisy = lengths + rng.normal(size=300)
    sums, shifted = pair_sums(noisy, lengths), pair_sums(noisy + 5, lengths)
    better = pair_sums(lengths + rng.normal(size=300) / 4, lengths)

    same = bootstrap_difference(shifted, sums, "tau_b")
    gain = bootstrap_difference(better, sums, "tau_b")

    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert gain.low > 0
    assert gain.value == pytest.approx(better.tau_b() - sums.tau_b())
