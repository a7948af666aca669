"""
Where prompts and answers come from: PARS's four sources, ShareGPT, and the user's own records.

A source turns each row of its own shape, from a file or from the Hub, into exchanges (a prompt and
its answer). To add one, write that function and a line in SOURCES.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pars.errors import DataError
from pars.learn.data.records import Fields
from pars.learn.data.rows import (
    field_of,
    is_wanted,
    kind_of,
    length_of,
    prompt_in,
    read_rows,
    text_of,
)
from pars.request.conversation import with_note

Where = tuple[tuple[str, str], ...]
ASSISTANTS = ("gpt", "chatgpt", "assistant")
NumberedRows = Iterator[tuple[int, Mapping[str, Any]]]


class Exchange(NamedTuple):
    """A prompt and its answer as a source has them; `length` only where the row itself tells it."""

    prompt: str
    answer: str
    length: float | None = None
    category: str | None = None
    model: str | None = None
    finish_reason: str | None = None  # of a record: whether its answer was cut short


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
    messages = _messages(row, "conversations", ("from", "value"), at, number)
    answer_chars: list[int] = []
    for (asker, prompt), (teller, answer) in pairwise(messages):
        if asker in ASSISTANTS:  # also where nobody asked: a server would see it too
            answer_chars.append(len(prompt))
        if asker in ("human", "user") and teller in ASSISTANTS:
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


def records_source(
    first: Mapping[str, Any],
    at: Path | str,
    number: int,
    names: tuple[str | None, str | None, str | None],
    length_unit: str | None,
) -> Source:
    """
    How to read the user's own records, of which `first` is one (row `number` of the file).

    `names` are those asked for: of the fields of prompt, answer and length.

    Lengths the rows hold are used as they are, unless a unit or an answer field is asked for and
    no length field: then the answer's text is counted.
    """
    prompt_field, answer_field, length_field = names
    fields = Fields.found_in(
        first, at, number, prompt=prompt_field, answer=answer_field, length=length_field
    )
    if fields.answer and not length_field and (answer_field or length_unit):
        fields = replace(fields, length=None)
    unit = length_unit or (_unit_named_by(fields.length) if fields.length else "words")

    def exchanges_of(row: Mapping[str, Any], at: Path | str, number: int) -> Iterator[Exchange]:
        prompt = prompt_in(row, fields.prompt, at, number)
        answer = text_of(row, fields.answer, at, number) if fields.answer else ""
        length = length_of(row, fields.length, at, number) if fields.length else None
        if fields.length and length is None:
            answer = ""  # its text must not be counted among lengths of another unit
        category, model, finish_reason = (
            text_of(row, name, at, number) or None if name in row else None
            for name in ("category", "model", "finish_reason")
        )
        yield Exchange(prompt, answer, length, category, model, finish_reason)

    return Source(dataset=None, exchanges_of=exchanges_of, length_unit=unit, group_by_prompt=True)


def _unit_named_by(length_field: str) -> str:
    """A bare `length` is taken for tokens, which is what logs of language models hold."""
    last = length_field.rsplit("_", 1)[-1]
    units = {
        "tokens": "tokens",
        "words": "words",
        "chars": "characters",
        "characters": "characters",
    }
    return units.get(last, "tokens")


def file_rows(
    path: Path, where: Where, counts: Counter[str], on_cut: Callable[[int], None] | None
) -> NumberedRows:
    """The rows of a file that `where` wants, numbered; counts["rows_read"] counts all."""
    for number, row in enumerate(read_rows(path, on_cut=on_cut), 1):
        counts["rows_read"] += 1
        if is_wanted(row, where, path, number):
            yield number, row
