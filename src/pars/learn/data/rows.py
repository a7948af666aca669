"""
Rows of files: JSON arrays, JSON lines and Parquet, plain or gzipped, told apart by content.

One row is in memory at a time, whatever the file's size. Every error names the file, the row
(counted from 1) and the field.
"""

import codecs
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from pars.errors import DataError, MissingExtra
from pars.request.conversation import prompt_of, with_note, without_answer

OnCut = Callable[[int], None]

PROMPT, MESSAGES, ANSWERS_BEFORE = "prompt", "messages", "answers_before"

_CHUNK_BYTES = 1 << 20
_NEAR_END_CHARS = 10  # a literal or an escape that is cut fails this close to the end
_SPACE = frozenset(" \t\r\n")
_END = object()
_raw_decode = json.JSONDecoder().raw_decode


def read_rows(path: Path, *, on_cut: OnCut | None = None) -> Iterator[dict[str, Any]]:
    """
    The rows of a JSON array, JSON-lines or Parquet file, one at a time; gzip is undone.

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
    file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if not start:
        raise DataError.at(path, "is empty")
    if start.startswith(b"["):
        return _array_elements(file, path, on_cut)
    if start.startswith(b"{"):
        return _line_elements(file, path, on_cut)
    if start.startswith(b"PAR1"):
        return _parquet_rows(file, path)
    raise DataError.at(path, "is neither a JSON array, JSON lines nor Parquet (or a .gz of these)")


def _line_elements(file: IO[bytes], path: Path, on_cut: OnCut | None) -> Iterator[Any]:
    number = 0
    for line in file:
        if not line.strip():
            continue
        number += 1
        try:
            element = json.loads(line.decode())
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


def _parquet_rows(file: IO[bytes], path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("reading Parquet", "train") from error
    try:
        for batch in parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError.at(path, f"is not valid Parquet: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text: libraries like to write several."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def kind_of(value: Any) -> str:
    """What a JSON value is called in an error."""
    kinds = {bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list"}
    return "null" if value is None else kinds.get(type(value), "an object")


def field_of(row: Mapping[str, Any], name: str, at: Path | str, number: int) -> Any:
    """`row[name]`, which must be there."""
    try:
        return row[name]
    except KeyError:
        has = ", ".join(sorted(map(str, row))) or "none"
        raise DataError.at(at, f"has no field {name!r}; its fields: {has}", row=number) from None


def text_of(row: Mapping[str, Any], name: str, at: Path | str, number: int) -> str:
    """The text in `row[name]`; null counts as no text."""
    value = field_of(row, name, at, number)
    if value is not None and not isinstance(value, str):
        problem = f"field {name!r} must be text, not {kind_of(value)}"
        raise DataError.at(at, problem, row=number)
    return value or ""


def prompt_field_in(row: Mapping[str, Any]) -> str:
    """A row that logs a request whole has its messages; one with neither is told of `prompt`."""
    return MESSAGES if MESSAGES in row and PROMPT not in row else PROMPT


def prompt_in(row: Mapping[str, Any], name: str, at: Path | str, number: int) -> str:
    """
    The prompt in `row[name]` as a ranker reads it; null counts as no text.

    Either text, before which `answers_before` may tell the characters of each answer of the
    conversation so far, oldest first; or chat messages, which tell both. Messages may end with the
    answer that is to be predicted: it is left out.
    """
    value = field_of(row, name, at, number)
    if isinstance(value, list):
        if not all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in value):
            problem = f"field {name!r} must be text or a list of {{role, content}}"
            raise DataError.at(at, problem, row=number)
        return prompt_of(without_answer(value)) or ""
    text = text_of(row, name, at, number)
    before = row.get(ANSWERS_BEFORE)
    if before is None:
        return text
    if not isinstance(before, list) or not all(map(_is_count, before)):
        problem = f"field {ANSWERS_BEFORE!r} must be a list of whole numbers: characters of answers"
        raise DataError.at(at, problem, row=number)
    return with_note(text, before) if text else ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def length_of(row: Mapping[str, Any], name: str, at: Path | str, number: int) -> float | None:
    """The length in `row[name]`, None for null."""
    value = field_of(row, name, at, number)
    if value is None:
        return None
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 <= value < math.inf:
        told = value if good else kind_of(value)
        problem = f"field {name!r} must be a number of 0 or more, not {told}"
        raise DataError.at(at, problem, row=number)
    return cast(float, value)


def is_wanted(
    row: Mapping[str, Any], where: Iterable[tuple[str, str]], at: Path | str, number: int
) -> bool:
    """Whether each (field, value) of `where` holds; what is not text compares as its JSON."""
    for name, wanted in where:
        value = field_of(row, name, at, number)
        if wanted != (value if isinstance(value, str) else json.dumps(value, default=str)):
            return False
    return True
