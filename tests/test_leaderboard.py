"""The leaderboard: who takes part, on which side a request stands, and what is told of each."""

import csv
import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import DataError, ParsError
from pars.prove.leaderboard.board import Plan, leaderboard
from pars.prove.leaderboard.contestants import RIVALS, contestants, parsed_scores
from pars.prove.leaderboard.records import Split, read_answered
from pars.prove.leaderboard.tables import as_csv, as_html, as_markdown, write_board
from pars.prove.leaderboard.worth import Queue, share_of
from pars.prove.rivals.clairvoyant import NUM_FEATURES, features
from pars.prove.rivals.predictor import Misses, held_back
from pars.prove.rivals.sagesched import gittins

from rankers import rows

pytestmark = pytest.mark.torch


def write_log(path, num_rows=600, **changes):
    """Stories are long and names short; three messages make a conversation."""
    lines = [
        {
            "prompt": row["prompt"],
            "answer_tokens": row["answer_length"],
            "conversation_id": f"c{number // 3}",
            **changes,
        }
        for number, row in enumerate(rows(num_rows))
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log") / "log.jsonl")


def test_a_conversation_stands_on_one_side(log):
    """And so does a message, whatever the conversation."""
    data = read_answered(log, Split(test_share=0.3))

    sides = [{it.conversation for it in part} for part in (data.train, data.test)]
    assert not sides[0] & sides[1]
    assert {len([it for it in data.test if it.conversation == one]) for one in sides[1]} == {3}
    assert 0.2 < len(data.test) / 600 < 0.4
    assert data.has_conversations


def test_other_rows_move_no_conversation(log, tmp_path):
    """The split is a checksum: half of the log is parted as it is in the whole."""
    half = tmp_path / "half.jsonl"
    half.write_text("\n".join(log.read_text().splitlines()[:450]))

    whole = {it.prompt for it in read_answered(log, Split()).test}
    of_half = {it.prompt for it in read_answered(half, Split()).test}

    assert of_half <= whole
    assert len(of_half) > 50


def test_too_few_requests_are_refused(tmp_path):
    """The side that lacks them is named."""
    with pytest.raises(DataError, match="requests to judge by: want 50 or more"):
        read_answered(write_log(tmp_path / "few.jsonl", 90), Split())


def test_a_conversation_field_that_no_row_has_is_named(log):
    """By the option that asked for it."""
    with pytest.raises(DataError, match=r"no field 'thread' \(--conversation-field"):
        read_answered(log, Split(conversation_field="thread"))


def test_an_answer_is_in_tokens_and_cut_ones_are_known(tmp_path):
    """Words count 4/3 tokens, and `finish` tells what was cut short, as `finish_reason` does."""
    path = tmp_path / "log.jsonl"
    lines = [
        {"prompt": f"p {n}", "answer": "one two three " * (1 + n % 2), "finish": "length"}
        for n in range(500)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))

    data = read_answered(path, Split())

    assert {it.tokens for it in data.train} == {4.0, 8.0}
    assert all(it.is_censored for it in data.train)
    assert not data.has_conversations


def test_clairvoyants_19_features_worked_out_by_hand():
    """40 characters are 10 tokens; code, no limit, no question, no format, one clause; `write`."""
    told = features("Write a function that sorts a long list.")

    assert NUM_FEATURES == len(told) == 19
    assert told[:6] == [10, 1, 0, 0, 0, 1]
    assert told[6:].index(1.0) == 5  # `list` stands before `write` in its order
    assert sum(told[6:]) == 1
    assert features("Ok?")[6:].index(1.0) == 12


def test_gittins_index_of_four_answers_worked_out_by_hand():
    """1 or 9: at d=1 the work is 1 for a half: 2. Always 3: 3. So the first goes before."""
    assert gittins(np.array([[9.0, 1.0], [3.0, 3.0]])).tolist() == [2.0, 3.0]


def test_misses_become_an_interval_of_eight_in_ten():
    """Misses of -1 to 1 in log tokens: 80% lie within 0.8, so e^0.8 times more or less."""
    misses = Misses.of(np.linspace(-1, 1, 1001), np.zeros(1001))
    told = misses.around(np.array([math.log(101)]))

    assert told.tokens == pytest.approx([100])
    assert told.low == pytest.approx([101 * math.exp(-0.8) - 1])
    assert told.high == pytest.approx([101 * math.exp(0.8) - 1])


def test_a_tenth_of_the_conversations_is_held_back(log):
    """Whole ones, and nothing stands on both sides."""
    data = read_answered(log, Split())

    kept, apart = held_back(data.train)

    assert not {data.train[i].conversation for i in kept} & {
        data.train[i].conversation for i in apart
    }
    assert len(apart) == pytest.approx(len(data.train) / 10, abs=4)


def test_a_share_of_the_gain_worked_out_by_hand():
    """From 4 to 1 is the oracle's gain; 2 has two thirds of it. Without a gain there is none."""
    base, policy, best = (np.full(200, it) for it in (4.0, 2.0, 1.0))

    share = share_of(base, policy, best)

    assert (share.value, share.low, share.high) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert math.isnan(share_of(best, policy, best).value)


