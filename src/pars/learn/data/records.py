"""
What the learn lane reads: prompts with answer lengths, and pairs of prompts.

`read_data` takes train_data.json, val_data.json or a user's own records, `read_pairs` a pair file.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pars.errors import DataError
from pars.learn.data.rows import (
    field_of,
    is_wanted,
    kind_of,
    length_of,
    prompt_field_in,
    prompt_in,
    read_rows,
    text_of,
)
from pars.outcomes.records import CUT_SHORT
from pars.request.conversation import message_of

__all__ = ["Fields", "PairFile", "Row", "read_data", "read_pairs", "read_rows"]

ANSWER_FIELDS = ("answer", "response", "output", "answer_content")
LENGTH_FIELDS = ("answer_length", "answer_tokens", "response_tokens", "output_tokens", "length")

# The layout of a pair file, as json.dump(indent=2) writes it. No JSON text holds a raw newline,
# so these bytes can only stand where they mean what they say.
PAIRS_OPEN = b'[\n  {\n    "prompt_A": '
PAIRS_MIDDLE = b',\n    "prompt_B": '
PAIRS_LABEL = b',\n    "label": '
PAIRS_NEXT = b'\n  },\n  {\n    "prompt_A": '
PAIRS_CLOSE = b"\n  }\n]"


@dataclass(frozen=True, slots=True)
class Row:
    """
    One prompt and the length of its answer, in whatever unit the file was prepared with.

    `finish_reason` is why the answer ended, as the OpenAI interface tells it, where that is known.
    """

    task_id: int | str
    prompt: str
    answer_length: float
    answer_content: str = ""
    category: str | None = None
    model: str | None = None
    finish_reason: str | None = None

    @property
    def message(self) -> str:
        """The prompt as splits tell prompts apart: the same message is the same prompt."""
        return message_of(self.prompt).strip()

    @property
    def is_censored(self) -> bool:
        """Whether the answer was cut short: it would have become longer."""
        return self.finish_reason in CUT_SHORT


@dataclass(frozen=True, slots=True, eq=False)
class PairFile:
    """Pairs by index: pair k says whether prompts[index_a[k]] has the longer answer (label 1)."""

    prompts: list[str]
    index_a: NDArray[np.int64]
    index_b: NDArray[np.int64]
    labels: NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Fields:
    """The names under which a file of records keeps prompt, answer text and answer length."""

    prompt: str
    answer: str | None
    length: str | None

    @classmethod
    def found_in(
        cls,
        row: Mapping[str, Any],
        at: Path | str,
        number: int,
        *,
        prompt: str | None = None,
        answer: str | None = None,
        length: str | None = None,
    ) -> "Fields":
        """The names given, else the first known ones that `row`, the first wanted, has."""
        answer = answer or next((name for name in ANSWER_FIELDS if name in row), None)
        length = length or next((name for name in LENGTH_FIELDS if name in row), None)
        if answer is None and length is None:
            known = ", ".join(ANSWER_FIELDS + LENGTH_FIELDS)
            raise DataError.at(at, f"no answer and no length: expected one of {known}", row=number)
        return cls(prompt or prompt_field_in(row), answer, length)


def read_data(
    path: Path,
    *,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    length_field: str | None = None,
    where: Iterable[tuple[str, str]] = (),
) -> list[Row]:
    """
    Prompts and answer lengths from train_data.json, val_data.json or a file of records.

    Rows are named by `task_id`, else `id`, else their place from 0; where they hold an answer text
    and no length, its whitespace words are counted.

    Raises:
        DataError: a row lacks a field, a field has the wrong type, or no row is left.
    """
    fields, rows = None, []
    for number, row in enumerate(read_rows(path), 1):
        if not is_wanted(row, where, path, number):
            continue
        fields = fields or Fields.found_in(
            row, path, number, prompt=prompt_field, answer=answer_field, length=length_field
        )
        rows.append(data_row(row, fields, path, number))
    if not rows:
        asked = " and ".join(f"{name}={wanted}" for name, wanted in where)
        raise DataError.at(path, f"has no row with {asked}" if asked else "has no rows")
    return rows


def data_row(row: Mapping[str, Any], fields: Fields, path: Path, number: int) -> Row:
    answer = text_of(row, fields.answer, path, number) if fields.answer else ""
    length = length_of(row, fields.length, path, number) if fields.length else len(answer.split())
    if length is None:
        raise DataError.at(path, f"field {fields.length!r} must be a number, not null", row=number)
    task_id = row.get("task_id", row.get("id", number - 1))
    if not isinstance(task_id, int | str):
        problem = f"its task_id or id must be text or a whole number, not {kind_of(task_id)}"
        raise DataError.at(path, problem, row=number)
    category, model, finish_reason = (
        text_of(row, name, path, number) or None if name in row else None
        for name in ("category", "model", "finish_reason")
    )
    prompt = prompt_in(row, fields.prompt, path, number)
    return Row(task_id, prompt, length, answer, category, model, finish_reason)


def length_unit_of(data_file: Path) -> str:
    """
    The unit that `pars prepare` noted beside its files.

    Without such a note it is words where `read_data` counts them, and tokens where rows hold a
    length, which is what logs of language models hold.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads((data_file.parent / "prepare.json").read_text(encoding="utf-8"))
        return str(note["length_unit"])
    with suppress(DataError):
        first = next(iter(read_rows(data_file)), {})
        return "tokens" if any(name in first for name in LENGTH_FIELDS) else "words"
    return "tokens"


