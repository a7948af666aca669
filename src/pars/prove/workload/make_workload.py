"""
`pars workload`: prompts with known answer lengths, joined with arrivals.

    plan = WorkloadPlan(records=Path("log.jsonl"), arrivals="poisson", rate=20.0)
    facts, requests = make_workload(plan)
    write_workload(Path("load.jsonl"), facts, requests)

Every row of the records is one answer and becomes a request of its own, so the lengths of several
answers to one prompt stay apart. A trace without records gives requests without prompts; with both,
the trace says only when.
"""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pars.errors import DataError, ParsError
from pars.prove.workload.arrivals import Trace, burst, gamma, mean_rate, poisson, read_trace, scaled
from pars.prove.workload.workload import Header, WorkloadRequest
from pars.request.conversation import message_of
from pars.request.prompts import CHARS_PER_TOKEN

ARRIVALS = ("poisson", "gamma", "burst", "trace")
TOKENS_PER = {"tokens": 1.0, "characters": 1 / CHARS_PER_TOKEN, "words": 4 / 3}
PROMPT_LENGTH_FIELDS = ("prompt_tokens", "input_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadPlan:
    """
    What `pars workload` is asked for.

    Attributes:
        rate: Requests a second; None for a burst, or for a trace's own times.
        cv: Of gamma arrivals: the intervals' standard deviation over their mean.
        num_requests: None takes every record, or as many as the trace has. More than there are
            records: they come around again, in another order.
        max_output_tokens: Longer answers are cut to this.
        max_prompt_tokens: Requests with a longer prompt are left out, as a server refuses them.
        max_tokens: The client's limit in requests whose record has none.
        length_unit: Of the records' lengths; None goes by the field's name.
    """

    records: Path | None = None
    arrivals: str = "poisson"
    rate: float | None = None
    cv: float | None = None
    trace: Path | None = None
    num_requests: int | None = None
    seed: int = 0
    max_output_tokens: int | None = None
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    prompt_field: str | None = None
    answer_field: str | None = None
    length_field: str | None = None
    length_unit: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    allow_truncated: bool = False

    def __post_init__(self) -> None:
        if self.arrivals not in ARRIVALS:
            raise ParsError(f"--arrivals must be one of {', '.join(ARRIVALS)}")
        if self.records is None and self.trace is None:
            raise ParsError("give --records (prompts with answer lengths), --trace, or both")
        if (self.trace is not None) != (self.arrivals == "trace"):
            raise ParsError("--trace FILE and --arrivals trace go together")
        if self.arrivals in ("poisson", "gamma") and self.rate is None:
            raise ParsError(f"--arrivals {self.arrivals} needs --rate, in requests a second")
        if self.arrivals == "burst" and self.rate is not None:
            raise ParsError("--arrivals burst takes no --rate: all requests come at once")
        if (self.cv is not None) != (self.arrivals == "gamma"):
            raise ParsError("--cv and --arrivals gamma go together")
        if self.num_requests is not None and self.num_requests < 1:
            raise ParsError(f"--num-requests must be 1 or more, not {self.num_requests}")


@dataclass(frozen=True, slots=True)
class _Record:
    """One prompt and the length of one answer to it."""

    prompt: str | None
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    category: str | None = None


def make_workload(plan: WorkloadPlan) -> tuple[Header, list[WorkloadRequest]]:
    """
    The header's facts and the requests; the same plan gives the same.

    Raises:
        ParsError: a file is missing or not what it must be, or there are too few arrivals.
    """
    trace = read_trace(plan.trace) if plan.trace else None
    told: Header = {}
    if plan.records:
        records = list(_records(plan, told))
    else:
        assert trace is not None
        trace, records = _replayable(trace, plan.max_prompt_tokens or math.inf, told)
    if not records:
        raise DataError.at(plan.records or plan.trace or "", "has no row with an answer to replay")
    num_requests = plan.num_requests or (len(trace.arrivals_s) if trace else len(records))
    arrivals_s = _arrivals(plan, trace, num_requests)
    chosen = (
        _drawn(records, num_requests, plan.seed)
        if plan.records
        else records[:num_requests]  # as recorded: their order may mean something
    )
    width = len(str(num_requests - 1))  # so that ids sort as arrivals do
    requests = [
        _request(plan, f"{row:0{width}}", round(arrival_s, 6), record)
        for row, (arrival_s, record) in enumerate(zip(arrivals_s, chosen, strict=True))
    ]
    return _facts(plan, told, requests), requests


def _request(
    plan: WorkloadPlan, request_id: str, arrival_s: float, record: _Record
) -> WorkloadRequest:
    output_tokens = record.output_tokens
    if plan.max_output_tokens is not None:
        output_tokens = min(output_tokens, plan.max_output_tokens)
    return WorkloadRequest(
        request_id=request_id,
        arrival_s=arrival_s,
        prompt=record.prompt,
        prompt_tokens=record.prompt_tokens,
        output_tokens=output_tokens,
        max_tokens=record.max_tokens or plan.max_tokens,
        category=record.category,
    )


def _facts(plan: WorkloadPlan, told: Header, requests: list[WorkloadRequest]) -> Header:
    """The header: names of files and not their paths, so that it is the same everywhere."""
    prompts = {request.prompt for request in requests if request.prompt is not None}
    rate = mean_rate([request.arrival_s for request in requests])
    facts: Header = {
        "source": (plan.records or plan.trace or Path()).name,
        "where": [f"{name}={value}" for name, value in plan.where] or None,
        "arrivals": plan.arrivals,
        "trace": plan.trace.name if plan.trace else None,
        "rate": plan.rate,
        "mean_rate": None if rate is None else round(rate, 6),
        "cv": plan.cv,
        "seed": plan.seed,
        "num_requests": len(requests),
        "num_prompts": len(prompts),
        "max_output_tokens": plan.max_output_tokens,
        "max_prompt_tokens": plan.max_prompt_tokens,
        **told,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _arrivals(plan: WorkloadPlan, trace: Trace | None, num_requests: int) -> list[float]:
    if plan.arrivals == "burst":
        return burst(num_requests)
    if trace is None:
        assert plan.rate is not None
        if plan.arrivals == "gamma":
            return gamma(num_requests, plan.rate, plan.cv or 1.0, plan.seed)
        return poisson(num_requests, plan.rate, plan.seed)
    if num_requests > len(trace.arrivals_s):
        problem = f"has {len(trace.arrivals_s):,} usable arrivals, not {num_requests:,}"
        raise DataError.at(plan.trace or "", problem)
    arrivals_s = trace.arrivals_s[:num_requests]
    return arrivals_s if plan.rate is None else scaled(arrivals_s, plan.rate)


def _drawn(records: list[_Record], num_requests: int, seed: int) -> list[_Record]:
    """In random order, each once before any comes again."""
    rng = random.Random(f"records {seed}")  # not the arrivals' own numbers
    drawn: list[_Record] = []
    while len(drawn) < num_requests:
        drawn += rng.sample(records, min(len(records), num_requests - len(drawn)))
    return drawn


def _replayable(
    trace: Trace, most_prompt_tokens: float, told: Header
) -> tuple[Trace, list[_Record]]:
    """The rows of a trace that have tokens, as arrivals and as records."""
    columns = zip(trace.arrivals_s, trace.input_tokens, trace.output_tokens, strict=True)
    whole = [row for row in columns if row[1] and row[2]]
    rows = [row for row in whole if row[1] <= most_prompt_tokens]
    told["num_skipped_empty"] = len(trace.arrivals_s) - len(whole)
    told["num_skipped_long"] = len(whole) - len(rows)
    told["lengths_from"] = "trace"
    first_s = rows[0][0] if rows else 0.0
    kept = Trace(
        [at - first_s for at, _, _ in rows], [n for _, n, _ in rows], [n for *_, n in rows]
    )
    return kept, [_Record(None, inputs, outputs) for _, inputs, outputs in rows]


def _records(plan: WorkloadPlan, told: Header) -> Iterator[_Record]:
    """Prompts and answer lengths in tokens, row by row; rows without an answer are counted."""
    from pars.learn.data.records import Fields
    from pars.learn.data.rows import is_wanted, length_of, prompt_in, read_rows, text_of

    assert plan.records is not None
    path, fields, unit = plan.records, None, "tokens"
    told["num_skipped_empty"] = told["num_skipped_long"] = 0
    rows = read_rows(path, on_cut=(lambda _: None) if plan.allow_truncated else None)
    for number, row in enumerate(rows, 1):
        if not is_wanted(row, plan.where, path, number):
            continue
        if fields is None:
            fields = Fields.found_in(
                row,
                path,
                number,
                prompt=plan.prompt_field,
                answer=plan.answer_field,
                length=plan.length_field,
            )
            if plan.answer_field and not plan.length_field:
                fields = Fields(fields.prompt, fields.answer, None)
            unit = plan.length_unit or _unit_named_by(fields.length)
            told["lengths_from"] = f"{fields.length or fields.answer}, in {unit}"
        prompt = prompt_in(row, fields.prompt, path, number)
        if fields.length:
            length = length_of(row, fields.length, path, number) or 0
        else:
            answer = text_of(row, fields.answer or "", path, number)
            length = len(answer.split()) if unit == "words" else len(answer)
        if not prompt or not length:
            told["num_skipped_empty"] += 1
            continue
        prompt_tokens = _prompt_tokens(row, prompt, path, number)
        if prompt_tokens > (plan.max_prompt_tokens or math.inf):
            told["num_skipped_long"] += 1
            continue
        yield _Record(
            prompt,
            prompt_tokens,
            max(1, round(length * TOKENS_PER[unit])),
            _limit(row, path, number),
            text_of(row, "category", path, number) or None if "category" in row else None,
        )


def _unit_named_by(length_field: str | None) -> str:
    """`response_words` is in words; a bare `length` is taken for tokens, as in `pars prepare`."""
    if length_field is None:
        return "characters"
    last = length_field.rsplit("_", 1)[-1]
    return {"words": "words", "chars": "characters", "characters": "characters"}.get(last, "tokens")


def _prompt_tokens(row: Mapping[str, Any], prompt: str, path: Path, number: int) -> int:
    """As the record counts them; else a token for every four characters."""
    from pars.learn.data.rows import length_of

    for name in PROMPT_LENGTH_FIELDS:
        if row.get(name) is not None:
            return max(1, round(length_of(row, name, path, number) or 0))
    return max(1, round(len(message_of(prompt)) / CHARS_PER_TOKEN))


def _limit(row: Mapping[str, Any], path: Path, number: int) -> int | None:
    from pars.learn.data.rows import length_of

    if row.get("max_tokens") is None:
        return None
    return max(1, round(length_of(row, "max_tokens", path, number) or 0))
