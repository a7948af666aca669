"""
What a run leaves behind: every request's times, and a folder that holds them.

    with ResultWriter(folder, header) as writer:         # appends line by line
        writer.add(RequestTimes(request_id="7", policy="ranker@30", arrival_s=0.5, ...))
        writer.add_run(Run(policy="ranker@30", duration_s=61.0))
        writer.end(interrupted=False)
    result = read_result(folder)

A *run* is one policy's turn over the workload, named by (policy, rate, repeat); all its times are
in seconds from its own start. The folder's requests.jsonl has a line for the header, one a request
as it ends, one a run, and one at the end; where the last is missing, the command was interrupted.
`pars bench` and `pars simulate` write the same folder; `latency` and `report` read it.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Self

from pars.errors import DataError, ParsError
from pars.files import utf8, written_whole

REQUESTS_FILE = "requests.jsonl"
FORMAT = 1
ITL_STEP = 1.02  # buckets of intervals grow by this: a percentile is right within 1%
_ITL_FLOOR_S = 1e-7  # what comes at the same instant, in one piece of the stream

RunKey = tuple[str, float | None, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimes:
    """
    When one request was due, began and ended, in seconds on its run's clock.

    Attributes:
        policy: As spelled, "ranker@30".
        rate: Requests per second that the workload was scaled to; None for its own arrivals.
        arrival_s: When it was due. Delays count from here, even if the client sent it late.
        output_tokens: Received, or made by the simulation.
        asked_tokens: What was asked for; None where the model ended its answer itself.
        sent_s: When a live client had it written to the socket.
        scheduled_s: When the engine began with it; only a simulation knows.
        longest_itl_s: The longest pause between two tokens of its answer.
        error: The kind of failure, in a few words that are the same for all of a kind; the other
            times of such a request enter no figure.
    """

    request_id: str
    policy: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    asked_tokens: int | None = None
    repeat: int = 0
    rate: float | None = None
    sent_s: float | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    longest_itl_s: float | None = None
    num_preemptions: int | None = None
    error: str | None = None

    @property
    def run(self) -> RunKey:
        return self.policy, self.rate, self.repeat


@dataclass(frozen=True, slots=True)
class QueueSample:
    """The engine at one moment of a run; preemptions count from the run's start."""

    at_s: float
    num_running: int
    num_waiting: int
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """
    What is known of a run beside its requests.

    Attributes:
        duration_s: From the first arrival's clock zero to the last answer's end.
        queue: The engine's own numbers over time (a few a second live; thin them out to some
            thousands in a simulation). Empty where the engine has no /metrics.
        itl_counts: How many intervals between tokens fell into each `itl_bucket`.
        num_preemptions: None where unknown.
        largest_stall_s: The client's own longest standstill, which counts into its delays.
        scoring_s: What the policy's scores took, in all.
        interrupted: It was stopped; what it would have sent later is not in the result.
        facts: More for the reader, shown as it is.
    """

    policy: str
    duration_s: float
    rate: float | None = None
    repeat: int = 0
    queue: tuple[QueueSample, ...] = ()
    itl_counts: Mapping[int, int] = field(default_factory=dict)
    num_preemptions: int | None = None
    largest_stall_s: float | None = None
    scoring_s: float | None = None
    interrupted: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> RunKey:
        return self.policy, self.rate, self.repeat


@dataclass(frozen=True, slots=True)
class Result:
    """
    A result folder, read.

    Attributes:
        header: What was run, where, when, with which command, engine and workload (its header,
            under "workload"); free but for "kind": "bench" or "simulate".
        interrupted: The command did not come to its end, or was stopped.
    """

    header: Mapping[str, Any]
    requests: list[RequestTimes]
    runs: list[Run]
    interrupted: bool

    def policies(self) -> list[str]:
        """In the order of their first appearance."""
        names = [it.policy for it in self.runs] + [it.policy for it in self.requests]
        return list(dict.fromkeys(names))


