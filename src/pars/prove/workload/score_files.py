"""
Scores that another system wrote into a file.

A file has a row for each request, found by `request_id` (or `id`), or else by `prompt`, with its
`score` (higher for a longer answer, in any scale) or its `expected_tokens`. Rows of no request of
the workload are counted and left out.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pars.errors import DataError
from pars.prove.workload.scores import AS_USUAL, Scores, Scoring
from pars.prove.workload.workload import WorkloadRequest
from pars.request.conversation import message_of
from pars.scheduling.demand import Calibration

IDS = ("request_id", "id")
VALUES = ("score", "expected_tokens")


@dataclass(frozen=True, slots=True)
class FileSource:
    """Scores that stand in a file: JSON lines, a JSON array, CSV or Parquet."""

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
        is_tokens = known.value_name == "expected_tokens"
        of = Calibration.of_tokens if is_tokens else Calibration.of_scores
        facts = {"file": str(self.path), "rows": len(known.values)}
        if num_others := len(known.values.keys() - known.used):
            facts["rows_of_no_request"] = num_others
        return Scores(np.array(values, dtype=np.float64), of(values), 0.0, facts)


@dataclass(slots=True)
class _Table:
    """The values of a file by id or prompt, and which were asked for."""

    path: Path
    key_name: str
    value_name: str
    values: dict[str, float]
    used: set[str]

    @classmethod
    def read(cls, path: Path) -> "_Table":
        """
        All of it.

        Raises:
            DataError: a field is missing or no finite number, or one key has two values.
        """
        from pars.learn.data.rows import read_rows

        table: _Table | None = None
        for number, row in enumerate(read_rows(path), 1):
            if table is None:
                key_name = _field(path, row, (*IDS, "prompt"))
                table = cls(path, key_name, _field(path, row, VALUES), {}, set())
            table._add(row, number)
        if table is None:
            raise DataError.at(path, "has no rows")
        return table

    def value_of(self, request: WorkloadRequest) -> float:
        """
        The request's.

        Raises:
            DataError: it has none.
        """
        is_by_id = self.key_name in IDS
        key = request.request_id if is_by_id else request.prompt or ""
        if not is_by_id and key not in self.values:
            key = message_of(key)  # without what came before it in the conversation
        if key not in self.values:
            lack = f"{self.key_name} {request.request_id!r}" if is_by_id else "the prompt"
            of = "" if is_by_id else f" of request {request.request_id!r}"
            raise DataError.at(self.path, f"has no row with {lack}{of}: want one a request")
        self.used.add(key)
        return self.values[key]

    def _add(self, row: Mapping[str, Any], number: int) -> None:
        key, value = row.get(self.key_name), _number(row.get(self.value_name))
        if isinstance(key, int) and not isinstance(key, bool) and self.key_name in IDS:
            key = str(key)
        if not isinstance(key, str):
            problem = f"field {self.key_name!r} must be text, not {key!r}"
            raise DataError.at(self.path, problem, row=number)
        if value is None or not math.isfinite(value):
            told = row.get(self.value_name)
            problem = f"field {self.value_name!r} must be a finite number, not {told!r}"
            raise DataError.at(self.path, problem, row=number)
        if self.values.setdefault(key, value) != value:
            told = key if self.key_name in IDS else "the same prompt"
            problem = f"{told!r} has another {self.value_name} above"
            raise DataError.at(self.path, problem, row=number)


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
