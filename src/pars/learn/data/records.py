"""
What the learn lane reads: prompts with the lengths of their answers.

`read_data` takes train_data.json, val_data.json or a user's own records, as `record_reader` reads
them.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pars.errors import DataError
from pars.learn.data.fields import is_wanted, kind_of
from pars.learn.data.record_reader import FOUND, Names, RecordReader, Row, told_of
from pars.learn.data.rows import read_rows

__all__ = ["Row", "length_unit_of", "read_data", "read_records"]

_log = logging.getLogger(__name__)


def read_data(
    path: Path,
    *,
    names: Names = FOUND,
    where: Iterable[tuple[str, str]] = (),
) -> list[Row]:
    """
    Prompts and answer lengths from train_data.json, val_data.json or a file of records.

    Rows are named by `task_id`, else `id`, else their place from 0; where they hold an answer text
    and no length, its whitespace words are counted. Rows that are left out are told in the log.

    Raises:
        DataError: no row has a field, a field has the wrong type, or no row is left.
    """
    return [row for _, row in read_records(path, names=names, where=where)]


def read_records(
    path: Path,
    *,
    names: Names = FOUND,
    where: Iterable[tuple[str, str]] = (),
) -> Iterator[tuple[Mapping[str, Any], Row]]:
    """`read_data`, one row at a time, each beside the row of the file that it was read from."""
    where = tuple(where)
    wanted = (
        (number, row)
        for number, row in enumerate(read_rows(path), 1)
        if is_wanted(row, where, path, number)
    )
    first = next(wanted, None)
    if first is None:
        asked = " and ".join(f"{name}={value}" for name, value in where)
        raise DataError.at(path, f"has no row with {asked}" if asked else "has no rows")
    reader, rows = RecordReader.settled(chain([first], wanted), path, names=names)
    num_read = 0
    for number, values in rows:
        task_id = _task_id(values, path, number)
        if exchange := reader(values, number):
            num_read += 1
            yield values, exchange.as_row(task_id)
    if not num_read:
        raise DataError.at(path, f"no row is left: {told_of(reader.left_out)}")
    if reader.left_out:
        _log.warning("%s: left out %s", path, told_of(reader.left_out))


def _task_id(row: Mapping[str, Any], path: Path, number: int) -> int | str:
    task_id = row.get("task_id", row.get("id"))
    if task_id is None:
        return number - 1
    if not isinstance(task_id, int | str):
        problem = f"its task_id or id must be text or a whole number, not {kind_of(task_id)}"
        raise DataError.at(path, problem, row=number)
    return task_id


def length_unit_of(data_file: Path, names: Names = FOUND) -> str:
    """
    The unit of a file's lengths: what `pars prepare` noted beside it, else by name and text.

    It is words where `read_data` counts them, and tokens where nothing else can be told.
    """
    try:
        rows = enumerate(read_rows(data_file), 1)
        reader, _ = RecordReader.settled(rows, data_file, names=names)
    except DataError:
        return "tokens"
    return reader.unit or ("tokens" if reader.fields.length else "words")
