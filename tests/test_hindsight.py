"""What is expected of answers is corrected by what came of such before."""

import math
import random

import pytest

from pars.scheduling.policies.hindsight import HALF_LIFE, LEAST_SEEN, Hindsight


def learned(guess, num_answers: int = 2000, seed: int = 0) -> Hindsight:
    """It has seen answers of log-normal length, with that guess at each."""
    hindsight, chance = Hindsight(), random.Random(seed)
    for _ in range(num_answers):
        tokens = math.exp(chance.gauss(5.0, 1.0))
        hindsight.learn(guess(chance, tokens), tokens)
    return hindsight


def test_before_answers_come_predictions_count_as_told():
    """Nothing is known against them."""
    hindsight = Hindsight()

    assert hindsight.is_useful
    assert hindsight.answer(300.0) == pytest.approx((300.0, 300.0))


def test_perfect_predictions_stay_as_they_are():
    """The line is the diagonal."""
    hindsight = learned(lambda chance, tokens: tokens)

    assert hindsight.answer(40.0) == pytest.approx((40.0, 40.0))
    assert hindsight.is_useful


def test_noisy_predictions_are_drawn_towards_the_mean():
    """
    Of log true N(5, 1) and an error of 0.7 the slope is 1 / 1.49, and 0.33 of the variance is left:
    who is told e^7 has e^(5 + 2 / 1.49) in the middle.
    """
    hindsight = learned(lambda chance, tokens: tokens * math.exp(chance.gauss(0, 0.7)), 20_000)
    middle = 5 + 2 / 1.49

    answer = hindsight.answer(math.exp(7.0))

    assert math.log(answer.mean) == pytest.approx(middle + 0.33 / 2, abs=0.1)
    assert math.log(answer.typical) == pytest.approx(middle - 0.33 / 2, abs=0.1)
    assert hindsight.is_useful


def test_predictions_twenty_times_too_small_are_put_right():
    """What is charged for a request is what such requests take."""
    hindsight = learned(lambda chance, tokens: tokens / 20, 4000)

    assert hindsight.answer(10.0).mean == pytest.approx(200.0, rel=0.05)


def test_predictions_upside_down_are_turned_round():
    """The longest told is the shortest expected."""
    hindsight = learned(lambda chance, tokens: 1e5 / tokens)

    assert hindsight.is_useful
    assert hindsight.answer(1e3).mean > hindsight.answer(1e4).mean


@pytest.mark.parametrize("seed", range(5))
def test_predictions_that_have_nothing_to_do_with_answers_are_useless(seed: int):
    """And so is one number for all; after a hundred answers or so."""
    random_guess = learned(lambda chance, tokens: math.exp(chance.gauss(5.0, 1.0)), 1000, seed)
    constant = learned(lambda chance, tokens: 100.0, int(LEAST_SEEN) + 10, seed)

    assert not random_guess.is_useful
    assert not constant.is_useful


def test_answers_that_are_all_alike_need_no_prediction():
    """A classifier's one token: requests still differ by their prompts."""
    hindsight = Hindsight()
    for _ in range(500):
        hindsight.learn(1.0, 1.0)

    assert hindsight.is_useful
    assert hindsight.answer(1.0) == pytest.approx((1.0, 1.0))


def test_a_requests_own_limit_counts_beyond_all_hindsight():
    """What is cut at 16 tokens is never expected to be longer; what was told at its limit stays."""
    hindsight = learned(lambda chance, tokens: tokens / 20)

    assert hindsight.answer(10.0, most=16.0) == (16.0, 16.0)
    assert hindsight.answer(16.0, most=16.0) == (16.0, 16.0)


def test_it_follows_when_traffic_changes():
    """After some half-lives of another model's answers, what the first did is forgotten."""
    hindsight, chance = learned(lambda chance, tokens: tokens), random.Random(1)
    for _ in range(int(8 * HALF_LIFE)):
        tokens = math.exp(chance.gauss(5.0, 1.0))
        hindsight.learn(tokens * 10, tokens)

    assert hindsight.answer(1000.0).mean == pytest.approx(100.0, rel=0.1)


@pytest.mark.parametrize("pair", [(0.0, 0.0), (1e12, 0.0), (0.0, 1e12), (1e12, 1e12)])
def test_no_pair_of_numbers_breaks_it(pair: tuple[float, float]):
    """Whatever is told and comes, what it says is a number of tokens."""
    hindsight = Hindsight()
    for _ in range(300):
        hindsight.learn(*pair)

    for told in (0.0, 1.0, 1e12):
        answer = hindsight.answer(told)
        assert 1.0 <= answer.typical <= answer.mean < 1e10
