"""Prompts with lengths, and pairs, are read and checked."""

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import DataError
from pars.learn.data.pair_files import read_pairs
from pars.learn.data.records import Row, length_unit_of, read_data

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared")) / "data"
PAIRS = [
    {"prompt_A": 'a "b",\n    "prompt_B": ', "prompt_B": "é\\", "label": 1},
    {"prompt_A": "é\\", "prompt_B": 'a "b",\n    "prompt_B": ', "label": 0},
    {"prompt_A": "", "prompt_B": "東京", "label": 1},
]


def write(path, rows, **options):
    path.write_text(json.dumps(rows, **options), "utf-8")
    return path


def test_prepared_rows_are_read(tmp_path):
    """A row of train_data.json gives its id, prompt, length, answer, category and model."""
    row = {"task_id": 7, "prompt": "p", "answer_content": "a b", "answer_length": 2}
    path = write(tmp_path / "d.json", [row, {**row, "category": "chat", "model": "m"}])

    assert read_data(path) == [Row(7, "p", 2, "a b"), Row(7, "p", 2, "a b", "chat", "m")]


def test_records_are_read_by_known_names(tmp_path):
    """A length is found under any known name, and a row without task_id goes by its id."""
    path = write(tmp_path / "d.json", [{"id": "x", "prompt": "p", "response_tokens": 12}])

    assert read_data(path) == [Row("x", "p", 12)]


def test_answer_text_is_counted_in_words(tmp_path):
    """Without a length, the answer's words are counted, and rows go by their place."""
    path = write(tmp_path / "d.json", [{"prompt": "p", "response": "one  two\nthree"}])

    assert read_data(path) == [Row(0, "p", 3, "one  two\nthree")]


def test_a_prompt_may_be_a_chat(tmp_path):
    """Its last user message is the prompt, behind a note; the answer at its end is left out."""
    chat = [
        {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a" * 40},
        {"role": "user", "content": "q2"}, {"role": "assistant", "content": "the answer"},
    ]  # fmt: skip
    path = write(tmp_path / "d.json", [{"messages": chat, "answer_tokens": 2}])

    assert read_data(path) == [Row(0, "→1 32 0\nq2", 2)]


def test_answers_before_a_prompt_may_be_told_by_length(tmp_path):
    """Characters of each, oldest first; an empty list is a first message."""
    rows = [{"prompt": "p", "answer_tokens": 2, "answers_before": it} for it in ([40, 16], [])]

    read = read_data(write(tmp_path / "d.json", rows))

    assert [row.prompt for row in read] == ["→2 16 32\np", "p"]
    assert [row.message for row in read] == ["p", "p"]


def test_fields_can_be_named(tmp_path):
    """Named fields win over known ones."""
    rows = [{"q": "p", "length": 1, "secs": 4.5, "model": "a"}, {"model": "b"}]
    path = write(tmp_path / "d.json", rows)

    read = read_data(path, names=("q", None, "secs"), where=[("model", "a")])

    assert read == [Row(0, "p", 4.5, model="a")]


BEFORE = "field 'answers_before' must be a list of whole numbers: characters of answers"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "p", "length": 1, "answers_before": [-1]}, BEFORE),
        ({"prompt": "p", "length": 1, "answers_before": 5}, BEFORE),
        (
            {"prompt": [5], "length": 1},
            "field 'prompt' must be text or a list of {role, content}",
        ),
        ({"prompt": "p"}, "no answer and no length: expected one of answer, response, "),
        ({}, "has no field 'prompt'; its fields: none"),
        ({"answer": "a"}, "has no field 'prompt'; its fields: answer"),
        ({"prompt": 5, "answer": "a"}, "field 'prompt' must be text, not a number"),
        ({"prompt": "p", "answer": [5]}, "field 'answer' must be text, not a list"),
        (
            {"prompt": "p", "length": "9 s"},
            "field 'length' must be a number of 0 or more, not '9 s'",
        ),
        ({"prompt": "p", "length": True}, "field 'length' must be a number of 0 or more, not true"),
        ({"prompt": "p", "length": -1}, "field 'length' must be a number of 0 or more, not -1"),
        ({"prompt": "p", "length": float("inf")}, "field 'length' must be a number of 0 or more"),
        ({"prompt": "p", "length": 1, "id": 1.5}, "its task_id or id must be text or a whole"),
        ({"prompt": "p", "length": 1, "model": 4}, "field 'model' must be text, not a number"),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, told):
    """A field that is missing or of the wrong type is named with its file and row."""
    path = write(tmp_path / "d.json", [row])

    with pytest.raises(DataError) as error:
        read_data(path)

    assert str(error.value).startswith(f"{path}, row 1: {told}")


