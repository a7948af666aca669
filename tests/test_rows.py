"""Rows come out of any of the file shapes, and errors name file, row and field."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pars.learn.data.rows
from pars.errors import DataError
from pars.learn.data.fields import is_wanted
from pars.learn.data.rows import read_rows

ROWS = [{"prompt": 'say "東京"', "n": 1}, {"prompt": "a\nb\\", "n": None}, {"prompt": "", "n": 2.5}]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        "  \n" + json.dumps(ROWS) + "\n\n",
        lines(ROWS),
        "\n" + lines(ROWS).replace("\n", "\r\n\r\n"),
        lines(ROWS).rstrip(),
    ],
)
@pytest.mark.parametrize("wrap", [bytes, gzip.compress, lambda text: b"\xef\xbb\xbf" + text])
def test_json_shapes_read_alike(tmp_path, content, wrap):
    """Arrays and lines, indented or not, gzipped or with a byte-order mark, give the same rows."""
    path = write(tmp_path / "any.name", wrap(content.encode()))

    assert list(read_rows(path)) == ROWS


def test_parquet_is_read(tmp_path):
    """A Parquet file gives its rows, in order."""
    pyarrow = pytest.importorskip("pyarrow", reason="reading Parquet needs the train extra")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")

    assert list(read_rows(tmp_path / "rows.parquet")) == ROWS


@settings(max_examples=60)
@given(
    rows=st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.text()), max_size=6),
    chunk_bytes=st.integers(1, 40),
    indent=st.none() | st.just(1),
)
def test_chunks_may_end_anywhere(tmp_path_factory, rows, chunk_bytes, indent):
    """An array reads the same however the file falls into chunks."""
    path = tmp_path_factory.mktemp("chunks") / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=bool(len(rows) % 2), indent=indent), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pars.learn.data.rows, "_CHUNK_BYTES", chunk_bytes)

        assert list(read_rows(path)) == rows


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "f: is empty"),
        (" \n", "f: is empty"),
        ("prompt\n", "f: is none of a JSON array, JSON lines, CSV with a first line of names, "),
        ('[{"a": 1}, {"a" 2}]', "f, row 2: not valid JSON: Expecting ':' delimiter"),
        ('[{"a": 1} {"a": 2}, {"a": 3}]', "f, row 2: not valid JSON: Expecting ','"),
        ('[{"a": 1},, {"a": 22222222}]', "f, row 2: not valid JSON: Expecting value"),
        ('[{"a": 1}, 5]', "f, row 2: must be a JSON object, not a number"),
        ('[{"a": 1}] []', "f: has text after its closing ] (row 1 is its last)"),
        ('[{"a": 1}, {"a": "x', "f, row 2: the file ends inside this row"),
        ('[{"a": 1}, {"a": tru', "f, row 2: the file ends inside this row"),
        ('[{"a": 1}', "f, row 2: the file ends inside this row"),
        ('{"a": 1}\n{"a" 2}\n', "f, row 2: not valid JSON: Expecting ':' delimiter; a line must"),
        ('{"a": 1}\n\n[2]\n', "f, row 2: must be a JSON object, not a list"),
        ('{"a": 1}\n{"a": "x', "f, row 2: the file ends inside this row"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "f, row 2: not UTF-8 text"),
        (b'[{"a": "\xff"}]', "f: row 1 or a later one is not UTF-8 text"),
        ("[" + '{"a":' * 100_000, "f, row 1: JSON that cannot be read: maximum recursion"),
        (gzip.compress(lines(ROWS * 99).encode())[:-9], "f: cannot be read: Compressed file ended"),
        (b"PAR1 and no more", "f: is not valid Parquet: "),
    ],
)
def test_damage_is_named_by_file_and_row(tmp_path, content, told):
    """One line says which file and which row is not what it must be."""
    write(tmp_path / "f", content)

    with pytest.raises(DataError) as error:
        list(read_rows(tmp_path / "f"))

    assert str(error.value).startswith(f"{tmp_path}/{told}")
    assert "\n" not in str(error.value)


def test_missing_file_and_folder_are_named(tmp_path):
    """A path that is no file gives a line that says so."""
    with pytest.raises(DataError, match=r"none\.json: cannot be read: No such file"):
        list(read_rows(tmp_path / "none.json"))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(read_rows(tmp_path))


@pytest.mark.parametrize("cut", ['{"prompt": "東', '{"prompt": "x\\u00', '{"n": 1', "{"])
def test_cut_file_gives_its_whole_rows(tmp_path, cut):
    """With on_cut, the rows before the cut are read and the dropped bytes are counted."""
    dropped = []
    whole = lines(ROWS)
    path = write(tmp_path / "f.jsonl", whole + cut)
    assert list(read_rows(path, on_cut=dropped.append)) == ROWS

    array = json.dumps(ROWS)[:-1]
    path = write(tmp_path / "f.json", array + ", " + cut)
    assert list(read_rows(path, on_cut=dropped.append)) == ROWS

    assert dropped == [len(cut.encode()), len(cut.encode()) + 2]


def test_cut_inside_a_character_is_a_cut(tmp_path):
    """A file may end between the bytes of one character."""
    dropped = []
    path = write(tmp_path / "f.json", '[{"a": 1}, {"a": "é'.encode()[:-1])

    assert list(read_rows(path, on_cut=dropped.append)) == [{"a": 1}]
    assert dropped == [len(b', {"a": "') + 1]


def test_damage_in_the_middle_is_no_cut(tmp_path):
    """on_cut forgives the file's end, not a broken row before it."""
    path = write(tmp_path / "f.json", '[{"a": 1}, {"a" 2}, ' + json.dumps(ROWS)[1:])

    with pytest.raises(DataError, match="row 2: not valid JSON"):
        list(read_rows(path, on_cut=[].append))


@pytest.mark.parametrize(
    ("value", "wanted", "same"),
    [("gpt-4", "gpt-4", True), ("gpt-4", "gpt", False), (1, "1", True), (True, "true", True),
     (None, "null", True), (1.5, "1.5", True), ("1", "1", True), (2, "1", False)],
)  # fmt: skip
def test_conditions_compare_text_or_json(value, wanted, same):
    """A condition holds where the field's text, or the JSON of what is not text, is the same."""
    assert is_wanted({"f": value}, [("f", wanted)], "file", 1) is same


def test_condition_on_a_missing_field_is_an_error():
    """A misspelt field must not silently drop every row."""
    with pytest.raises(DataError, match="row 7: has no field 'modle'; its fields: model"):
        is_wanted({"model": "a"}, [("modle", "a")], "file", 7)
