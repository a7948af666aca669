"""
`pars workload`: prompts with known answer lengths, joined with arrivals.

    plan = WorkloadPlan(records=Path("log.jsonl"), arrivals="poisson", rate=20.0)
    facts, requests = make_workload(plan)
    write_workload(Path("load.jsonl"), facts, requests)

Every row of the records is one answer and becomes a request of its own, so the lengths of several
answers to one prompt stay apart. A trace without records gives requests without prompts; with both,
the trace says only when.
"""

import hashlib
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pars.errors import DataError, ParsError
from pars.prove.workload.arrivals import burst, gamma, mean_rate, poisson, scaled
from pars.prove.workload.traces import Trace, read_trace
from pars.prove.workload.workload import Header, WorkloadRequest
from pars.request.conversation import message_of
from pars.request.features import signals_of_row
from pars.request.token_counts import CHARS_PER_TOKEN

ARRIVALS = ("poisson", "gamma", "burst", "trace")
TOKENS_PER = {"tokens": 1.0, "characters": 1 / CHARS_PER_TOKEN, "words": 4 / 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadPlan:
    """
    What `pars workload` is asked for.

    Attributes:
        requests: What `records` answers, where they are the output of a batch.
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
    requests: Path | None = None
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
        if self.requests and self.records is None:
            raise ParsError("--requests is a batch's input file: give its output with --records")
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
    facts: tuple[str, ...] | None = None


def make_workload(plan: WorkloadPlan) -> tuple[Header, list[WorkloadRequest]]:
    """
    The header's facts and the requests; the same plan gives the same.

    Raises:
        ParsError: a file is missing or not what it must be, or there are too few arrivals.
    """
    trace = read_trace(plan.trace) if plan.trace else None
    told: Header = {}
    if trace and trace.num_out_of_order:
        told["num_out_of_order"] = trace.num_out_of_order
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
        facts=record.facts,
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
    told["lengths_from"] = f"trace ({', '.join(trace.columns)})"
    first_s = rows[0][0] if rows else 0.0
    kept = Trace(
        [at - first_s for at, _, _ in rows],
        [n for _, n, _ in rows],
        [n for *_, n in rows],
    )
    return kept, [_Record(None, inputs, outputs) for _, inputs, outputs in rows]


def _records(plan: WorkloadPlan, told: Header) -> Iterator[_Record]:
    """Prompts and answer lengths in tokens, row by row; rows that are left out are counted."""
    from pars.learn.data.batches import read_log
    from pars.learn.data.fields import is_wanted, text_of
    from pars.learn.data.record_reader import NO_ANSWER, NO_PROMPT, RecordReader

    assert plan.records is not None
    path = plan.records
    wanted = (
        (number, row)
        for number, row in enumerate(
            read_log(
                path, plan.requests, on_cut=(lambda _: None) if plan.allow_truncated else None
            ),
            1,
        )
        if is_wanted(row, plan.where, path, number)
    )
    names = (plan.prompt_field, plan.answer_field, plan.length_field)
    reader, rows = RecordReader.settled(wanted, path, names=names)
    length_field, answer_field = reader.fields.length, reader.fields.answer
    unit = plan.length_unit or reader.unit or "characters"
    if length_field and not plan.length_unit and reader.unit is None:
        problem = f"nothing tells in which unit field {length_field!r} counts answers"
        raise DataError.at(path, f"{problem}: give --length-unit tokens, words or characters")
    told["lengths_from"] = f"{length_field or answer_field or reader.fields.prompt}, in {unit}"
    told["num_skipped_empty"] = told["num_skipped_long"] = 0
    for number, row in rows:
        exchange = reader(row, number)
        if exchange is None:
            continue
        length = exchange.length
        if length is None:
            length = len(exchange.answer.split() if unit == "words" else exchange.answer)
        if not length:
            reader.left_out[NO_ANSWER] += 1
            continue
        prompt_tokens = _prompt_tokens(row, exchange.prompt, path, number)
        if prompt_tokens > (plan.max_prompt_tokens or math.inf):
            told["num_skipped_long"] += 1
            continue
        yield _Record(
            exchange.prompt,
            prompt_tokens,
            max(1, round(length * TOKENS_PER[unit])),
            _limit(row, path, number),
            text_of(row, "category", path, number) or None if "category" in row else None,
            _facts_of(row, exchange.prompt),
        )
    told["num_skipped_empty"] = reader.left_out[NO_ANSWER] + reader.left_out[NO_PROMPT]
    told["left_out"] = {reason: n for reason, n in reader.left_out.most_common() if n} or None


def _prompt_tokens(row: Mapping[str, Any], prompt: str, path: Path, number: int) -> int:
    """As the record counts them; else a token for every four characters."""
    from pars.learn.data.record_reader import prompt_tokens_in

    counted = prompt_tokens_in(row, path, number)
    return max(1, round(counted or len(message_of(prompt)) / CHARS_PER_TOKEN))


def _facts_of(row: Mapping[str, Any], prompt: str) -> tuple[str, ...] | None:
    """Who asks and how, where the row tells more than its prompt does; a key only as a hash."""
    known = row.get("api_key")
    if known:
        row = {**row, "api_key": hashlib.blake2b(str(known).encode(), digest_size=8).hexdigest()}
    facts = signals_of_row(row, prompt).facts
    return facts if facts != signals_of_row({}, prompt).facts else None


def _limit(row: Mapping[str, Any], path: Path, number: int) -> int | None:
    from pars.learn.data.record_reader import limit_in

    limit = limit_in(row, path, number)
    return None if limit is None else max(1, round(limit))
