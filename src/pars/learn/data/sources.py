"""
Where prompts and answers come from: PARS's four sources, ShareGPT, and the user's own records.

A source turns each row of its own shape, from a file or from the Hub, into exchanges (a prompt and
its answer). To add one, write that function and a line in SOURCES.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pars.errors import DataError
from pars.learn.data.batches import read_log
from pars.learn.data.chats import role_named
from pars.learn.data.fields import field_of, is_wanted, kind_of, text_of
from pars.learn.data.record_reader import Exchange, NumberedRows, RecordReader
from pars.request.conversation import with_note

Where = tuple[tuple[str, str], ...]


ExchangesOf = Callable[[Mapping[str, Any], Path | str, int], Iterable[Exchange]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a source stands on the Hub, how to read its rows, and PARS's settings for it."""

    dataset: str | None
    exchanges_of: ExchangesOf
    length_unit: str
    data_files: str | None = None
    where: Where = ()
    train_num_pairs: int = 10
    val_num_pairs: int = 10
    group_by_prompt: bool = False


def _alpaca(row: Mapping[str, Any], at: Path | str, number: int) -> Iterator[Exchange]:
    prompt = text_of(row, "instruction", at, number).strip()
    extra = text_of(row, "input", at, number).strip() if "input" in row else ""
    yield Exchange(f"{prompt} {extra}".strip(), text_of(row, "output", at, number))


def _instruction(row: Mapping[str, Any], at: Path | str, number: int) -> Iterator[Exchange]:
    yield Exchange(text_of(row, "instruction", at, number), text_of(row, "output", at, number))


def _lmsys(row: Mapping[str, Any], at: Path | str, number: int) -> Iterator[Exchange]:
    messages = _messages(row, "conversation", ("role", "content"), at, number)
    if messages:
        yield Exchange(messages[0][1], messages[-1][1])
    else:
        yield Exchange("", "")  # counted, and dropped for want of a prompt


def _sharegpt(row: Mapping[str, Any], at: Path | str, number: int) -> Iterator[Exchange]:
    """One exchange for each human message that the assistant answers next."""
    told = _messages(row, "conversations", ("from", "value"), at, number)
    messages = [(role_named(who), text) for who, text in told]
    answer_chars: list[int] = []
    for (asker, prompt), (teller, answer) in pairwise(messages):
        if asker == "assistant":  # also where nobody asked: a server would see it too
            answer_chars.append(len(prompt))
        if (asker, teller) == ("user", "assistant"):
            yield Exchange(with_note(prompt, answer_chars) if prompt else "", answer)


def _messages(
    row: Mapping[str, Any], name: str, keys: tuple[str, str], at: Path | str, number: int
) -> list[tuple[str, str]]:
    messages = field_of(row, name, at, number)
    for one in messages if isinstance(messages, list) else [messages]:
        if not isinstance(messages, list) or not isinstance(one, dict):
            must = f"field {name!r} must be a list of {{{', '.join(keys)}}}"
            raise DataError.at(at, f"{must}, not of {kind_of(one)}", row=number)
    who, what = keys
    return [(text_of(one, who, at, number), text_of(one, what, at, number)) for one in messages]


SOURCES = {
    "alpaca": Source(dataset="vicgalle/alpaca-gpt4", exchanges_of=_alpaca, length_unit="words"),
    "code": Source(
        dataset="theblackcat102/evol-codealpaca-v1",
        exchanges_of=_instruction,
        length_unit="characters",
    ),
    "lmsys": Source(
        dataset="lmsys/lmsys-chat-1m",
        exchanges_of=_lmsys,
        length_unit="characters",
        where=(("model", "gpt-4"), ("turn", "1")),
        train_num_pairs=50,
        val_num_pairs=5,
    ),
    "math": Source(
        dataset="TIGER-Lab/MATH-plus", exchanges_of=_instruction, length_unit="characters"
    ),
    "sharegpt": Source(
        dataset="anon8231489123/ShareGPT_Vicuna_unfiltered",
        data_files="ShareGPT_V3_unfiltered_cleaned_split.json",
        exchanges_of=_sharegpt,
        length_unit="words",
        group_by_prompt=True,
    ),
}


def records_source(reader: RecordReader) -> Source:
    """The user's own records, of which `reader` knows the fields."""

    def exchanges_of(row: Mapping[str, Any], at: Path | str, number: int) -> Iterator[Exchange]:
        exchange = reader(row, number)
        if exchange is not None:
            yield exchange

    unit = reader.unit or ("tokens" if reader.fields.length else "words")
    return Source(dataset=None, exchanges_of=exchanges_of, length_unit=unit, group_by_prompt=True)


def file_rows(
    path: Path,
    where: Where,
    counts: Counter[str],
    on_cut: Callable[[int], None] | None,
    requests: Path | None = None,
) -> NumberedRows:
    """The rows of a file that `where` wants, numbered; counts["rows_read"] counts all."""
    for number, row in enumerate(read_log(path, requests, on_cut=on_cut), 1):
        counts["rows_read"] += 1
        if is_wanted(row, where, path, number):
            yield number, row
