"""Expected answer tokens from scores."""

import numpy as np
import pytest

from pars.learn.calibration import calibrate, pool_adjacent_violators


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
