"""`pars data`: public sets in one format, from files of their shape, as there is no Hub here."""

import json

import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import DataError, ParsError
from pars.learn.data.public import PUBLIC_SETS, SCHEMA, Wanted, get
from pars.learn.data.records import read_data
from pars.learn.data.rows import read_rows

pytestmark = pytest.mark.torch

ALPACA = [
    {"instruction": "Name a sea.", "input": "", "output": "The Baltic Sea."},
    {"instruction": "Translate.", "input": "Bonjour", "output": "Hello"},
    {"instruction": "Say nothing.", "input": "", "output": ""},
]
WILDCHAT = [
    {
        "model": "gpt-4",
        "conversation": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello there"},
        ],
    }
]


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_set_becomes_rows_of_one_format(tmp_path, suffix):
    """Two of three rows have an answer; every command reads them, by the words of the answer."""
    output = tmp_path / f"alpaca{suffix}"

    count = get(Wanted(name="alpaca", output=output, input=write(tmp_path / "raw.json", ALPACA)))

    rows = [{name: it for name, it in row.items() if it is not None} for row in read_rows(output)]
    assert count == len(rows) == 2
    assert rows[1] == {
        "id": "1",
        "prompt": "Translate. Bonjour",
        "answer": "Hello",
        "source": "raw.json",
        "licence": "CC BY-NC 4.0: research only",
    }
    assert [row.answer_length for row in read_data(output)] == [3, 1]


def test_every_row_is_what_the_schema_says(tmp_path):
    """Known fields only, with the types that they have there."""
    output = tmp_path / "chats.jsonl"
    get(Wanted(name="wildchat", output=output, input=write(tmp_path / "chats.json", WILDCHAT)))

    (row,) = map(json.loads, output.read_text().splitlines())
    kinds = {"string": str, "integer": int}
    assert row["prompt"] == "Hi"
    assert row["model"] == "gpt-4"
    assert set(SCHEMA["required"]) <= row.keys() <= SCHEMA["properties"].keys()
    for name, value in row.items():
        assert isinstance(value, kinds[SCHEMA["properties"][name]["type"]])


def test_a_tokenizer_counts_the_answers(tmp_path):
    """Three words and a full stop are four tokens of a tokenizer that splits them so."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    output = tmp_path / "alpaca.jsonl"

    count = get(
        Wanted(
            name="alpaca",
            output=output,
            input=write(tmp_path / "raw.json", ALPACA),
            tokenizer=str(tmp_path / "tokenizer.json"),
            limit=1,
        )
    )

    assert count == 1
    assert json.loads(output.read_text())["answer_tokens"] == 4
    assert [row.answer_length for row in read_data(output)] == [4]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "alpacca"}, "alpacca: want one of alpaca, code"),
        ({"output": "rows.csv"}, r"want a name in \.jsonl or \.parquet"),
        ({"limit": 0}, "--limit must be 1 or more, not 0"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, changes, says):
    """With what would be right."""
    asked = {"name": "alpaca", "output": "rows.jsonl"} | changes

    with pytest.raises(ParsError, match=says):
        Wanted(**{**asked, "output": tmp_path / asked["output"]})


def test_a_file_of_another_shape_leaves_no_output(tmp_path):
    """The field that is missing is named."""
    raw = write(tmp_path / "raw.json", [{"question": "?"}])

    with pytest.raises(DataError, match="instruction"):
        get(Wanted(name="alpaca", output=tmp_path / "rows.jsonl", input=raw))
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_commands_list_get_and_print(tmp_path):
    """Each set with its licence; what was got says its licence, too."""
    run = CliRunner().invoke
    raw = write(tmp_path / "raw.json", ALPACA)
    output = str(tmp_path / "rows.jsonl")

    listed = run(commands, ["data", "list"])
    got = run(commands, ["data", "get", "alpaca", "--input", str(raw), "--output", output])
    schema = run(commands, ["data", "schema"])

    assert all(
        name in listed.output and it.licence in listed.output for name, it in PUBLIC_SETS.items()
    )
    assert "2 rows" in got.output
    assert "CC BY-NC 4.0" in got.output
    assert json.loads(schema.output) == SCHEMA
