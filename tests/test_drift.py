"""Drift: tau-b over a window, its interval, and when a ranker is disabled and enabled."""

import gzip
import heapq
import json
import math
import os
import random
import re
import threading
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pars.errors import ParsError
from pars.outcomes.drift import Drift, DriftSettings
from pars.ranking.intervals import bootstrap, tau_b_interval
from pars.ranking.order_metrics import kendall_tau_b, pair_sums

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared")) / "data"
needs_records = pytest.mark.skipif(
    not (SHARED / "chat_sharegpt.jsonl.gz").is_file(),
    reason=f"needs real records in {SHARED} (PARS_SHARED)",
)
SMALL = DriftSettings(window=200, min_answers=100, judge_every=10)


def judged(answers, settings=None):
    """A drift that saw the answers and judged once."""
    settings = settings or DriftSettings(min_answers=3)
    drift = Drift(settings)
    for answer in answers:
        drift.observe(*answer)
    drift.judge()
    return drift


def follow(drift, answers):
    """Observe answer by answer, judge when it is due; after how many answers it changed."""
    changes = []
    for number, answer in enumerate(answers, 1):
        drift.observe(*answer)
        if drift.is_due and drift.judge():
            changes.append(number)
    return changes


# The figure


def test_tau_b_of_four_answers_is_two_thirds():
    """Of six pairs five agree and one does not: (5 - 1) / 6."""
    drift = judged([(1, 10), (2, 20), (4, 30), (3, 40)])

    assert drift.tau_b.value == pytest.approx(4 / 6)
    assert (drift.num_answers, drift.num_censored) == (4, 0)


def test_an_answer_cut_short_counts_only_against_shorter_whole_ones():
    """10 < 15 and 10 < 20+ are right, 15 < 20+ is wrong, 5+ is in no pair: (2 - 1) / 3."""
    drift = judged([(1, 10), (2, 20, True), (3, 15), (9, 5, True)])

    assert drift.tau_b.value == pytest.approx(1 / 3)
    assert (drift.num_answers, drift.num_censored) == (4, 2)


def test_what_left_the_window_counts_no_more():
    """A hundred answers in the wrong order, then the window's three in the right one."""
    settings = DriftSettings(window=3, min_answers=3)

    drift = judged([(-n, n) for n in range(100)] + [(1, 1), (2, 2), (3, 3)], settings)

    assert (drift.tau_b.value, drift.num_answers) == (1.0, 3)


def test_what_is_no_length_is_left_out():
    """Neither nan, nor infinity, nor a negative count is an answer; the other three are."""
    nothing = [(math.nan, 5), (5, math.nan), (math.inf, 5), (5, math.inf), (5, -1)]

    drift = judged([*nothing, (1, 1), (2, 0), (-3.5, 9)])

    assert drift.num_answers == 3


few_values = st.integers(min_value=0, max_value=6)
observations = st.lists(st.tuples(few_values, few_values, st.booleans()), max_size=40)


@given(answers=observations, window=st.integers(min_value=3, max_value=20))
def test_the_figure_is_that_of_every_certain_pair_of_the_window(answers, window):
    """Signs of pairs one by one over Kendall's denominator, whatever is tied or cut short."""
    drift = judged(answers, DriftSettings(window=window, min_answers=3))

    signs = same_score = same_length = num_pairs = 0
    last = answers[-window:] if len(answers) >= 3 else []
    for (x, a, a_cut), (y, b, b_cut) in combinations(last, 2):
        if (a_cut and a <= b) or (b_cut and b <= a):
            continue
        num_pairs += 1
        same_score += x == y
        same_length += a == b
        signs += np.sign(x - y) * np.sign(a - b)
    product = (num_pairs - same_score) * (num_pairs - same_length)
    if product == 0:
        assert drift.tau_b is None
    else:
        assert drift.tau_b.value == pytest.approx(signs / math.sqrt(product))


