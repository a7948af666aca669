"""What repeated answers say of the limit of order, by hand."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import DataError, ParsError
from pars.learn.evaluation.noise import ceiling_of, measure_noise, tau_of_mean
from pars.learn.evaluation.noise_report import render
from pars.ranking.order_metrics import kendall_tau_b


def write_answers(path, lengths, model=None):
    """`lengths`: of each prompt, those of its answers."""
    more = {"model": model} if model else {}
    lines = [
        json.dumps({"prompt": prompt, "answer_length": length, **more})
        for prompt, of_prompt in lengths.items()
        for length in of_prompt
    ]
    path.write_text("\n".join(lines))
    return path


def test_answers_that_do_not_differ_leave_a_ceiling_of_1(tmp_path):
    """Each prompt has one length, so its other answer tells everything and no pair turns round."""
    path = write_answers(tmp_path / "same.jsonl", {"a": [10] * 3, "b": [20] * 3, "c": [40] * 3})

    noise = measure_noise(path)

    assert noise.two_answers.value == noise.others_mean.value == noise.ceiling.value == 1.0
    assert noise.num_equal == 3
    assert noise.within_sigma == 0.0
    assert {row.right for row in noise.differences if row.share} == {1.0}
    assert noise.thresholds[0.9].least == 0.5  # the least difference there is: 10 of 20, 20 of 40
    assert "CAUTION: 100% of the prompts have answers of one length" in render(noise)


def test_a_pair_that_always_turns_round_costs_two_pairs_of_three(tmp_path):
    """
    Whichever answers of a and b are drawn, the order is the other way round the next time, while
    both stay below c: tau-b is (2 - 1) / 3, R = sin(pi / 6) = 1/2, the ceiling
    2/pi arcsin(sqrt(1/2)) = 1/2.
    """
    path = write_answers(tmp_path / "r.jsonl", {"a": [10, 40], "b": [20, 30], "c": [400, 400]})

    noise = measure_noise(path)

    assert noise.two_answers.value == pytest.approx(1 / 3)
    assert noise.others_mean.value == pytest.approx(1 / 3)  # the mean of the one other answer
    assert noise.others_mean_expected == pytest.approx(1 / 3)
    assert noise.ceiling.value == pytest.approx(1 / 2)


def test_pairs_are_told_by_their_difference(tmp_path):
    """
    Pairs of a and b differ by a quarter, a half or two thirds and are never right again; those with
    c differ by 0.9 and more and always are.
    """
    path = write_answers(tmp_path / "r.jsonl", {"a": [10, 40], "b": [20, 30], "c": [400, 400]})

    noise = measure_noise(path)
    by_least = {row.least: row for row in noise.differences}

    assert [by_least[least].right_here for least in (0.2, 0.5, 0.6)] == [0.0, 0.0, 0.0]
    assert by_least[0.9].right_here == by_least[0.9].right == 1.0
    assert math.isnan(by_least[0.3].right_here)  # no pair differs by 0.3 to 0.4
    assert by_least[0.0].right == pytest.approx(2 / 3, abs=0.01)
    assert by_least[0.3].share == pytest.approx(1 - 1 / 12, abs=0.01)  # without 40 against 30
    assert noise.thresholds[0.75].least == noise.thresholds[0.9].least == 0.9


def test_no_difference_is_enough_where_order_is_luck(tmp_path):
    """Both prompts draw from 10 and 1000: a pair of different lengths always turns round."""
    path = write_answers(tmp_path / "luck.jsonl", {"a": [10, 1000], "b": [1000, 10]})

    noise = measure_noise(path)

    assert noise.thresholds == {0.75: None, 0.9: None}
    assert math.isnan(noise.ceiling.value)  # two answers agree no more than by chance
    assert "No difference of two lengths makes their order 75% sure" in render(noise)
    assert noise.as_json()["ceiling"]["value"] is None


def test_sigmas_are_those_of_the_analysis_of_variance(tmp_path):
    """
    Logs 1 and 3, 5 and 7: within, squares 2 + 2 over 2 = 2; between, means 2 and 6, so 2 (4 + 4)
    over 1 = 16, less 2, over 2 answers = 7.
    """
    e = math.e
    path = write_answers(tmp_path / "s.jsonl", {"a": [e, e**3], "b": [e**5, e**7]})

    noise = measure_noise(path)

    assert noise.within_sigma == pytest.approx(math.sqrt(2))
    assert noise.between_sigma == pytest.approx(math.sqrt(7))


def test_only_answers_of_one_model_are_compared(tmp_path):
    """Model y answers ten times as long and the other way round; alone, each is without noise."""
    x = write_answers(tmp_path / "x.jsonl", {"a": [10, 10], "b": [20, 20]}, "x").read_text()
    y = write_answers(tmp_path / "y.jsonl", {"a": [200, 200], "b": [100, 100]}, "y").read_text()
    both = tmp_path / "both.jsonl"
    both.write_text(x + "\n" + y)

    noise = measure_noise(both)

    assert (noise.num_models, noise.num_prompts, noise.ceiling.value) == (2, 4, 1.0)
    assert noise.between_sigma == pytest.approx(math.log(2) / math.sqrt(2))


def test_prompts_with_one_answer_are_left_out_and_counted(tmp_path):
    """A third prompt, asked once, enters no figure."""
    path = write_answers(tmp_path / "r.jsonl", {"a": [10, 10], "b": [20, 20, 20], "c": [5]})

    noise = measure_noise(path)

    assert (noise.num_rows, noise.num_prompts, noise.num_single) == (5, 2, 1)
    assert noise.answers_each == {2: 1, 3: 1}
    assert "1 prompts with one answer are left out" in render(noise)


def test_answers_that_were_cut_short_are_told(tmp_path):
    """They count with the length they have, which is said."""
    rows = [
        {"prompt": prompt, "answer_length": length, "finish_reason": reason}
        for prompt, length, reason in [("a", 10, "stop"), ("a", 12, "stop"), ("b", 512, "length")]
        * 2
    ]
    path = tmp_path / "cut.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))

    noise = measure_noise(path)

    assert noise.num_cut == 2
    assert "2 answers were cut short: each counts with the length it has" in render(noise)


@pytest.mark.parametrize("num_answers", [2, 4])
def test_the_ceiling_is_what_a_perfect_predictor_reaches(tmp_path, num_answers):
    """Log-normal answers, of which the prompts' true means are known: within 0.02."""
    rng = np.random.default_rng(0)
    means = rng.normal(5, 1, 3000)
    lengths = np.exp(means[:, None] + 0.5 * rng.normal(size=(3000, num_answers)))
    path = write_answers(
        tmp_path / "r.jsonl", {f"prompt {i}": row.tolist() for i, row in enumerate(lengths)}
    )
    truth = kendall_tau_b(means, np.exp(means + 0.5 * rng.normal(size=3000)))

    noise = measure_noise(path)

    assert noise.ceiling.value == pytest.approx(truth, abs=0.02)
    assert noise.others_mean.value == pytest.approx(noise.others_mean_expected, abs=0.01)


