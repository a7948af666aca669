"""
A row of a log as a prompt with its answer: the one reader for preparing, training, evaluating,
collecting and replaying.

    reader, rows = RecordReader.settled(numbered_rows, path)     # finds out where things stand
    for number, row in rows:
        exchange = reader(row, number)                           # None: left out, and counted
    reader.left_out                                              # {"failed request": 3}

Which field holds what is settled once, from the first rows: by the names that were asked for, else
by the known ones of `layouts`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from pars.errors import DataError
from pars.learn.data.answers import Answer, answer_in, answer_of_chat
from pars.learn.data.chats import Message, NotUnderstood, WrongShape, asked_in, prompt_in_chat
from pars.learn.data.fields import length_of, text_of
from pars.learn.data.layouts import Fields, failure_in, unit_of
from pars.outcomes.records import CUT_SHORT
from pars.request.conversation import message_of, with_note, without_answer

ROWS_LOOKED_AT = 100
ANSWERS_BEFORE = "answers_before"
NO_PROMPT, NO_ANSWER = "no prompt", "no answer"
_BODIES = ("", "response.body.", "response.", "response_body.", "responseBody.")
PROMPT_TOKENS = (
    *("prompt_tokens", "input_tokens", "promptTokens", "usage.input", "usageDetails.input"),
    *(f"{it}usage.{name}" for it in _BODIES for name in ("prompt_tokens", "input_tokens")),
)
LIMITS = tuple(
    it + name
    for it in ("", "request.body.", "request.", "body.", "request_body.", "requestBody.")
    for name in ("max_tokens", "max_completion_tokens")
)

Names = tuple[str | None, str | None, str | None]  # of prompt, answer and length; None: found
FOUND: Names = (None, None, None)
NumberedRows = Iterator[tuple[int, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Row:
    """
    One prompt and the length of its answer, in whatever unit the file was prepared with.

    `finish_reason` is why the answer ended, as the OpenAI interface tells it, where that is known.
    """

    task_id: int | str
    prompt: str
    answer_length: float
    answer_content: str = ""
    category: str | None = None
    model: str | None = None
    finish_reason: str | None = None

    @property
    def message(self) -> str:
        """The prompt as splits tell prompts apart: the same message is the same prompt."""
        return message_of(self.prompt).strip()

    @property
    def is_censored(self) -> bool:
        """Whether the answer was cut short: it would have become longer."""
        return self.finish_reason in CUT_SHORT


class Exchange(NamedTuple):
    """A prompt and its answer as a source has them; `length` only where the row itself tells it."""

    prompt: str
    answer: str
    length: float | None = None
    category: str | None = None
    model: str | None = None
    finish_reason: str | None = None  # of a record: whether its answer was cut short

    def as_row(self, task_id: int | str) -> Row:
        """The row that it becomes; without a length, its answer's whitespace words are counted."""
        prompt, answer, length, *known = self
        return Row(
            task_id, prompt, len(answer.split()) if length is None else length, answer, *known
        )