@given(answers=observations)
def test_no_order_of_answers_breaks_the_rules_of_an_interval(answers):
    """It holds the value, lies within -1 and 1, and alone decides whether the ranker is in use."""
    drift = judged(answers)

    if drift.tau_b is None:
        assert drift.is_useful
    else:
        assert -1 <= drift.tau_b.low <= drift.tau_b.value <= drift.tau_b.high <= 1
        assert drift.is_useful == (drift.tau_b.high >= 0)


# The interval


def noisy(num_answers, noise, seed):
    """Scores and lengths that follow them, log-normal, [num_answers] each."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=num_answers)
    return scores, np.round(np.exp(scores + noise * rng.normal(size=num_answers)) * 50)


@pytest.mark.parametrize("share_censored", [0.0, 0.2])
@pytest.mark.parametrize("noise", [0.5, 1.0, 5.0])
def test_the_interval_is_the_bootstraps(noise, share_censored):
    """Without drawing it ends within 0.01 of where a thousand resamples end."""
    scores, lengths = noisy(500, noise, seed=1)
    is_censored = np.random.default_rng(2).random(500) < share_censored
    sums = pair_sums(scores, lengths, is_censored=is_censored)

    interval, drawn = tau_b_interval(sums), bootstrap(sums, "tau_b")

    assert interval.value == drawn.value
    assert interval.low == pytest.approx(drawn.low, abs=0.01)
    assert interval.high == pytest.approx(drawn.high, abs=0.01)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_nineteen_of_twenty_intervals_hold_the_true_value(correlation):
    """Of normal pairs tau is 2/pi asin(rho); 300 intervals of 200 answers hold it in 92 to 98%."""
    rng = np.random.default_rng(3)
    true_tau = 2 / math.pi * math.asin(correlation)
    num_holding = 0
    for _ in range(300):
        x, noise = rng.normal(size=(2, 200))
        y = correlation * x + math.sqrt(1 - correlation**2) * noise
        interval = tau_b_interval(pair_sums(x, np.exp(y)))
        num_holding += interval.low <= true_tau <= interval.high

    assert 0.92 <= num_holding / 300 <= 0.98


# In use, and not


def test_a_ranker_that_turns_the_order_round_is_put_out_of_use():
    """A hundred answers exactly the wrong way: tau-b -1, all of its interval below 0."""
    drift = judged([(-n, n) for n in range(100)], SMALL)

    assert not drift.is_useful
    assert drift.tau_b.high == -1


def test_nothing_is_judged_before_there_are_enough_answers():
    """99 of 100 wanted, all the wrong way: no figure, and the ranker stays in use."""
    drift = judged([(-n, n) for n in range(99)], SMALL)

    assert not drift.is_due
    assert drift.tau_b is None
    assert drift.is_useful


def test_a_judgement_is_due_after_so_many_new_answers():
    """Ten after the last one, of which there must have been a hundred before the first."""
    drift = Drift(SMALL)
    due = []
    for number in range(1, 131):
        drift.observe(number, number)
        if drift.is_due:
            due.append(number)
            drift.judge()

    assert due == [100, 110, 120, 130]


def test_without_two_lengths_nothing_changes():
    """Equal answers say nothing about an order, to a ranker in use and to one that is not."""
    drift = judged([(-n, n) for n in range(200)], SMALL)
    follow(drift, [(n, 7) for n in range(200)])

    assert drift.tau_b is None
    assert not drift.is_useful
    assert judged([(n, 7) for n in range(200)], SMALL).is_useful


def at_chance(seed):
    """Two hundred answers in an order that has nothing to do with the predictions."""
    rng = random.Random(seed)
    return [(rng.random(), rng.randrange(1, 500)) for _ in range(200)]


def test_an_interval_that_holds_the_limit_changes_nothing():
    """A ranker at chance stays in use if it was, and out of use if it was: no flapping."""
    in_use, out_of_use = Drift(SMALL), judged([(-n, n) for n in range(200)], SMALL)
    for drift in (in_use, out_of_use):
        for answer in at_chance(seed=4):
            drift.observe(*answer)
        assert not drift.judge()
        assert drift.tau_b.low < 0 < drift.tau_b.high

    assert in_use.is_useful
    assert not out_of_use.is_useful


def test_at_a_limit_of_minus_one_it_is_only_measured():
    """Even the exactly wrong order leaves the ranker in use."""
    settings = DriftSettings(limit=-1.0, min_answers=3)

    drift = judged([(-n, n) for n in range(100)], settings)

    assert drift.tau_b.value == -1
    assert drift.is_useful


def test_each_change_is_logged_with_its_numbers(caplog):
    """Two lines: out of use, and back, each with tau-b, its interval, the answers and the limit."""
    with caplog.at_level("INFO", "pars"):
        drift = judged([(-n, n, n == 99) for n in range(100)], SMALL)
        follow(drift, [(n, n) for n in range(200)])

    out, back = caplog.messages
    assert "first come, first served" in out
    assert "tau-b -1.000 [-1.000, -1.000] over 100 answers (1 cut short) is below 0" in out
    figures = re.search(r"tau-b ([\d.]+) \[([\d.]+), [\d.]+\] over 200 answers .* above 0", back)
    assert float(figures[1]) > float(figures[2]) > 0


def test_a_newly_loaded_ranker_is_trusted(caplog):
    """What the one before predicted is forgotten, and that it was out of use; which is logged."""
    drift = judged([(-n, n) for n in range(100)], SMALL)

    with caplog.at_level("INFO", "pars"):
        drift.reset()

    assert (drift.is_useful, drift.tau_b, drift.num_answers) == (True, None, 0)
    assert not drift.is_due
    assert "newly loaded" in caplog.text


def test_a_judgement_of_the_ranker_before_does_not_come_through():
    """A thousand wrong answers are being judged while another ranker loads: it is in use."""
    for _ in range(5):
        drift = Drift()
        for number in range(1000):
            drift.observe(-number, number)
        judging = threading.Thread(target=drift.judge)
        judging.start()
        drift.reset()
        judging.join()

        assert (drift.is_useful, drift.tau_b) == (True, None)


def test_answers_from_several_threads_all_count():
    """Four threads observe 250 each while a fifth judges: the window holds a thousand."""
    drift = Drift()

    def observe(first):
        for number in range(first, first + 250):
            drift.observe(number, number)
            if number % 50 == 0:
                drift.judge()

    threads = [threading.Thread(target=observe, args=(250 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drift.judge()

    assert (drift.tau_b.value, drift.num_answers) == (1.0, 1000)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"limit": 1.0}, "limit"),
        ({"limit": math.nan}, "limit"),
        ({"limit": -1.5}, "limit"),
        ({"min_answers": 2}, "min_answers"),
        ({"window": 100}, "min_answers"),
        ({"window": 2}, "window"),
        ({"window": 20_001}, "window"),
        ({"judge_every": 0}, "judge_every"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, named):
    """In one line that names the setting."""
    with pytest.raises(ParsError, match=named):
        DriftSettings(**values)


# The kinds of traffic


def made_up_traffic(kind, seed):
    """Prompts and answer lengths: after "list" long and after "fix" short, or the reverse."""
    rng = random.Random(seed)
    medians = {"alpaca": {"list": 200, "fix": 40}, "sharegpt": {"list": 60, "fix": 300}}[kind]
    while True:
        word = rng.choice(("list", "fix"))
        yield f"{word} it", round(rng.lognormvariate(math.log(medians[word]), 0.8)) + 1


def word_ranker(prompt):
    """Expected tokens, as learned on the made-up Alpaca-like traffic."""
    return 200.0 if "list" in prompt else 40.0


def predicted(ranker, traffic, num_answers):
    """What a ranker predicts of the next prompts of the traffic, and what comes."""
    return [(ranker(prompt), tokens) for prompt, tokens in islice(traffic, num_answers)]


def test_a_switch_of_traffic_puts_the_ranker_out_of_use_until_it_switches_back():
    """Not within 3,000 answers of its own kind; within a window of the other; and back so."""
    alpaca, sharegpt = made_up_traffic("alpaca", 5), made_up_traffic("sharegpt", 6)
    drift = Drift()

    assert follow(drift, predicted(word_ranker, alpaca, 3000)) == []
    assert drift.tau_b.low > 0.3
    (out,) = follow(drift, predicted(word_ranker, sharegpt, 3000))
    assert not drift.is_useful
    assert drift.tau_b.high < -0.3
    (back,) = follow(drift, predicted(word_ranker, alpaca, 3000))
    assert drift.is_useful
    assert max(out, back) <= drift.settings.window


def real_traffic(name):
    with gzip.open(SHARED / f"{name}.jsonl.gz", "rt") as file:
        for line in file:
            record = json.loads(line)
            yield record["prompt"], record["response_tokens"]


@needs_records
def test_real_alpaca_to_real_sharegpt_puts_out_a_ranker_of_the_prompts_length():
    """Alpaca's longer prompts come with a text to work on, and get shorter answers; ShareGPT's do
    not. (A trained lite ranker keeps a little worth there: benchmarks/noon_shift.py.)"""

    def short_prompt_long_answer(prompt):
        return -len(prompt)

    alpaca = real_traffic("instruction_alpaca_davinci003")
    drift = Drift(DriftSettings(window=2000))

    assert follow(drift, predicted(short_prompt_long_answer, alpaca, 6000)) == []
    assert drift.tau_b.low > 0
    sharegpt = real_traffic("chat_sharegpt")
    changes = follow(drift, predicted(short_prompt_long_answer, sharegpt, 6000))
    assert len(changes) == 1
    assert drift.tau_b.high < 0


# What is seen first


def served(num_slots, token_s, requests):
    """
    Answers in the order in which they end, shortest predicted first, from an idle start.

    Args:
        requests: (arrival in seconds, predicted tokens, answer tokens) in order of arrival.
    """
    waiting, running, ended = [], [], []
    upcoming = 0
    while upcoming < len(requests) or waiting or running:
        next_s = requests[upcoming][0] if upcoming < len(requests) else math.inf
        if running and running[0][0] <= next_s:
            now_s, answer = heapq.heappop(running)
            ended.append(answer)
        else:
            now_s, upcoming = next_s, upcoming + 1
            heapq.heappush(waiting, requests[upcoming - 1][1:])
        while waiting and len(running) < num_slots:
            answer = heapq.heappop(waiting)
            heapq.heappush(running, (now_s + answer[1] * token_s, answer))
    return ended


def test_answers_that_end_first_make_a_useful_ranker_look_less_so_but_never_harmful():
    """Eight slots at twice their load: early windows read 0.40 to 0.45 for a true 0.51."""
    scores, lengths = noisy(3000, 1.0, seed=8)
    rng = random.Random(9)
    arrivals_s, at_s = [], 0.0
    for _ in scores:
        at_s += rng.expovariate(2 * 8 / (lengths.mean() * 0.01))
        arrivals_s.append(at_s)
    requests = list(zip(arrivals_s, scores.tolist(), lengths.tolist(), strict=True))
    drift = Drift()
    early = []
    for answer in served(8, 0.01, requests)[:1500]:
        drift.observe(*answer)
        if drift.is_due:
            drift.judge()
            early.append(drift.tau_b)

    assert drift.is_useful
    assert kendall_tau_b(scores, lengths) == pytest.approx(0.513, abs=0.02)
    assert min(it.value for it in early) == pytest.approx(0.403, abs=0.02)
    assert max(it.value for it in early) == pytest.approx(0.447, abs=0.02)
    assert min(it.low for it in early) > 0.3
