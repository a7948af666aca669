"""
A workload: which request arrives when, with which prompt, and how long its answer will be.

    header, requests = open_workload(Path("load.jsonl"))     # one request in memory at a time
    workload = read_workload(Path("load.jsonl"))             # all of them
    write_workload(Path("load.jsonl"), {"source": "log.jsonl"}, requests)

The file is JSON lines: a header, `{"pars_workload": 1, ...}`, then one request a line in order of
arrival. It holds what is replayed; a policy that ranks prompts must look at nothing but the prompt.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import index
from pathlib import Path
from typing import Any

from pars import __version__
from pars.errors import DataError
from pars.files import utf8, written_whole
from pars.prove.workload.arrivals import poisson
from pars.request.token_counts import CHARS_PER_TOKEN

FORMAT_VERSION = 1
MARK = "pars_workload"

Header = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """
    One request to replay.

    Attributes:
        arrival_s: When it is due, from the start of the run.
        prompt: None where only lengths are known (a trace).
        output_tokens: Of the answer that is replayed, 1 or more. No predictor may see it.
        max_tokens: The client's own limit, which a policy may see; None if it set none.
        facts: Who asks and how, as `pars.request.features` has it; None: not known.
    """

    request_id: str
    arrival_s: float
    prompt: str | None
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    category: str | None = None
    facts: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """
    Requests to replay, in memory: which arrives when, and how long its answer will be.

    Attributes:
        header: What the file says of itself; empty where there is none.
        requests: In order of arrival.
    """

    header: Header
    requests: tuple[WorkloadRequest, ...]

    @classmethod
    def read(cls, path: Path | str) -> "Workload":
        """
        A file of `pars workload`.

        Raises:
            DataError: it is none.
        """
        return read_workload(Path(path))

    @classmethod
    def of(
        cls,
        answer_tokens: Sequence[int],
        *,
        prompts: Sequence[str] | None = None,
        prompt_tokens: Sequence[int] | None = None,
        arrivals_s: Sequence[float] | None = None,
        rate: float | None = None,
        seed: int = 0,
    ) -> "Workload":
        """
        One request for each answer, in the order given; its id is its number from 0 on.

        Args:
            answer_tokens: [num_requests], 1 or more each.
            prompts: [num_requests]; without them no ranker can order.
            prompt_tokens: [num_requests]; None: about a quarter of the prompt's characters, or 1.
            arrivals_s: [num_requests], seconds that never fall; None: as `rate` says.
            rate: Poisson arrivals, requests a second; None: all at once.
            seed: For the arrivals.

        Raises:
            DataError: the lists differ in length, or hold a wrong value.
        """
        # Lists, since a column of pandas is looked up by its labels.
        answer_tokens = list(answer_tokens)
        prompts = None if prompts is None else list(prompts)
        count = len(answer_tokens)
        if arrivals_s is None:
            arrivals_s = [0.0] * count if rate is None else poisson(count, rate, seed)
        if prompt_tokens is None:
            known = prompts if prompts is not None else [""] * count
            prompt_tokens = [max(1, round(len(str(it)) / CHARS_PER_TOKEN)) for it in known]
        prompt_tokens, arrivals_s = list(prompt_tokens), list(arrivals_s)
        columns = {"prompts": prompts, "prompt_tokens": prompt_tokens, "arrivals_s": arrivals_s}
        for name, column in columns.items():
            if column is not None and len(column) != count:
                problem = f"{len(column)} {name} of {count} answer_tokens: want one each"
                raise DataError.at("workload", problem)
        rows = [
            {
                "request_id": str(row),
                "arrival_s": float(arrivals_s[row]),
                "prompt": None if prompts is None else prompts[row],
                "prompt_tokens": _whole(prompt_tokens[row]),
                "output_tokens": _whole(answer_tokens[row]),
            }
            for row in range(count)
        ]
        requests = _requests("workload", iter(enumerate(rows, 1)))
        return cls({}, tuple(requests))

    @classmethod
    def from_records(
        cls,
        path: Path | str,
        *,
        rate: float | None = None,
        num_requests: int | None = None,
        seed: int = 0,
    ) -> "Workload":
        """
        A request for each row of a log of prompts and answers, as `pars workload --records`.

        Args:
            path: JSON lines, CSV, Parquet, … with a prompt, and an answer or its length.
            rate: Poisson arrivals, requests a second; None: all at once.
            num_requests: None: one for each row.
            seed: For sampling and arrivals.

        Raises:
            DataError: the file is not what it must be.
        """
        from pars.prove.workload.make_workload import WorkloadPlan, make_workload

        arrivals = "burst" if rate is None else "poisson"
        plan = WorkloadPlan(
            records=Path(path), arrivals=arrivals, rate=rate, num_requests=num_requests, seed=seed
        )
        header, requests = make_workload(plan)
        return cls(header, tuple(requests))


def write_workload(
    path: Path, facts: Mapping[str, Any], requests: Iterable[WorkloadRequest]
) -> Header:
    """
    Write a workload, whole or not at all; the same arguments give the same bytes.

    Args:
        facts: What the header says beside its version: source, arrivals, rate, seed, ...

    Raises:
        ParsError: the file cannot be written.
    """
    header = {MARK: FORMAT_VERSION, "pars_version": __version__, **facts}
    with written_whole(path) as file:
        file.write(_line(header))
        for request in requests:
            values = ((name, getattr(request, name)) for name in _FIELDS)
            file.write(_line({name: value for name, value in values if value is not None}))
    return header


def read_workload(path: Path) -> Workload:
    """The workload in a file; see `open_workload` for what is checked."""
    header, requests = open_workload(path)
    return Workload(header, tuple(requests))


def open_workload(path: Path) -> tuple[Header, Iterator[WorkloadRequest]]:
    """
    The header of a workload file, and its requests one at a time.

    Raises:
        DataError: the file is missing or not a workload, a line lacks a field or holds a wrong
            value, arrivals go back, or there are no requests.
    """
    lines = _lines(path)
    _, header = next(lines, (0, None))
    if not isinstance(header, dict) or MARK not in header:
        raise DataError.at(path, f"is not a workload: its first line has no {MARK!r}", row=1)
    if header[MARK] != FORMAT_VERSION:
        problem = f"workload format {header[MARK]!r}; this pars reads {FORMAT_VERSION}"
        raise DataError.at(path, problem, row=1)
    return header, _requests(path, lines)


def _whole(value: Any) -> Any:
    """A count from an array as a plain one; what is none is left to the check."""
    try:
        return index(value)
    except TypeError:
        return int(value) if isinstance(value, float) and value.is_integer() else value


def _requests(path: Path | str, lines: Iterator[tuple[int, Any]]) -> Iterator[WorkloadRequest]:
    previous_s = 0.0
    number = 0
    for number, values in lines:
        request = _request(path, number, values)
        if request.arrival_s < previous_s:
            problem = f"arrives at {request.arrival_s} s, before the line above ({previous_s} s)"
            raise DataError.at(path, problem, row=number)
        previous_s = request.arrival_s
        yield request
    if not number:
        raise DataError.at(path, "has no requests")


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError.at(path, f"is not one JSON object: {error}", row=number) from (
                        error
                    )
    except OSError as error:
        raise DataError.at(path, f"cannot be read: {error.strerror or error}") from error


def _request(path: Path | str, number: int, values: Any) -> WorkloadRequest:
    if not isinstance(values, dict):
        raise DataError.at(path, "is not one JSON object", row=number)
    for name, wanted, is_good in _CHECKS:
        value = values.get(name)
        if not is_good(value):
            problem = f"field {name!r} must be {wanted}, not {_shown(value)}"
            raise DataError.at(path, problem, row=number)
    known: dict[str, Any] = {name: values.get(name) for name in _FIELDS}
    return WorkloadRequest(**known)


def _line(values: Mapping[str, Any]) -> bytes:
    return utf8(json.dumps(values, ensure_ascii=False)) + b"\n"


def _shown(value: Any) -> str:
    return json.dumps(value, default=repr)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


_FIELDS = tuple(field.name for field in fields(WorkloadRequest))
_CHECKS = (
    ("request_id", "text", lambda value: _is_text(value) and value != ""),
    ("arrival_s", "seconds from 0 on", _is_seconds),
    ("prompt", "text or absent", lambda value: value is None or _is_text(value)),
    ("prompt_tokens", "a whole number from 1 on", _is_count),
    ("output_tokens", "a whole number from 1 on", _is_count),
    ("max_tokens", "a whole number from 1 on", lambda value: value is None or _is_count(value)),
    ("category", "text or absent", lambda value: value is None or _is_text(value)),
    ("facts", "a list of texts or absent", lambda value: value is None or _are_texts(value)),
)