def read_pairs(path: Path) -> PairFile:
    """
    The pairs of a pair file, each distinct prompt once.

    Raises:
        DataError: a row lacks prompt_A, prompt_B or label, or one has the wrong type.
    """
    return _parse_pairs(path) or _pairs_by_row(path)


def _pairs_by_row(path: Path) -> PairFile:
    ids: dict[str, int] = {}
    index_a: list[int] = []
    index_b: list[int] = []
    labels: list[int] = []
    for number, row in enumerate(read_rows(path), 1):
        for name, index in (("prompt_A", index_a), ("prompt_B", index_b)):
            prompt = text_of(row, name, path, number)
            index.append(ids.setdefault(prompt, len(ids)))
        label = field_of(row, "label", path, number)
        if label not in (0, 1) or not isinstance(label, int) or isinstance(label, bool):
            raise DataError.at(path, f"field 'label' must be 0 or 1, not {label!r}", row=number)
        labels.append(label)
    if not labels:
        raise DataError.at(path, "has no pairs")
    return _pair_file(list(ids), index_a, index_b, labels)


def _parse_pairs(path: Path) -> PairFile | None:
    """
    The pairs of a file in PARS's very layout, without building a dict a pair; else None.

    About twice as fast as json.loads and in a fraction of its memory: prompts are compared as
    bytes, and each distinct one is decoded once.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if not data.startswith(PAIRS_OPEN):
        return None
    ids: dict[bytes, int] = {}
    index_a, index_b, labels = [], [], bytearray()
    position = len(PAIRS_OPEN)
    while True:
        middle = data.find(PAIRS_MIDDLE, position)
        end = data.find(PAIRS_LABEL, middle)
        if middle < 0 or end < 0:
            return None
        index_a.append(ids.setdefault(data[position:middle], len(ids)))
        index_b.append(ids.setdefault(data[middle + len(PAIRS_MIDDLE) : end], len(ids)))
        position = end + len(PAIRS_LABEL)
        labels += data[position : position + 1]
        position += 1
        if not data.startswith(PAIRS_NEXT, position):
            break
        position += len(PAIRS_NEXT)
    if data[position:].strip() != PAIRS_CLOSE.strip() or not set(labels) <= set(b"01"):
        return None
    try:
        prompts = [json.loads(encoded) for encoded in ids]
    except ValueError:
        return None
    if not all(isinstance(prompt, str) for prompt in prompts) or len(set(prompts)) < len(prompts):
        return None  # the second: one prompt, escaped in two ways
    return _pair_file(prompts, index_a, index_b, [label - ord("0") for label in labels])


def _pair_file(
    prompts: list[str], index_a: list[int], index_b: list[int], labels: list[int]
) -> PairFile:
    a, b = np.array(index_a, dtype=np.int64), np.array(index_b, dtype=np.int64)
    return PairFile(prompts, a, b, np.array(labels, dtype=np.int8))
