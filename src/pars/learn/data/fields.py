"""
A row's fields: found by dotted path, of the type they must be, or named in an error.

    field_of(row, "request.body.messages", path, 3)
"""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from pars.errors import DataError


class _Absent:
    """What `find` gives where there is nothing, which is not the same as null."""


_NOTHING = ("", "nan", "null", "none", "na", "n/a", "-", "\\n")
ABSENT: Any = _Absent()


def kind_of(value: Any) -> str:
    """What a JSON value is called in an error."""
    kinds = {bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list"}
    return "null" if value is None else kinds.get(type(value), "an object")


def find(value: Any, path: str) -> Any:
    """
    What stands at a dotted path, or ABSENT: "response.body.choices.0.text".

    A name that itself holds dots is found as it is (tables made of nested rows have such columns).
    JSON text on the way is read, and below null all is null.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = _loaded(value)
    if isinstance(value, list):
        place, _, rest = path.partition(".")
        if not place.isdigit() or int(place) >= len(value):
            return ABSENT
        return find(value[int(place)], rest) if rest else value[int(place)]
    if not isinstance(value, Mapping):
        return ABSENT
    if path in value:
        return value[path]
    for end in range(len(path) - 1, 0, -1):
        if path[end] == "." and path[:end] in value:
            return find(value[path[:end]], path[end + 1 :])
    return ABSENT


def _loaded(text: str) -> Any:
    """The JSON object or list in a text; ABSENT stands for any other text."""
    if text.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            return json.loads(text, strict=False)
    return ABSENT


def field_of(row: Mapping[str, Any], name: str, at: Path | str, number: int) -> Any:
    """What stands at the dotted path `name`, which must be there."""
    value = find(row, name)
    if value is ABSENT:
        has = ", ".join(sorted(map(str, row))) or "none"
        raise DataError.at(at, f"has no field {name!r}; its fields: {has}", row=number)
    return value


def text_of(row: Mapping[str, Any], name: str, at: Path | str, number: int) -> str:
    """The text at the dotted path `name`; null counts as no text."""
    value = field_of(row, name, at, number)
    if value is not None and not isinstance(value, str):
        problem = f"field {name!r} must be text, not {kind_of(value)}"
        raise DataError.at(at, problem, row=number)
    return value or ""


def length_of(row: Mapping[str, Any], name: str, at: Path | str, number: int) -> float | None:
    """The length at the dotted path `name`; None where there is none."""
    value = find(row, name)
    if value is ABSENT or is_nothing(value):
        return None
    length = number_of(value)
    if length is None or not 0 <= length < math.inf:
        told = f"{value[:40]!r}" if isinstance(value, str) else kind_of(value)
        problem = f"field {name!r} must be a number of 0 or more, not "
        raise DataError.at(at, f"{problem}{told if length is None else length}", row=number)
    return length


def is_nothing(value: Any) -> bool:
    """Null, or what tables write in its place: NaN where the column is of numbers, and words."""
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    return value is None or value != value


def number_of(value: Any) -> float | None:
    """A JSON number, or the text of one ("10.0", as tables of text have it); None for all else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
        return int(value) if value.is_integer() else value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value


def is_wanted(
    row: Mapping[str, Any], where: Iterable[tuple[str, str]], at: Path | str, number: int
) -> bool:
    """Whether each (field, value) of `where` holds; what is not text compares as its JSON."""
    for name, wanted in where:
        value = field_of(row, name, at, number)
        if wanted != (value if isinstance(value, str) else json.dumps(value, default=str)):
            return False
    return True
