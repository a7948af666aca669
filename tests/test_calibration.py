"""Expected answer tokens from scores."""

import numpy as np
import pytest

from pars.learn.training.calibration import (
    calibrate,
    check_calibration,
    lengths_if_whole,
    pool_adjacent_violators,
)
from pars.ranking.ranker_info import RankerInfo


def test_violators_are_pooled_into_their_mean():
    """1, 3, 2, 4: the middle two break the order and become 2.5."""
    means, widths = pool_adjacent_violators([1.0, 3.0, 2.0, 4.0], [1, 1, 1, 1])

    assert means.tolist() == [1.0, 2.5, 4.0]
    assert widths.tolist() == [1, 2, 1]


def test_a_falling_sequence_becomes_its_mean():
    """A ranker that is exactly wrong learns nothing but the mean."""
    means, widths = pool_adjacent_violators([5.0, 3.0, 1.0], [1, 1, 1])

    assert (means.tolist(), widths.tolist()) == ([3.0], [3])


def test_equal_scores_expect_the_mean_of_their_lengths():
    """Two scores with the lengths 10, 30, 50 and 60, 80, 100: 30 and 80, not 50 and 100."""
    fitted = calibrate([0, 0, 0, 1, 1, 1], [50, 10, 30, 100, 60, 80], "tokens")

    assert (fitted.expected_tokens[0], fitted.expected_tokens[-1]) == (30.0, 80.0)


def test_a_violation_is_pooled_by_weight():
    """Three items at 4 before one at 0: (3 * 4 + 0) / 4 = 3."""
    means, widths = pool_adjacent_violators([4.0, 0.0], [3, 1])

    assert (means.tolist(), widths.tolist()) == ([3.0], [2])


def test_expected_tokens_never_fall_as_the_score_rises():
    """Over noisy lengths, at all 101 knots, and the scale is that of the lengths."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=2000)
    lengths = np.exp(scores + rng.normal(size=2000))

    fitted = calibrate(scores, lengths, "tokens")

    assert len(fitted.score_quantiles) == len(fitted.expected_tokens) == 101
    assert (np.diff(fitted.expected_tokens) >= 0).all()
    assert np.mean(fitted.expected_tokens) == pytest.approx(lengths.mean(), rel=0.1)


def test_characters_are_told_in_tokens():
    """Four characters a token: 400 characters are 100 expected tokens."""
    fitted = calibrate([0.0, 1.0], [400.0, 400.0], "characters")

    assert fitted.expected_tokens[50] == 100.0


def test_the_spread_is_that_of_answers_of_about_one_score():
    """One score with lengths 0 to 100, another with ten times those: tenths 10, 50, 90 of each."""
    lengths = np.arange(101.0)

    fitted = calibrate(
        np.repeat([0.0, 1.0], 101), np.concatenate([lengths, 10 * lengths]), "tokens"
    )

    ends = {share: (curve[0], curve[-1]) for share, curve in fitted.token_quantiles.items()}
    assert ends == {"0.1": (10.0, 100.0), "0.5": (50.0, 500.0), "0.9": (90.0, 900.0)}


def test_the_spread_never_falls_and_stays_in_order():
    """Over noisy lengths: each curve rises, and the higher quantile is the higher curve."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=2000)
    lengths = np.exp(scores + rng.normal(size=2000))

    curves = np.array(list(calibrate(scores, lengths, "tokens").token_quantiles.values()))

    assert (np.diff(curves, axis=1) >= 0).all()
    assert (np.diff(curves, axis=0) > 0).all()


def ranker_info(**more):
    """Expects 10 tokens at score 0 and 110 at score 1."""
    return RankerInfo(
        kind="lite", model_name="lite", max_length=1,
        score_quantiles=[0.0, 1.0], expected_tokens=[10.0, 110.0], **more,
    )  # fmt: skip


def test_a_calibration_is_checked_by_tenths():
    """Ten scores expect 10, 20, ... 100; all answers are 6 longer: 6 over their mean of 61."""
    scores = np.arange(10) / 10
    found = check_calibration(ranker_info(), scores, 10 + 100 * scores + 6)

    assert [round(tenth.expected_tokens) for tenth in found.tenths] == list(range(10, 101, 10))
    assert [round(tenth.answer_tokens) for tenth in found.tenths] == list(range(16, 107, 10))
    assert found.error == pytest.approx(6 / 61, abs=1e-4)
    assert found.share_between is None


def test_answers_within_the_spread_are_counted():
    """From 0.5 to 1.5 times the score: eight of ten answers are there, two are not."""
    spread = {"0.1": [0.0, 0.5], "0.5": [0.0, 1.0], "0.9": [0.0, 1.5]}
    scores = np.full(10, 1.0)

    found = check_calibration(ranker_info(token_quantiles=spread), scores, [1.0] * 8 + [2.0, 0.1])

    assert found.share_between == 0.8


def test_a_ranker_without_a_calibration_is_not_checked():
    """Nothing to compare with; nor are there tenths of nine prompts."""
    bare = RankerInfo(kind="lite", model_name="lite", max_length=1)

    assert check_calibration(bare, np.arange(20.0), np.ones(20)) is None
    assert check_calibration(ranker_info(), np.arange(9.0), np.ones(9)) is None


def test_a_cut_answer_counts_with_the_mean_of_the_longer_ones():
    """Cut at 20 beside 10, 40 and 60: as (40 + 60) / 2; cut at 60, nothing is longer: as 60."""
    lengths = lengths_if_whole([0, 0, 0, 0], [20, 10, 40, 60], [True, False, False, False])
    longest = lengths_if_whole([0, 0], [10, 60], [False, True])

    assert lengths.tolist() == [50.0, 10.0, 40.0, 60.0]
    assert longest.tolist() == [10.0, 60.0]


def test_what_was_cut_later_weighs_more_on_what_was_cut_before():
    """
    Cut at 10 and at 30, whole 20 and 40: beyond 10 the mass is 1/3 at 20, and what is left at 40:
    20 / 3 + 40 * 2 / 3 = 100 / 3; beyond 30 only 40 is left.
    """
    lengths = lengths_if_whole([0] * 4, [10, 20, 30, 40], [True, False, True, False])

    assert lengths.tolist() == pytest.approx([100 / 3, 20, 40, 40])