def test_no_row_left_is_an_error(tmp_path):
    """An empty array, and a condition that nothing meets, are said."""
    with pytest.raises(DataError, match="has no rows"):
        read_data(write(tmp_path / "d.json", []))
    with pytest.raises(DataError, match="has no row with model=b"):
        read_data(
            write(tmp_path / "d.json", [{"prompt": "p", "length": 1, "model": "a"}]),
            where=[("model", "b")],
        )


@pytest.mark.parametrize(
    "options",
    [{"indent": 2, "ensure_ascii": False}, {"indent": 2}, {}, {"indent": 2, "sort_keys": True}],
)
def test_pairs_are_read_in_any_layout(tmp_path, options):
    """PARS's layout and others give the same pairs, each distinct prompt once."""
    read = read_pairs(write(tmp_path / "p.json", PAIRS, **options))

    assert sorted(read.prompts) == sorted({"", "東京", "é\\", 'a "b",\n    "prompt_B": '})
    assert [
        {"prompt_A": read.prompts[a], "prompt_B": read.prompts[b], "label": label}
        for a, b, label in zip(read.index_a, read.index_b, read.labels.tolist(), strict=True)
    ] == PAIRS


def test_one_prompt_escaped_in_two_ways_is_one_prompt(tmp_path):
    """Prompts are the same when their text is, not when their bytes are."""
    path = write(tmp_path / "p.json", [{"prompt_A": "é", "prompt_B": "x", "label": 1}], indent=2)
    path.write_text(path.read_text().replace('"x"', '"é"'), "utf-8")

    assert read_pairs(path).prompts == ["é"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"label": 2}, "field 'label' must be 0 or 1, not 2"),
        ({"label": True}, "field 'label' must be 0 or 1, not True"),
        ({"label": "1"}, "field 'label' must be 0 or 1, not '1'"),
        ({"prompt_A": 3}, "field 'prompt_A' must be text, not a number"),
        ({"prompt_B": ["x"]}, "field 'prompt_B' must be text, not a list"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_wrong_pairs_are_named(tmp_path, change, told, indent):
    """A pair of the wrong type is named with its row, in PARS's layout too."""
    path = write(tmp_path / "p.json", [PAIRS[0], {**PAIRS[1], **change}], indent=indent)

    with pytest.raises(DataError) as error:
        read_pairs(path)

    assert str(error.value) == f"{path}, row 2: {told}"


def test_missing_pair_fields_and_empty_files_are_named(tmp_path):
    """No prompt_B, no pair and no whole file each have their own line."""
    with pytest.raises(DataError, match="row 1: has no field 'prompt_B'"):
        read_pairs(write(tmp_path / "p.json", [{"prompt_A": "a", "label": 1}], indent=2))
    with pytest.raises(DataError, match="has no pairs"):
        read_pairs(write(tmp_path / "p.json", []))
    path = write(tmp_path / "p.json", PAIRS, indent=2)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="row 3: the file ends inside this row"):
        read_pairs(path)
    with pytest.raises(DataError, match="No such file"):
        read_pairs(tmp_path / "none.json")