@dataclass(frozen=True, slots=True)
class RecordReader:
    """
    Reads rows whose fields are known.

    Attributes:
        unit: Of the lengths that `reader` gives: those of the rows, or of the answers' texts where
            `fields.length` is None.
        left_out: How many rows were left out, by reason.
    """

    fields: Fields
    at: Path | str
    unit: str | None
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def settled(
        cls,
        rows: NumberedRows,
        at: Path | str,
        *,
        names: Names = FOUND,
        length_unit: str | None = None,
        left_out: Counter[str] | None = None,
    ) -> tuple["RecordReader", NumberedRows]:
        """
        Look at the first rows; give the reader, and all rows.

        Lengths the rows hold are used as they are, unless a unit or an answer field is asked for
        and no length field: then the answer's text is counted.

        Args:
            names: Those asked for, of the fields of prompt, answer and length.

        Raises:
            DataError: no field is found, or one looks like a wrong one.
        """
        looked_at = list(islice(rows, ROWS_LOOKED_AT))
        fields = Fields.found_in(looked_at, at, *names)
        is_within = bool(names[2] and fields.answer and names[2].startswith(f"{fields.answer}."))
        if is_within and not names[1]:  # a body with its usage: no answer's text is asked for
            fields = Fields(fields.prompt, None, fields.length)
        counts_text = fields.has_answer and not names[2] and (names[1] or length_unit)
        if counts_text or fields.length is None:
            fields = Fields(fields.prompt, fields.answer, None)
        unit = length_unit
        if unit is None and fields.length:
            unit = unit_of(fields.length, at, looked_at)
        return cls(fields, at, unit, Counter() if left_out is None else left_out), chain(
            looked_at, rows
        )

    def __call__(self, row: Mapping[str, Any], number: int) -> Exchange | None:
        """
        The row's prompt and answer; None where it is left out, which is counted.

        Raises:
            DataError: a field has the wrong type.
        """
        try:
            exchange = self._exchange(row, number)
        except NotUnderstood as reason:
            self.left_out[str(reason)] += 1
            return None
        if (failure := failure_in(row)) and (not exchange.answer and not exchange.length):
            self.left_out[failure] += 1
            return None
        if not exchange.prompt.strip():
            self.left_out[NO_PROMPT] += 1
            return None
        if exchange.length is None and (self.fields.length or not exchange.answer):
            self.left_out[NO_ANSWER] += 1
            return None
        return exchange

    def _exchange(self, row: Mapping[str, Any], number: int) -> Exchange:
        asked, answer = self.asked(row, number), None
        if self.fields.answer is not None:
            answer = self._answer(row, number)
        elif self.fields.length is None and isinstance(asked, list):
            before, answer = answer_of_chat(asked)
            asked = before if answer else asked
        length = None
        if self.fields.length:
            length = length_of(row, self.fields.length, self.at, number)
            length = self.fields.whole_length(row, length)
        category, model, finish_reason = (
            text_of(row, name, self.at, number) or None if name in row else None
            for name in ("category", "model", "finish_reason")
        )
        prompt = self.prompt(row, asked, number)
        text = answer.text if answer else ""
        finish_reason = finish_reason or (answer.finish_reason if answer else None)
        return Exchange(prompt, text, length, category, model, finish_reason)

    def asked(self, row: Mapping[str, Any], number: int) -> str | list[Message] | None:
        """What was asked, as text or messages, with its answer if a chat ends with it."""
        name = self.fields.prompt
        try:
            asked = asked_in(self.fields.value(row, name))
        except WrongShape as error:
            raise DataError.at(self.at, f"field {name!r} must be {error}", row=number) from None
        extra = row.get("input") if name == "instruction" else None
        if isinstance(asked, str) and isinstance(extra, str):  # Alpaca's
            asked = f"{asked.strip()} {extra.strip()}".strip()
        return asked

    def prompt(self, row: Mapping[str, Any], asked: str | list[Message] | None, number: int) -> str:
        """
        What a ranker reads of what was asked, behind a note of the answers before it.

        A chat tells them itself; before a text, `answers_before` may tell their characters.
        """
        if isinstance(asked, list):
            return prompt_in_chat(without_answer(asked)) or ""
        before = row.get(ANSWERS_BEFORE)
        if before is None:
            return asked or ""
        if not isinstance(before, list) or not all(map(_is_count, before)):
            problem = (
                f"field {ANSWERS_BEFORE!r} must be a list of whole numbers: characters of answers"
            )
            raise DataError.at(self.at, problem, row=number)
        return with_note(asked, before) if asked else ""

    def _answer(self, row: Mapping[str, Any], number: int) -> Answer | None:
        name = self.fields.answer or ""
        try:
            return answer_in(self.fields.value(row, name))
        except WrongShape as error:
            raise DataError.at(self.at, f"field {name!r} must be {error}", row=number) from None


def prompt_tokens_in(row: Mapping[str, Any], at: Path | str, number: int) -> float | None:
    """The prompt's tokens where the row counts them."""
    return _first_number(PROMPT_TOKENS, row, at, number)


def limit_in(row: Mapping[str, Any], at: Path | str, number: int) -> float | None:
    """The client's own limit on the answer's tokens, where the row has the request."""
    return _first_number(LIMITS, row, at, number)


def _first_number(
    names: tuple[str, ...], row: Mapping[str, Any], at: Path | str, number: int
) -> float | None:
    for name in names:
        if (length := length_of(row, name, at, number)) is not None:
            return length
    return None


def told_of(left_out: Mapping[str, int]) -> str:
    """Reasons with their numbers of rows, the most frequent first."""
    by_count = sorted(left_out.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} ({reason})" for reason, count in by_count)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
