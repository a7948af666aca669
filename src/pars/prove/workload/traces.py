"""
Arrival traces as they are published, and as logs hold them: when, and how many tokens.

    trace = read_trace(Path("AzureLLMInferenceTrace_conv.csv"))

Columns are known by their names, whatever their case and the signs between their words. Times are
seconds, dates, or counts of a unit that the column's name or the size of the numbers tells.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pars.errors import DataError

# In each, the first name that a file has is taken.
TIMES = (
    *("arrival_s", "arrival_time_s", "arrival_ms", "arrived_at", "arrival_time", "timestamp_ms"),
    *("timestamp_s", "timestamp", "start_time", "request_created_at", "created_at", "time"),
)
INPUTS = (
    *("input_tokens", "context_tokens", "request_tokens", "input_length", "prompt_tokens"),
    *("num_prefill_tokens", "prompt_length", "prompt_len", "input_len"),
)
OUTPUTS = (
    *("output_tokens", "generated_tokens", "response_tokens", "output_length"),
    *("completion_tokens", "num_decode_tokens", "output_len"),
)
WANTED = {
    "arrival_s (or TIMESTAMP, start_time, ...)": TIMES,
    "input_tokens (or ContextTokens, prompt_tokens, input_length, ...)": INPUTS,
    "output_tokens (or GeneratedTokens, completion_tokens, output_length, ...)": OUTPUTS,
}
# The first second of 1973 in each unit: smaller numbers count from a trace's own start.
EPOCH_UNITS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))
_MORE_DIGITS = re.compile(r"(\.\d{6})\d+")  # than microseconds, as .NET writes them


@dataclass(frozen=True, slots=True)
class Trace:
    """
    Recorded requests: seconds from the first of them (rising) and tokens, [num_requests].

    A request without tokens has 0 of them.

    Attributes:
        num_out_of_order: Rows that stood after a later one; they are put where they belong.
    """

    arrivals_s: list[float]
    input_tokens: list[int]
    output_tokens: list[int]
    columns: list[str] = field(default_factory=list)
    num_out_of_order: int = 0


def read_trace(path: Path) -> Trace:
    """
    The requests of a CSV, JSON-lines, JSON or Parquet file.

    Raises:
        DataError: the file or a column is missing, or a value is no time or no count.
    """
    from pars.learn.data.rows import read_rows

    columns: list[str] = []
    found: list[tuple[float, int, int]] = []
    is_mooncake = False
    num_behind = 0
    last_s = -math.inf
    for number, row in enumerate(read_rows(path), 1):
        if not columns:
            columns = _columns(row, path)
            is_mooncake = "hash_ids" in row and "chat_id" not in row
        at_s = _seconds(row.get(columns[0]), columns[0], path, number)
        inputs, outputs = (_count(row.get(name), name, path, number) for name in columns[1:])
        num_behind += at_s < last_s
        last_s = max(last_s, at_s)
        found.append((at_s, inputs, outputs))
    if not found:
        raise DataError.at(path, "has no requests")
    found.sort(key=lambda it: it[0])
    unit_s = _unit_s(
        columns[0], found[-1][0], is_mooncake and all(at.is_integer() for at, *_ in found)
    )
    first = found[0][0]
    return Trace(
        [(at - first) * unit_s for at, _, _ in found],
        [inputs for _, inputs, _ in found],
        [outputs for _, _, outputs in found],
        columns,
        num_behind,
    )


def _columns(row: Mapping[str, Any], path: Path) -> list[str]:
    """The names of the columns of times, input and output tokens."""
    by_plain = {_plain(name): name for name in reversed(list(row))}
    columns = [
        next((by_plain[_plain(name)] for name in names if _plain(name) in by_plain), None)
        for names in WANTED.values()
    ]
    missing = [told for told, name in zip(WANTED, columns, strict=True) if name is None]
    if missing:
        has = ", ".join(row)
        raise DataError.at(path, f"has no column {' and no '.join(missing)}; its columns: {has}")
    return [name for name in columns if name is not None]


def _plain(name: str) -> str:
    """ContextTokens, "Context tokens" and context_tokens are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _seconds(value: Any, name: str, path: Path, number: int) -> float:
    """A number as it is, a date as seconds since 1970; a date without a zone is taken for UTC."""
    from pars.learn.data.fields import number_of

    at = number_of(value)
    if at is None and isinstance(value, str):
        at = _date_s(value)
    if isinstance(value, datetime):
        at = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if at is None or not math.isfinite(at):
        problem = f"column {name!r} must be a number or a date, not {value!r}"
        raise DataError.at(path, problem, row=number)
    return float(at)


def _date_s(text: str) -> float | None:
    spelled = _MORE_DIGITS.sub(r"\1", text.strip().removesuffix(" UTC"))
    try:
        date = datetime.fromisoformat(spelled)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _count(value: Any, name: str, path: Path, number: int) -> int:
    """A whole number of tokens, "10.0" too; 0 where there is none (empty, null, NaN)."""
    from pars.learn.data.fields import is_nothing, number_of

    if is_nothing(value):
        return 0
    count = number_of(value)
    if count is None or count < 0 or count % 1:
        problem = f"column {name!r} must be a whole number of tokens, not {value!r}"
        raise DataError.at(path, problem, row=number)
    return int(count)


def _unit_s(name: str, last: float, is_mooncake: bool) -> float:
    """
    Seconds of one unit of the column.

    Its name may say it; since 1970 the size of the numbers does. Mooncake's `timestamp` counts
    milliseconds from the start (its rows have hash_ids); Qwen's, whose rows have chat_id, seconds.
    """
    if name.lower().endswith("ms") or (is_mooncake and last < EPOCH_UNITS[-1][0]):
        return 1e-3
    return next((unit_s for least, unit_s in EPOCH_UNITS if last >= least), 1.0)