class ResultWriter:
    """
    Appends to a result folder; each line is out of the process before `add` returns.

    Args:
        kept: Of an earlier, interrupted result in the same folder (`read_result`): its finished
            runs are kept, the requests of the others dropped. Without it the folder must not
            hold a result.

    Raises:
        ParsError: the folder holds a result, or cannot be written.
    """

    def __init__(
        self, folder: Path, header: Mapping[str, Any], *, kept: Result | None = None
    ) -> None:
        self.path = folder / REQUESTS_FILE
        if kept is None and self.path.exists():
            raise ParsError(f"{self.path} is there already: choose another --output-dir")
        with written_whole(self.path) as file:
            file.write(_line({"pars_result": FORMAT, **header}))
            if kept is not None:
                finished = {run.key for run in kept.runs if not run.interrupted}
                file.writelines(map(_request_line, (r for r in kept.requests if r.run in finished)))
                file.writelines(_run_line(run) for run in kept.runs if run.key in finished)
        self._file: IO[bytes] = self.path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, *requests: RequestTimes) -> None:
        self._write(b"".join(map(_request_line, requests)))

    def add_run(self, run: Run) -> None:
        self._write(_run_line(run))

    def end(self, *, interrupted: bool) -> None:
        self._write(_line({"end": {"interrupted": interrupted}}))
        os.fsync(self._file.fileno())

    def _write(self, lines: bytes) -> None:
        try:
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            raise ParsError(f"{self.path}: cannot be written: {error.strerror}") from error


def read_result(folder: Path) -> Result:
    """
    Read a result folder, whole or interrupted.

    Raises:
        DataError: no result is there, or a line is not what it must be; an unfinished last line
            (a crash, a full disk) is left out.
    """
    path = folder / REQUESTS_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError.at(path, f"cannot be read: {error.strerror}") from None
    header: dict[str, Any] | None = None
    requests, runs, interrupted = [], [], True
    for row, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            value = json.loads(line)
            if row == 1:
                header = {k: v for k, v in value.items() if k != "pars_result"}
                if value["pars_result"] != FORMAT:
                    raise ValueError(f"pars_result must be {FORMAT}")
            elif "run" in value:
                runs.append(_run(value["run"]))
            elif "end" in value:
                interrupted = bool(value["end"]["interrupted"])
            else:
                requests.append(RequestTimes(**value))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError.at(path, f"no line of a result: {error}", row=row) from None
    if header is None:
        raise DataError.at(path, "is empty: no result")
    interrupted = interrupted or any(run.interrupted for run in runs)
    return Result(header, requests, runs, interrupted)


def itl_bucket(interval_s: float) -> int:
    """The bucket of an interval between two tokens: equal steps in its logarithm."""
    return math.floor(math.log(max(interval_s, _ITL_FLOOR_S)) / math.log(ITL_STEP))


def bucket_s(bucket: int) -> float:
    """The middle of a bucket, in seconds."""
    return math.pow(ITL_STEP, bucket + 0.5)


def itl_counts(intervals_s: Iterable[float]) -> dict[int, int]:
    """How many of the intervals fall into each bucket."""
    counts: dict[int, int] = {}
    for interval_s in intervals_s:
        bucket = itl_bucket(interval_s)
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def _line(value: Mapping[str, Any]) -> bytes:
    return utf8(json.dumps(value, ensure_ascii=False, allow_nan=False)) + b"\n"


_DEFAULTS = {it.name: it.default for it in fields(RequestTimes)}


def _request_line(request: RequestTimes) -> bytes:
    """Without the fields that have their default, and to the microsecond."""
    values = ((name, getattr(request, name)) for name in _DEFAULTS)
    return _line({k: _short(v) for k, v in values if v != _DEFAULTS[k]})


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _run_line(run: Run) -> bytes:
    queue = [[round(s.at_s, 3), *list(asdict(s).values())[1:]] for s in run.queue]
    counts = {str(bucket): n for bucket, n in sorted(run.itl_counts.items())}
    value = {it.name: getattr(run, it.name) for it in fields(run)}
    return _line({"run": value | {"queue": queue, "itl_counts": counts}})


def _run(value: dict[str, Any]) -> Run:
    queue = tuple(QueueSample(*sample) for sample in value.pop("queue", ()))
    counts = {int(bucket): n for bucket, n in value.pop("itl_counts", {}).items()}
    return Run(**value, queue=queue, itl_counts=counts)
