"""
Scores that another system wrote into a file.

A file has a row for each request, found by `request_id` (or `id`), or else by `prompt`, with its
`score` (higher for a longer answer, in any scale) or its `expected_tokens`. Rows of no request of
the workload are counted and left out. A folder of `pars score` is read as one file; its rows are
found by what stands for their prompts, whatever their ids.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pars.errors import DataError
from pars.prove.workload.scores import AS_USUAL, Scores, Scoring
from pars.prove.workload.workload import WorkloadRequest
from pars.request.conversation import checksum_of, message_of
from pars.scheduling.demand import Calibration

IDS = ("request_id", "id")
CHECKSUM = "text_sha256"
VALUES = ("score", "expected_tokens")


@dataclass(frozen=True, slots=True)
class FileSource:
    """Scores that stand in a file (JSON lines, a JSON array, CSV or Parquet) or in a folder."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def scores(self, requests: Iterable[WorkloadRequest], how: Scoring = AS_USUAL) -> Scores:
        """Each request's, by its id or its prompt."""
        known = _Table.read(self.path)
        values: list[float] = []
        rest = iter(requests)
        while some := list(islice(rest, how.prompts_a_call)):
            values += map(known.value_of, some)
            how.done(len(some))
        facts = {"file": str(self.path), "rows": len(known.values)}
        if num_others := len(known.values.keys() - known.used):
            facts["rows_of_no_request"] = num_others
        return Scores(np.array(values, dtype=np.float64), known.calibration(values), 0.0, facts)


@dataclass(slots=True)
class _Table:
    """The values of a file by id or prompt, and which were asked for."""

    path: Path
    key_name: str
    value_name: str
    values: dict[str, float] = field(default_factory=dict)
    tokens: dict[float, float] = field(default_factory=dict)  # by score, where a row has both
    used: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> "_Table":
        """
        All of it.

        Raises:
            DataError: a field is missing or no finite number, or one key has two values.
        """
        from pars.learn.data.rows import read_rows

        table: _Table | None = None
        files = sorted(path.glob("[0-9]*.jsonl")) if path.is_dir() else [path]
        for file in files:
            if path.is_dir() and not file.stat().st_size:
                continue  # a part without prompts
            for number, row in enumerate(read_rows(file), 1):
                if table is None:
                    known = (CHECKSUM,) if CHECKSUM in row else (*IDS, "prompt")
                    key_name = _field(file, row, known)
                    table = cls(path, key_name, _field(file, row, VALUES))
                table._add(row, file, number)
        if table is None:
            raise DataError.at(path, "has no rows")
        return table

    def value_of(self, request: WorkloadRequest) -> float:
        """
        The request's.

        Raises:
            DataError: it has none.
        """
        for key in self._keys_of(request):
            if key in self.values:
                self.used.add(key)
                return self.values[key]
        is_by_id = self.key_name in IDS
        lack = f"{self.key_name} {request.request_id!r}" if is_by_id else "the prompt"
        of = "" if is_by_id else f" of request {request.request_id!r}"
        raise DataError.at(self.path, f"has no row with {lack}{of}: want one a request")

    def calibration(self, values: list[float]) -> Calibration:
        """From the values asked for to tokens; by the file's own tokens, where it has both."""
        if self.value_name == "expected_tokens":
            return Calibration.of_tokens(values)
        if len(self.tokens) > 1:
            return Calibration.of_pairs(self.tokens)
        return Calibration.of_scores(values)

    def _keys_of(self, request: WorkloadRequest) -> Iterator[str]:
        """By which its row may be known: its prompt also without what came before it."""
        if self.key_name in IDS:
            yield request.request_id
            return
        prompt = request.prompt or ""
        for text in (prompt, message_of(prompt)):
            yield checksum_of(text) if self.key_name == CHECKSUM else text

    def _add(self, row: Mapping[str, Any], file: Path, number: int) -> None:
        key, value = row.get(self.key_name), _number(row.get(self.value_name))
        if isinstance(key, int) and not isinstance(key, bool) and self.key_name in IDS:
            key = str(key)
        if not isinstance(key, str):
            problem = f"field {self.key_name!r} must be text, not {key!r}"
            raise DataError.at(file, problem, row=number)
        if value is None or not math.isfinite(value):
            told = row.get(self.value_name)
            problem = f"field {self.value_name!r} must be a finite number, not {told!r}"
            raise DataError.at(file, problem, row=number)
        known = self.values.setdefault(key, value)
        # Of one text a ranker may say two numbers, by what it was scored together with.
        if known != value and self.key_name != CHECKSUM:
            told = key if self.key_name in IDS else "the same prompt"
            problem = f"{told!r} has another {self.value_name} above"
            raise DataError.at(file, problem, row=number)
        tokens = _number(row.get("expected_tokens")) if self.value_name == "score" else None
        if tokens is not None and math.isfinite(tokens):
            self.tokens[value] = tokens


def _field(path: Path, row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the names that the file's first row has."""
    for name in names:
        if name in row:
            return name
    has = ", ".join(sorted(map(str, row))) or "none"
    raise DataError.at(path, f"has none of the fields {', '.join(names)}; its fields: {has}", row=1)


def _number(value: Any) -> float | None:
    from pars.learn.data.fields import number_of

    return number_of(value)