def test_who_knows_the_answers_leads_the_board(log, tmp_path, monkeypatch):
    """Beside the prompt's length and another system's file of nonsense, in a queue that is full."""
    nonsense = tmp_path / "nonsense.jsonl"
    prompts = [json.loads(line)["prompt"] for line in log.read_text().splitlines()]
    nonsense.write_text(
        "\n".join(json.dumps({"prompt": it, "score": len(it) % 7}) for it in prompts)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "knows.py").write_text(
        "class Oracle:\n"
        "    def score(self, prompts):\n"
        "        return [200.0 if 'story' in prompt else 5.0 for prompt in prompts]\n"
        "    expected_tokens = score\n"
    )
    plan = Plan(
        split=Split(test_share=0.4),
        num_resamples=100,
        queue=Queue(loads=(1.2,), bounds=("", "@1.5x"), slots=2),
    )

    board = leaderboard(
        [log], ("prompt-length", "knows:Oracle"), scores={"theirs": nonsense}, plan=plan
    )

    first, *others = board.files[0].lines
    assert first.predictor == board.files[0].against == "knows:Oracle"
    assert first.tau_b_filtered.value == pytest.approx(1, abs=0.35)  # names differ by a word or two
    assert first.calibrated.bias == pytest.approx(1, abs=0.05)
    assert math.isnan(first.difference.value)
    assert first.worth[""][1.2].value > 0.9
    assert {it.predictor for it in others} == {"prompt-length", "theirs"}
    nonsense_line = next(it for it in others if it.predictor == "theirs")
    assert nonsense_line.difference.high < 0
    assert nonsense_line.worth[""][1.2].value < first.worth[""][1.2].value
    assert nonsense_line.calibrated is None


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_learns_that_stories_are_long(log, name):
    """Each by its own way, but for the prompt's length, which learns nothing."""
    plan = Plan(num_resamples=100, queue=None)

    line = leaderboard([log], (name,), plan=plan).files[0].lines[0]

    assert line.tau_b.value > 0.4
    assert line.source
    if line.calibrated is not None and line.calibrated.coverage is not None:
        assert line.calibrated.coverage > 0.3
    assert line.cost.held_bytes > 0


def test_the_board_is_written_in_four_shapes(log, tmp_path):
    """The same numbers in each: a row of CSV, a line of JSON, and a cell in Markdown and HTML."""
    board = leaderboard([log], ("prompt-length",), plan=Plan(num_resamples=100, queue=None))

    paths = write_board(board, tmp_path / "out")

    assert [path.suffix for path in paths] == [".csv", ".md", ".html", ".json"]
    row = next(csv.DictReader(paths[0].read_text().splitlines()))
    line = json.loads(paths[-1].read_text())["files"][0]["lines"][0]
    assert float(row["tau_b"]) == line["tau_b"] == round(board.files[0].lines[0].tau_b.value, 4)
    assert as_csv(board) == paths[0].read_text()
    told = str(board.files[0].lines[0].tau_b)
    assert told in as_markdown(board)
    assert told in as_html(board)
    assert "<script" not in as_html(board)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--predictors", "nobody"], "--predictors nobody: want one of prompt-length"),
        (["--predictors", "ltr,ltr"], "--predictors: ltr stands there twice"),
        (["--predictors", "ltr", "--against", "tie"], "--against tie: is none of ltr"),
        (["--predictors", "ltr", "--loads", "0.8,x"], "--loads takes numbers above 0"),
        (["--predictors", "ltr", "--num-test", "10"], "--num-test must be at least 50, not 10"),
        (["--predictors", "ltr", "--scores", "theirs"], "--scores takes NAME=FILE, not theirs"),
    ],
)
def test_a_wrong_option_is_named(log, options, says):
    """Before anything is trained."""
    done = CliRunner().invoke(commands, ["leaderboard", "--records", str(log), *options])

    assert isinstance(done.exception, ParsError)
    assert says in str(done.exception)


def test_a_file_of_scores_that_is_not_there_is_named(tmp_path):
    """Before anything is trained."""
    with pytest.raises(DataError, match="no such file of scores"):
        parsed_scores([f"theirs={tmp_path / 'none.csv'}"])


def test_the_command_prints_the_board(log, tmp_path):
    """One predictor of a second's work, in a queue; the files lie where they were asked for."""
    done = CliRunner().invoke(
        commands,
        [
            *("leaderboard", "--records", str(log), "--predictors", "prompt-length,online-cold"),
            *("--loads", "1.2", "--bounds", "none", "--slots", "2"),
            *("--output-dir", str(tmp_path / "out")),
        ],
        catch_exceptions=False,
    )

    assert done.exit_code == 0
    assert "less online-cold" in done.output or "less prompt-length" in done.output
    assert "Share of the oracle's gain" in done.output
    assert (tmp_path / "out/leaderboard.html").is_file()


def test_names_are_those_of_the_registry():
    """Every built-in predictor can be made, with its name, source and difference."""
    made = contestants(tuple(RIVALS), {})

    assert [it.name for it in made] == list(RIVALS)
    assert all(isinstance(it.predictor.differs, str) and it.predictor.source for it in made)
