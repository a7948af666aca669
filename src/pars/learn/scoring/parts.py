"""
A log cut into parts, some thousand prompts each: what is scored, kept and gone on with as one.

    for part in parts_of(Log(0, Path("log.parquet")), fields):
        part.name, part.ids, part.prompts

Where a part ends depends on the file alone, so a part has one name in every run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from pars.errors import DataError
from pars.learn.data.chats import NotUnderstood
from pars.learn.data.fields import ABSENT, field_of, find, kind_of
from pars.learn.data.layouts import Fields, prompt_field_in
from pars.learn.data.record_reader import ROWS_LOOKED_AT, RecordReader
from pars.learn.data.rows import read_rows

ID_FIELDS = ("request_id", "id", "custom_id", "key", "uuid")
ROWS_A_PART = 5_000
MOST_CHARS = 64 << 20  # of a part's prompts, so that memory is bounded however long they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """
    How rows are read.

    Attributes:
        prompt_field, id_field: As a.b.c; None: found.
        rows_a_part: At most.
        allow_truncated: Take the whole rows of a file that ends inside one.
    """

    prompt_field: str | None = None
    id_field: str | None = None
    rows_a_part: int = ROWS_A_PART
    allow_truncated: bool = False


class Log(NamedTuple):
    """A file of prompts, by its place among all."""

    place: int
    path: Path


@dataclass(slots=True)
class Part:
    """
    Some rows of a log.

    Attributes:
        num_left_out: Rows among them that hold no prompt.
        is_last: Of its file.
    """

    file: int
    number: int
    ids: list[str]
    prompts: list[str]
    num_left_out: int = 0
    is_last: bool = False

    @property
    def name(self) -> str:
        """Of its file of scores."""
        return f"{self.file:04d}-{self.number:05d}.jsonl"


def parts_of(log: Log, how: Reading) -> Iterator[Part]:
    """
    The parts of a file, in order; one at least.

    Raises:
        DataError: the file cannot be read, or a field is not what it must be.
    """
    on_cut = (lambda _: None) if how.allow_truncated else None
    rows = read_rows(log.path, on_cut=on_cut)
    looked_at = list(islice(rows, ROWS_LOOKED_AT))
    name = how.prompt_field or prompt_field_in(looked_at)
    if looked_at and all(find(row, name) is ABSENT for row in looked_at):
        field_of(looked_at[0], name, log.path, 1)
    reader = RecordReader(Fields(name, None, None), log.path, None)
    id_field = how.id_field or _id_field_in(looked_at)
    part, num_rows, num_chars = Part(log.place, 0, [], []), 0, 0
    for number, row in enumerate(chain(looked_at, rows), 1):
        if num_rows == how.rows_a_part or num_chars > MOST_CHARS:
            yield part
            part, num_rows, num_chars = Part(log.place, part.number + 1, [], []), 0, 0
        num_rows += 1
        prompt = _prompt(reader, row, number)
        if not prompt.strip():
            part.num_left_out += 1
            continue
        num_chars += len(prompt)
        part.prompts.append(prompt)
        part.ids.append(_id(row, id_field, log.path, number))
    part.is_last = True
    yield part


def _prompt(reader: RecordReader, row: Mapping[str, Any], number: int) -> str:
    """What a ranker reads of the row's prompt; nothing where the row has none."""
    try:
        return reader.prompt(row, reader.asked(row, number), number)
    except NotUnderstood:
        return ""


def _id_field_in(rows: list[dict[str, Any]]) -> str | None:
    return next((name for name in ID_FIELDS if any(name in row for row in rows)), None)


def _id(row: Mapping[str, Any], field: str | None, path: Path, number: int) -> str:
    """The row's own; else the file's name with the row's number, from 1."""
    value = find(row, field) if field else None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list | dict | bool | float):
        problem = f"field {field!r} must be text or a whole number, not {kind_of(value)}"
        raise DataError.at(path, problem, row=number)
    return f"{path.name}:{number}"