def test_the_mean_of_many_answers_approaches_the_ceiling():
    """From a tau-b of 1/3: one other answer 1/3, ever more of them 1/2."""
    assert tau_of_mean(1 / 3, 1) == pytest.approx(1 / 3)
    assert tau_of_mean(1 / 3, 1e9) == pytest.approx(float(ceiling_of(1 / 3))) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("lengths", "problem"),
    [
        ({"a": [1], "b": [2]}, "no prompt has two answers of one model"),
        ({"a": [1, 2], "b": [2]}, "only one prompt of a model has two answers"),
        ({"a": [7, 7], "b": [7, 7]}, "all answers have one length"),
    ],
)
def test_data_that_tells_nothing_is_named(tmp_path, lengths, problem):
    """The file, what is missing and what would be right."""
    path = write_answers(tmp_path / "bad.jsonl", lengths)

    with pytest.raises(DataError, match=rf"bad\.jsonl: {problem}"):
        measure_noise(path)


def test_the_command_prints_and_writes(tmp_path):
    """The ceiling for people, noise.json for programs."""
    path = write_answers(tmp_path / "r.jsonl", {"a": [10, 40], "b": [20, 30], "c": [400, 400]})

    run = CliRunner().invoke(
        commands, ["noise", "--data", str(path), "--output-dir", str(tmp_path / "out")]
    )

    assert run.exit_code == 0, run.output
    assert "perfect predictor: the ceiling  0.500" in run.output
    assert "--threshold 0.90: from there on" in run.output
    told = json.loads((tmp_path / "out/noise.json").read_text())
    assert told["ceiling"]["value"] == 0.5
    assert told["thresholds"]["0.9"]["least"] == 0.9
    assert told["differences"][0]["least"] == 0.0


def test_too_few_resamples_are_refused(tmp_path):
    """With what would be right."""
    path = write_answers(tmp_path / "r.jsonl", {"a": [1, 2], "b": [3, 4]})

    run = CliRunner().invoke(commands, ["noise", "--data", str(path), "--resamples", "5"])

    assert isinstance(run.exception, ParsError)
    assert "--resamples must be at least 100" in str(run.exception)
