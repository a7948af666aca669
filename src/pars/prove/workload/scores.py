"""
Scores of a workload's prompts, by whom they come: a ranker, or a file that another system wrote.

    scores = RankerSource("run/ranker").scores(workload.requests)
    scores = FileSource(Path("theirs.csv")).scores(workload.requests)

A file has a row for each request, found by `request_id` (or `id`), or else by `prompt`, with its
`score` (higher for a longer answer, in any scale) or its `expected_tokens`. Rows of no request of
the workload are counted and left out.
"""

import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pars.errors import DataError, ParsError
from pars.prove.workload.contenders import NAMES, Contender
from pars.prove.workload.workload import WorkloadRequest
from pars.ranking.ranker import Scorer, bundled_ranker
from pars.ranking.scorers import calibration_of, load_scorer, scored_offline
from pars.request.conversation import as_read, message_of
from pars.scheduling.demand import Calibration

PROMPTS_A_CALL = 256
IDS = ("request_id", "id")
VALUES = ("score", "expected_tokens")
SCORES_NAME = re.compile(r"[A-Za-z_][\w.-]*")
RESERVED = (*NAMES, "gateway")

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Scores:
    """
    Of every request of a workload, [num_requests].

    Attributes:
        calibration: From a score to expected tokens.
        took_s: What the scoring took.
        facts: For the result's header.
    """

    values: NDArray[np.float64]
    calibration: Calibration
    took_s: float
    facts: Mapping[str, Any]


class Source(Protocol):
    """Where scores come from."""

    def scores(
        self,
        requests: Iterable[WorkloadRequest],
        *,
        knows_notes: bool = True,
        prompts_a_call: int = PROMPTS_A_CALL,
        num_threads: int | None = None,
        done: Progress = lambda _: None,
    ) -> Scores:
        """
        The scores of the requests.

        Args:
            knows_notes: Whether what came before a message may be known.
            prompts_a_call: How many prompts a ranker is shown at once.
            num_threads: Of a ranker folder's passes; None: as many as gain.
            done: Is told how many more requests have their score.

        Raises:
            ParsError: a request has no prompt or no score, or a score is no finite number.
        """
        ...


@dataclass(frozen=True, slots=True)
class RankerSource:
    """A ranker folder, module:object, or an object that scores prompts."""

    ranker: str | Path | Scorer

    def __str__(self) -> str:
        return _name(self.ranker)

    def scores(
        self,
        requests: Iterable[WorkloadRequest],
        *,
        knows_notes: bool = True,
        prompts_a_call: int = PROMPTS_A_CALL,
        num_threads: int | None = None,
        done: Progress = lambda _: None,
    ) -> Scores:
        """Each prompt's, by the ranker; the first call, which sets it up, is not timed."""
        scorer = self.ranker
        if isinstance(scorer, str | Path):
            scorer = load_scorer(scorer, num_threads=num_threads)
        name, took_s = str(self), 0.0
        parts: list[NDArray[np.float64]] = []
        rest = iter(requests)
        while some := list(islice(rest, prompts_a_call)):
            prompts = as_read(list(_prompts(some)), knows_notes)
            if not parts:
                scored_offline(scorer, prompts[:1], name)  # sets it up
            began_s = time.perf_counter()
            parts.append(scored_offline(scorer, prompts, name))
            took_s += time.perf_counter() - began_s
            done(len(some))
        values = np.concatenate(parts) if parts else np.empty(0)
        facts = {
            "folder": name,
            "scoring_ms_per_prompt": round(1000 * took_s / max(1, len(values)), 4),
            "prompts_a_scoring_call": prompts_a_call,
        }
        return Scores(values, calibration_of(scorer, values), took_s, facts)


@dataclass(frozen=True, slots=True)
class ArraySource:
    """Scores in hand, [num_requests], in the order of the workload."""

    name: str
    given: ArrayLike

    def __str__(self) -> str:
        return self.name

    def scores(
        self,
        requests: Iterable[WorkloadRequest],
        *,
        knows_notes: bool = True,
        prompts_a_call: int = PROMPTS_A_CALL,
        num_threads: int | None = None,
        done: Progress = lambda _: None,
    ) -> Scores:
        """As they are, checked."""
        count = sum(1 for _ in requests)
        try:
            values = np.asarray(self.given, dtype=np.float64)
        except (TypeError, ValueError):
            raise ParsError(f"scores {self.name}: want one list of numbers") from None
        if values.shape != (count,):
            raise ParsError(
                f"scores {self.name}: want one number a request, [{count}], not {values.shape}"
            )
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ParsError(f"scores {self.name}: number {row + 1} is {values[row]}: want finite")
        done(count)
        facts = {"rows": count}
        return Scores(values, Calibration.of_scores(values.tolist()), 0.0, facts)


@dataclass(frozen=True, slots=True)
class FileSource:
    """Scores that stand in a file: JSON lines, a JSON array, CSV or Parquet."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def scores(
        self,
        requests: Iterable[WorkloadRequest],
        *,
        knows_notes: bool = True,
        prompts_a_call: int = PROMPTS_A_CALL,
        num_threads: int | None = None,
        done: Progress = lambda _: None,
    ) -> Scores:
        """Each request's, by its id or its prompt."""
        known = _Table.read(self.path)
        values = []
        for request in requests:
            values.append(known.value_of(request))
            done(1)
        is_tokens = known.value_name == "expected_tokens"
        of = Calibration.of_tokens if is_tokens else Calibration.of_scores
        facts = {"file": str(self.path), "rows": len(known.values)}
        if num_others := len(known.values.keys() - known.used):
            facts["rows_of_no_request"] = num_others
        return Scores(np.array(values, dtype=np.float64), of(values), 0.0, facts)


def sources_used(
    contenders: Iterable[Contender], sources: Mapping[str, Source]
) -> dict[str, Source]:
    """Those that a contender orders by, by its `known`; the ranker of `ranker` is the bundled one
    unless another is given."""
    known = dict.fromkeys(it.known for it in contenders if it.needs_scores)
    return {it: sources.get(it) or RankerSource(bundled_ranker()) for it in known}


def check_scores_name(name: str) -> None:
    """
    Raises:
        ParsError: scores of another system cannot have this name.
    """
    if not SCORES_NAME.fullmatch(name) or name in RESERVED:
        raise ParsError(
            f"scores {name!r}: want a name of letters, digits, _, - and . that is none of"
            f" {', '.join(RESERVED)}"
        )


def check_sources(contenders: Collection[Contender], sources: Mapping[str, Source]) -> None:
    """
    Raises:
        ParsError: a policy names a ranker that is not given, or the other way round.
    """
    known = {it.known: it.which for it in contenders if it.needs_scores}
    for name, which in known.items():
        if name not in sources and name != "ranker":
            raise ParsError(f"policy {name}: give its folder: --ranker {which}=DIR")
    for name, source in sources.items():
        if name not in known and name != "ranker":
            option = "--ranker " if name.startswith("ranker:") else "--scores "
            given = f"{option}{name.removeprefix('ranker:')}={source}"
            raise ParsError(f"{given}: no policy is {name}")


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


def _prompts(requests: Iterable[WorkloadRequest]) -> Iterator[str]:
    for request in requests:
        if request.prompt is None:
            raise ParsError(
                f"request {request.request_id} has no prompt, so it cannot be ranked: policy ranker"
                " needs a workload made from --records"
            )
        yield request.prompt


def _name(ranker: str | Path | Scorer) -> str:
    if isinstance(ranker, str | Path):
        return str(ranker)
    return str(getattr(ranker, "folder", None) or type(ranker).__name__)
