"""Each source turns rows of its own shape into prompts and answers."""

import pytest

from pars.errors import DataError
from pars.learn.data.record_reader import Exchange, RecordReader
from pars.learn.data.sources import SOURCES, records_source


def exchanges(source, row):
    return list(SOURCES[source].exchanges_of(row, "file", 1))


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": " Add. ", "input": " 1 2\n"}, "Add. 1 2"),
        ({"instruction": " Add. ", "input": "  "}, "Add."),
        ({"instruction": "Add.", "input": None}, "Add."),
        ({"instruction": "Add."}, "Add."),
        ({"instruction": "", "input": "1 2"}, "1 2"),
    ],
)
def test_alpaca_joins_stripped_instruction_and_input(row, prompt):
    """The prompt is the stripped instruction, then a space and the stripped input, if any."""
    assert exchanges("alpaca", {**row, "output": " 3 "}) == [Exchange(prompt, " 3 ")]


@pytest.mark.parametrize("source", ["code", "math"])
def test_code_and_math_are_taken_as_they_are(source):
    """Instruction and output are not stripped."""
    row = {"instruction": " f(x) ", "output": "y\n", "input": "unused"}

    assert exchanges(source, row) == [Exchange(" f(x) ", "y\n")]


def test_lmsys_takes_first_and_last_message():
    """The first message is the prompt and the last the answer; none at all gives neither."""
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]

    assert exchanges("lmsys", {"conversation": talk}) == [Exchange("q", "a")]
    assert exchanges("lmsys", {"conversation": []}) == [Exchange("", "")]


def test_sharegpt_takes_every_answered_message():
    """
    A row gives one exchange for each human message that the assistant answers next.

    Notes tell of all that the assistant said before it: 2 and 4 characters, then 3.
    """
    said = [
        ("system", "s"), ("human", "q1"), ("gpt", "a1"), ("gpt", "more"), ("human", "lost"),
        ("human", "q2"), ("gpt", "a22"), ("user", "q3"), ("chatgpt", "a3"), ("human", "open"),
    ]  # fmt: skip
    row = {"id": "x", "conversations": [{"from": who, "value": what} for who, what in said]}

    assert [one[:2] for one in exchanges("sharegpt", row)] == [
        ("q1", "a1"), ("→2 4 2\nq2", "a22"), ("→3 3 4\nq3", "a3"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "row", "told"),
    [
        ("alpaca", {"instruction": "a", "output": 3}, "field 'output' must be text, not a number"),
        ("code", {"output": "b"}, "has no field 'instruction'; its fields: output"),
        ("lmsys", {"conversation": "hi"}, "field 'conversation' must be a list of {role, content}"),
        ("lmsys", {"conversation": ["hi"]}, "field 'conversation' must be a list of {role, conten"),
        ("lmsys", {"conversation": [{"role": "user"}]}, "has no field 'content'"),
        ("sharegpt", {"conversations": None}, "field 'conversations' must be a list of {from, val"),
    ],
)
def test_wrong_rows_are_named(source, row, told):
    """A row of another shape is named with the field that is wrong."""
    with pytest.raises(DataError, match=r"^file, row 1: ") as error:
        exchanges(source, row)

    assert told in str(error.value)


def test_settings_are_those_of_pars():
    """PARS's datasets, units, filters and numbers of pairs."""
    assert {
        name: (source.dataset, source.length_unit, source.train_num_pairs, source.val_num_pairs)
        for name, source in SOURCES.items()
        if not source.group_by_prompt
    } == {
        "alpaca": ("vicgalle/alpaca-gpt4", "words", 10, 10),
        "code": ("theblackcat102/evol-codealpaca-v1", "characters", 10, 10),
        "lmsys": ("lmsys/lmsys-chat-1m", "characters", 50, 5),
        "math": ("TIGER-Lab/MATH-plus", "characters", 10, 10),
    }
    assert SOURCES["lmsys"].where == (("model", "gpt-4"), ("turn", "1"))


@pytest.mark.parametrize(
    ("row", "names", "unit", "expected", "expected_unit"),
    [
        # A length that is there is used, and its name tells the unit.
        ({"answer": "a b"}, (None, None, None), None, ("a b", None), "words"),
        ({"response_tokens": 9}, (None, None, None), None, ("", 9), "tokens"),
        ({"answer": "a b", "length": 9}, (None, None, None), None, ("a b", 9), "tokens"),
        ({"chars": 9}, (None, None, "chars"), None, ("", 9), "characters"),
        ({"length": None, "answer": "a b"}, (None, None, None), None, None, "tokens"),
        # Asking for a unit or an answer field has the text counted, unless a length is asked for.
        ({"answer": "a b", "length": 9}, (None, None, None), "words", ("a b", None), "words"),
        ({"text": "a b", "length": 9}, (None, "text", None), None, ("a b", None), "words"),
        ({"text": "a b", "secs": 9}, (None, "text", "secs"), "words", ("a b", 9), "words"),
        ({"length": 9}, (None, None, None), "words", ("", 9), "words"),
    ],
)
def test_records_use_lengths_or_count_text(row, names, unit, expected, expected_unit):
    """Which of length and text counts follows from what is there and what is asked for."""
    row = {"prompt": "p", **row}
    reader, _ = RecordReader.settled(iter([(1, row)]), "file", names=names, length_unit=unit)
    exchange = reader(row, 1)

    assert exchange is None if expected is None else (exchange.answer, exchange.length) == expected
    assert reader.left_out == ({"no answer": 1} if expected is None else {})
    assert records_source(reader).length_unit == expected_unit


def test_records_carry_category_and_model():
    """Category and model come along where a row has them."""
    row = {"prompt": "p", "length": 1, "category": "math", "model": "m"}
    reader, _ = RecordReader.settled(iter([(1, row)]), "file")

    assert reader(row, 1) == Exchange("p", "", 1, "math", "m")
    assert reader({"prompt": "q", "length": 2}, 2) == Exchange("q", "", 2)
