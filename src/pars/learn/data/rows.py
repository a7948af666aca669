"""
Rows of files: JSON arrays, JSON lines, CSV, Parquet and Arrow, plain or gzipped, told apart by
content.

One row is in memory at a time, whatever the file's size. Every error names the file, the row
(counted from 1) and the field.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from pars.errors import DataError
from pars.learn.data.fields import kind_of
from pars.learn.data.tables import (
    ARROW_FILE,
    ARROW_STREAM,
    PARQUET,
    arrow_rows,
    csv_rows,
    delimiter_of,
)

OnCut = Callable[[int], None]

_CHUNK_BYTES = 1 << 20
_NEAR_END_CHARS = 10  # a literal or an escape that is cut fails this close to the end
_SPACE = frozenset(" \t\r\n")
_END = object()
_raw_decode = json.JSONDecoder().raw_decode


def read_rows(path: Path, *, on_cut: OnCut | None = None) -> Iterator[dict[str, Any]]:
    """
    The rows of a file in any of these formats, one at a time; gzip is undone.

    Args:
        on_cut: told how many bytes were dropped when a JSON file ends inside a row; without it
            such a file is an error.

    Raises:
        DataError: the file is missing, empty, cut short, or not what it must be.
    """
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.open(plain) if zipped else plain as file:
                for number, row in enumerate(_elements(cast(IO[bytes], file), path, on_cut), 1):
                    if not isinstance(row, dict):
                        problem = f"must be a JSON object, not {kind_of(row)}"
                        raise DataError.at(path, problem, row=number)
                    yield row
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError.at(path, f"cannot be read: {reason}") from error


def _elements(file: IO[bytes], path: Path, on_cut: OnCut | None) -> Iterator[Any]:
    start = file.read(_CHUNK_BYTES)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as Windows tools like it
        file = io.BytesIO(_from_utf16(start + file.read(), path))
        start = file.read(_CHUNK_BYTES)
    file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if not start:
        raise DataError.at(path, "is empty")
    if start.startswith(b"["):
        return _array_elements(file, path, on_cut)
    if start.startswith(b"{"):
        return _line_elements(file, path, on_cut)
    if start.startswith((PARQUET, ARROW_FILE, ARROW_STREAM)):
        return arrow_rows(file, path, start)
    if delimiter := delimiter_of(start, path.suffixes):
        return csv_rows(file, path, delimiter)
    wanted = "a JSON array, JSON lines, CSV with a first line of names, Parquet or Arrow"
    raise DataError.at(path, f"is none of {wanted} (or a .gz of these)")


def _from_utf16(data: bytes, path: Path) -> bytes:
    try:
        return data.decode("utf-16").encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise DataError.at(path, "begins as UTF-16 text and is none: save it as UTF-8") from error


def _line_elements(file: IO[bytes], path: Path, on_cut: OnCut | None) -> Iterator[Any]:
    number = 0
    for line in file:
        if not line.strip():
            continue
        number += 1
        try:
            # Lenient: some loggers leave tabs and NULs in strings as they are.
            element = json.loads(line.decode(), strict=False)
        except (ValueError, RecursionError) as error:
            if number > 1 and not line.endswith(b"\n"):
                return _cut(path, number, len(line), on_cut)
            raise _broken(path, number, error, "; a line must be one JSON object") from error
        yield element


def _array_elements(file: IO[bytes], path: Path, on_cut: OnCut | None) -> Iterator[Any]:
    """One element at a time: memory holds a few rows, and an error knows its row."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    text, position, number = "", 0, 1
    while True:
        try:
            element, position = _next_element(text, position, number)
        except (ValueError, RecursionError) as error:
            chunk = file.read(max(_CHUNK_BYTES, len(text))) if _runs_out(error, text) else b""
            if not chunk:
                if not _is_cut(error, text):
                    raise _broken(path, number, error) from error
                dropped = len(text[position:].encode()) + len(utf8.getstate()[0])
                return _cut(path, number, dropped, on_cut)
        else:
            if element is _END:
                break
            yield element
            number += 1
            continue
        try:
            text, position = text[position:] + utf8.decode(chunk), 0
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: row {number} or a later one is not UTF-8 text") from error
    if (text[position:] + utf8.decode(file.read(_CHUNK_BYTES))).strip():
        raise DataError.at(path, f"has text after its closing ] (row {number - 1} is its last)")


def _next_element(text: str, position: int, number: int) -> tuple[Any, int]:
    """The array's element `number`, with the [ or , before it, and the place where it ends."""
    opening = "[" if number == 1 else ","
    position = _skip_space(text, position)
    if number > 1 and text.startswith("]", position):
        return _END, position + 1
    if not text.startswith(opening, position):
        raise json.JSONDecodeError(f"Expecting {opening!r}", text, position)
    position = _skip_space(text, position + 1)
    if number == 1 and text.startswith("]", position):
        return _END, position + 1
    return _raw_decode(text, position)


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] in _SPACE:
        position += 1
    return position


def _runs_out(error: Exception, text: str) -> bool:
    """Whether more text could mend this error."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated string") or len(text) - error.pos <= _NEAR_END_CHARS
    )


def _is_cut(error: Exception, text: str) -> bool:
    """Whether a file that ends with `text` lacks its end, rather than something before it."""
    whole = text.rstrip()
    closed = whole.endswith("]") and getattr(error, "pos", 0) < len(whole)
    return _runs_out(error, text) and (not closed or "Unterminated" in str(error))


def _cut(path: Path, number: int, num_bytes: int, on_cut: OnCut | None) -> None:
    if on_cut is None:
        problem = "the file ends inside this row: it was cut short"
        kept = f" (`pars prepare --allow-truncated` keeps the {number - 1:,} rows before it)"
        raise DataError.at(path, problem + kept, row=number)
    on_cut(num_bytes)


def _broken(path: Path, number: int, error: Exception, hint: str = "") -> DataError:
    if isinstance(error, json.JSONDecodeError):
        return DataError.at(path, f"not valid JSON: {error.msg}{hint}", row=number)
    if isinstance(error, UnicodeDecodeError):
        return DataError.at(path, "not UTF-8 text", row=number)
    return DataError.at(path, f"JSON that cannot be read: {error}", row=number)