def test_unit_is_read_beside_the_data(tmp_path):
    """prepare.json tells the unit of the lengths; without it they are tokens."""
    write(tmp_path / "train_data.json", [{"prompt": "p", "answer_length": 3}])
    assert length_unit_of(tmp_path / "train_data.json") == "tokens"
    write(tmp_path / "prepare.json", {"length_unit": "words"})
    assert length_unit_of(tmp_path / "train_data.json") == "words"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")
@pytest.mark.parametrize(
    ("name", "num_rows"),
    [("chat_mtbench", 320), ("code_gpteacher_gpt4", 4_535), ("reasoning_skythought", 2_390)],
)
def test_shared_records_are_read(name, num_rows):
    """Every record of real files is read, with a positive length and its category."""
    rows = read_data(SHARED / f"{name}.jsonl.gz")

    assert len(rows) == num_rows
    assert all(row.answer_length > 0 and row.category for row in rows)


def test_an_answer_cut_short_is_known_by_its_finish_reason(tmp_path):
    """A record of `pars collect` tells it: "length" was cut at the limit, "stop" was not."""
    row = {"prompt": "p", "answer_tokens": 9}
    path = write(tmp_path / "d.json", [{**row, "finish_reason": it} for it in ("length", "stop")])

    assert [row.is_censored for row in read_data(path)] == [True, False]


def test_every_command_that_reads_a_log_takes_the_names_of_its_fields() -> None:
    """Who may keep some of its rows may say where things stand in them."""
    options = {
        name: {it for parameter in command.params for it in parameter.opts}
        for name, command in commands.commands.items()
    }
    reads = {name for name, known in options.items() if "--where" in known} | {"train"}

    assert {"prepare", "train", "evaluate", "noise", "simulate", "workload"} <= reads
    named = {"--prompt-field", "--answer-field", "--length-field"}
    assert [name for name in sorted(reads) if not named <= options[name]] == []


@pytest.mark.parametrize("command", ["noise --data", "evaluate --online"])
def test_a_log_in_columns_of_its_own_is_read_by_their_names(tmp_path: Path, command: str) -> None:
    """Without them its fields would not be found."""
    rows = [{"wish": f"a b {n // 2}", "took": {"n": n}} for n in range(1, 61)]
    log = [*command.split(), str(write(tmp_path / "log.json", rows))]
    names = ["--prompt-field", "wish", "--length-field", "took.n"]

    assert CliRunner().invoke(commands, log, standalone_mode=False).exception is not None
    found = CliRunner().invoke(commands, [*log, *names], standalone_mode=False)
    assert found.exception is None, found.output


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("Promt", None, None), "did you mean --prompt-field Prompt text?"),
        ((None, "ANSWER", None), "did you mean --answer-field answer?"),
        ((None, None, "zzz"), "--length-field names the right one"),
        (("user", None, None), "'user' holds 5 values in 60 rows, as 'user 0': labels"),
    ],
)
def test_a_wrong_column_is_refused_with_the_remedy(
    tmp_path: Path, names: tuple[str | None, str | None, str | None], says: str
) -> None:
    """By the nearest column and the option that names it."""
    rows = [
        {"Prompt text": f"ask {n}", "user": f"user {n % 5}", "answer": "a b"} for n in range(60)
    ]
    names = names if names[0] else ("Prompt text", *names[1:])

    with pytest.raises(DataError, match=re.escape(says)):
        read_data(write(tmp_path / "d.json", rows), names=names)


def test_known_columns_are_found_in_any_case(tmp_path: Path) -> None:
    """As tables that people make have them."""
    path = tmp_path / "log.csv"
    path.write_text("Prompt,Response\nWhy?,So it is\n")

    assert read_data(path) == [Row(0, "Why?", 3, "So it is")]


def test_a_response_that_is_only_its_usage_tells_the_length(tmp_path: Path) -> None:
    """No option is needed, and no text."""
    row = {"prompt": "p", "response": {"usage": {"completion_tokens": 12, "prompt_tokens": 3}}}
    path = write(tmp_path / "d.json", [row])

    assert read_data(path) == [Row(0, "p", 12)]
    assert length_unit_of(path) == "tokens"
