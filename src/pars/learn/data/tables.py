"""
Rows of tables: CSV with any usual delimiter, Parquet, and Arrow's two file formats.

A row of CSV holds text alone, and null where a cell is empty; one of the others holds what its
columns do: numbers, lists, structs as dicts.
"""

import codecs
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pars.errors import DataError, MissingExtra

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
DELIMITERS = ",\t;|"
_LONGEST_NAME = 100


def delimiter_of(start: bytes, suffixes: list[str]) -> str | None:
    """What parts the columns in the head of a CSV file, by its first line; None: it is no CSV."""
    try:
        line = start.partition(b"\n")[0].decode().rstrip("\r")
        names = {mark: next(csv.reader([line], delimiter=mark)) for mark in DELIMITERS}
    except (UnicodeDecodeError, StopIteration, csv.Error):
        return None
    best = max(DELIMITERS, key=lambda mark: len(names[mark]))
    told = [name.strip() for name in names[best]]
    is_header = all(len(it) <= _LONGEST_NAME for it in told)
    if len(told) > 1 and is_header:
        return best
    is_named_so = any(suffix.lower() in (".csv", ".tsv") for suffix in suffixes)
    return best if is_named_so and is_header else None


def csv_rows(file: IO[bytes], path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    """
    The rows of a CSV file whose first line names its columns; quoted cells may hold line breaks.

    Raises:
        DataError: a row has more or fewer cells than there are columns, or it is not UTF-8 text.
    """
    csv.field_size_limit(sys.maxsize)  # a prompt may be longer than the 128 KiB of the default
    text = codecs.iterdecode(file, "utf-8-sig")
    number = 0
    try:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        columns = [name.strip() for name in next(rows)]
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise DataError.at(path, f"its first line names the column {twice[0]!r} twice")
        for cells in rows:
            if not cells:
                continue
            number += 1
            if len(cells) != len(columns):
                problem = f"has {len(cells)} cells, and the first line names {len(columns)} columns"
                raise DataError.at(path, problem, row=number)
            yield {name: cell or None for name, cell in zip(columns, cells, strict=True)}
    except UnicodeDecodeError as error:
        problem = "it or a later one is not UTF-8 text: save the file as UTF-8"
        raise DataError.at(path, problem, row=number + 1) from error
    except csv.Error as error:
        raise DataError.at(path, f"is not valid CSV: {error}", row=number + 1) from error


def arrow_rows(file: IO[bytes], path: Path, start: bytes) -> Iterator[Any]:
    """The rows of a Parquet or Arrow file, a batch in memory at a time."""
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise MissingExtra("reading Parquet and Arrow", "train") from error
    try:
        if start.startswith(PARQUET):
            batches = parquet.ParquetFile(file).iter_batches()
        elif start.startswith(ARROW_FILE):
            reader = ipc.open_file(file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = iter(ipc.open_stream(file))
        for batch in batches:
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        kind = "Parquet" if start.startswith(PARQUET) else "Arrow"
        raise DataError.at(path, f"is not valid {kind}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text: libraries like to write several."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
