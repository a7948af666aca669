"""How a ranker's order is told."""

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import DataError, ParsError
from pars.learn.evaluation.evaluate import evaluate, render
from pars.ranking.ranker import bundled_ranker
from pars.ranking.ranker_info import RankerInfo

from rankers import lite_ranker, rows, write_data

pytestmark = pytest.mark.torch

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    return lite_ranker(tmp_path_factory.mktemp("lite") / "ranker")


def write_records(path, records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_the_oracle_is_perfect_and_the_baseline_learns(ranker, tmp_path):
    """Stories are 200 words and names 5, so TF-IDF separates them; the oracle's tau-b is 1."""
    folder = write_data(tmp_path)

    result = evaluate(ranker, folder / "val_data.json", train_data=folder / "train_data.json")

    assert result.overall["oracle"].tau_b.value == 1.0
    assert result.overall["TF-IDF + ridge"].filtered_accuracy.value > 0.95
    assert result.num_seen_prompts == 0
    assert "CAUTION" not in render(result)


def test_of_conversations_the_last_answers_length_is_a_baseline(ranker, tmp_path):
    """Here an answer is as long as the one before, which orders all; single prompts have none."""
    rows = [{"prompt": f"Go on {n}", "length": 2**n, "answers_before": [4, 2**n]} for n in range(9)]
    path = write_records(tmp_path / "data.jsonl", rows)
    single = write_records(tmp_path / "single.jsonl", [{**r, "answers_before": []} for r in rows])

    assert evaluate(ranker, path).overall["last answer"].tau_b.value == 1.0
    assert "last answer" not in evaluate(ranker, single).overall


def test_prompts_seen_in_training_are_told(ranker, tmp_path):
    """Evaluating on the training data is possible, and said."""
    folder = write_data(tmp_path)
    train_data = folder / "train_data.json"

    result = evaluate(ranker, train_data, train_data=train_data)

    assert result.num_seen_prompts == 240
    assert "CAUTION: 240 of the prompts also stand in the training data" in render(result)


def test_each_category_is_told_apart(ranker, tmp_path):
    """Two categories of 30 rows, and one of 3 that is too small for an interval."""
    records = [
        {"prompt": row["prompt"], "response_tokens": row["answer_length"], "category": category}
        for i, row in enumerate(rows(63))
        for category in [("short", "long", "tiny")[2 if i >= 60 else i % 2]]
    ]

    result = evaluate(ranker, write_records(tmp_path / "records.jsonl", records))

    assert list(result.by_category) == ["long", "short"]
    assert result.by_category["long"]["oracle"].num_rows == 30


def test_answers_of_different_models_are_not_compared(ranker, tmp_path):
    """One model answers in 10 and 20 words, the other in 100 and 50: two pairs, not six."""
    records = [
        {"prompt": "a", "answer_length": 10, "model": "x"},
        {"prompt": "b", "answer_length": 20, "model": "x"},
        {"prompt": "a", "answer_length": 100, "model": "y"},
        {"prompt": "b", "answer_length": 50, "model": "y"},
    ]

    result = evaluate(ranker, write_records(tmp_path / "records.jsonl", records))

    assert result.models == {"x": 2, "y": 2}
    # Whatever the ranker says of a and b, it is right for one model and wrong for the other.
    assert result.overall["ranker"].accuracy.value == 0.5
    assert "only answers of one model are compared" in render(result)


def calibrated_ranker(folder):
    """Expects 50 tokens of every prompt."""
    folder = lite_ranker(folder)
    info = replace(
        RankerInfo.read(folder), score_quantiles=[-9.0, 9.0], expected_tokens=[50.0, 50.0]
    )
    info.write(folder)
    return folder


def test_expected_tokens_are_told_beside_real_ones(tmp_path):
    """50 expected of each tenth, 75 words of 4/3 tokens in each: off by 50 of 100."""
    records = [{"prompt": f"p{i}", "answer": "word " * (70 + 10 * (i % 2))} for i in range(40)]
    path = write_records(tmp_path / "r.jsonl", records)

    result = evaluate(calibrated_ranker(tmp_path / "ranker"), path)

    assert {tenth.expected_tokens for tenth in result.calibration.tenths} == {50.0}
    assert np.mean([t.answer_tokens for t in result.calibration.tenths]) == pytest.approx(
        100, abs=0.01
    )
    assert "expected tokens" in render(result)
    assert result.as_json()["calibration"]["tenths"][0]["expected_tokens"] == 50.0


def test_repeated_answers_tell_the_ceiling(ranker, tmp_path):
    """60 prompts are answered in 10 and 11 words, 20 and 21, ...: no pair turns round."""
    records = [
        {"prompt": f"prompt {i}", "answer_length": 10 * i + again}
        for i in range(1, 61)
        for again in (0, 1)
    ]

    result = evaluate(ranker, write_records(tmp_path / "r.jsonl", records))

    assert result.ceiling.value > 0.99
    assert "A perfect predictor would reach 1.000" in render(result)


def test_copies_of_answers_tell_no_ceiling(ranker, tmp_path):
    """Every prompt twice with the same length: these are not samples."""
    records = [{"prompt": f"prompt {i % 60}", "answer_length": 10 + i % 60} for i in range(120)]

    assert evaluate(ranker, write_records(tmp_path / "r.jsonl", records)).ceiling is None


def test_equal_lengths_have_no_order(ranker, tmp_path):
    """The file is named."""
    path = write_records(tmp_path / "same.jsonl", [{"prompt": "a", "answer_length": 1}] * 3)

    with pytest.raises(DataError, match=r"same\.jsonl: all answers have one length"):
        evaluate(ranker, path)


def test_the_command_writes_table_json_and_picture(ranker, tmp_path):
    """A table for people, evaluation.json for programs, evaluation.png to look at."""
    folder = write_data(tmp_path / "data")

    run = CliRunner().invoke(
        commands,
        ["evaluate", "--ranker", str(ranker), "--data", str(folder / "val_data.json"),
         "--output-dir", str(tmp_path / "out")],
    )  # fmt: skip

    assert run.exit_code == 0, run.output
    assert "Kendall tau-b, all pairs" in run.output
    told = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert told["overall"]["oracle"]["tau_b"]["value"] == 1.0
    assert (tmp_path / "out/evaluation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments", [["--threshold", "2"], ["--resamples", "5"], ["--where", "model"]]
)
def test_a_wrong_option_is_named(ranker, tmp_path, arguments):
    """With what would be right."""
    path = write_records(tmp_path / "r.jsonl", [{"prompt": "a", "answer_length": 1}])

    run = CliRunner().invoke(
        commands, ["evaluate", "--ranker", str(ranker), "--data", str(path), *arguments]
    )

    assert isinstance(run.exception, ParsError)
    assert arguments[0] in str(run.exception)


def test_the_bundled_ranker_orders_real_prompts_it_never_saw(tmp_path):
    """Real prompts of a set it was not trained on: its interval lies above 0.1."""
    path = SHARED / "data/instruction_alpaca_davinci003.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"needs the shared data set {path.name}, which is not part of the project")
    with gzip.open(path, "rt") as file:
        part = [line for line, _ in zip(file, range(2000), strict=False)]
    (tmp_path / "part.jsonl").write_text("".join(part))

    result = evaluate(bundled_ranker(), tmp_path / "part.jsonl")

    assert result.overall["ranker"].tau_b.low > 0.1
