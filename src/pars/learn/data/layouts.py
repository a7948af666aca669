"""
Where logs keep prompt, answer and length: the names and paths that are known, and their units.

Known are PARS's own files, fine-tuning files, chat data sets, OpenAI's and Anthropic's batches,
Gemini's requests, and the logs of Langfuse, Helicone, LiteLLM and vLLM.
"""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pars.errors import DataError
from pars.learn.data.answers import answer_in, answer_of_chat
from pars.learn.data.chats import CHAT_KEYS, NotUnderstood, WrongShape, asked_in
from pars.learn.data.fields import ABSENT, find, number_of

PROMPT_FIELDS = (
    *("prompt", *CHAT_KEYS, "request.body", "request", "request_body", "requestBody", "body"),
    *("params", "proxy_server_request", "instruction", "input", "kwargs", "question", "query"),
)
_CHATS = (*CHAT_KEYS, "proxy_server_request", "request_body", "requestBody")
ANSWER_FIELDS = (
    *("answer", "response", "output", "answer_content", "completion", "response_body"),
    *("responseBody", "result", "outputs", "preferred_output", "chosen", "generated_text"),
)
_OWN_LENGTHS = ("answer_length", "answer_tokens", "response_tokens", "output_tokens", "length")
_BODIES = (
    *("", "response.body.", "response.", "response_body.", "responseBody.", "output."),
    *("result.message.", "result.response.", "body.", "completion."),
)
_USAGES = (
    *("usage.completion_tokens", "usage.output_tokens", "usageMetadata.candidatesTokenCount"),
    *("usage.completionTokens", "usage.output", "usageDetails.output", "usage_details.output"),
    *("completion_tokens", "completionTokens", "outputTokens", "outputUsage", "eval_count"),
)
LENGTH_FIELDS = (*_OWN_LENGTHS, *(body + usage for body in _BODIES for usage in _USAGES))
# Units by the last word of a field's name.
_UNITS = {"words": "words", "chars": "characters", "characters": "characters"}
_BARE = ("answer_length", "response_length", "output_length", "answer_len", "response_len")
_NOT_LENGTHS = re.compile(
    r"(^|[._])((prompt|input|context|total)_?tokens?|(prompt|input)_?len(gth)?|latency|duration|cost"
    r"|spend|price|timestamp|created(_at)?|status(_code)?)$",
    re.IGNORECASE,
)
_FAILED = ("failure", "failed", "error", "errored", "canceled", "cancelled", "expired")
_STATUSES = ("response.status_code", "status_code", "response_status", "status", "result.type")
_ID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,}|[\d.,:+TZ/ -]+|[a-z]+[-_][\w-]{16,}|https?://\S+",
    re.IGNORECASE,
)
FEWEST_TO_JUDGE, LARGEST_LENGTH = 10, 1e8
MOST_REPEATED, LONGEST_NAME = 4, 40  # of labels: rows with one, characters of one

NumberedRow = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Fields:
    """
    Dotted paths of prompt, answer text and answer length in a file of records.

    `answer` and `length` are both None where the prompt is a chat that ends with its answer.
    """

    prompt: str
    answer: str | None
    length: str | None

    @property
    def has_answer(self) -> bool:
        """Whether there is a text of the answer that could be counted."""
        return self.answer is not None or self.length is None

    @staticmethod
    def value(row: Mapping[str, Any], name: str) -> Any:
        """What stands there; nothing is null, since many writers leave nulls out."""
        value = find(row, name)
        if isinstance(value, str) and name in _CHATS and value.strip() in ("{}", "[]"):
            return None  # a table of logs that keeps no chats
        return None if value is ABSENT else value

    def whole_length(self, row: Mapping[str, Any], length: float | None) -> float | None:
        """
        The tokens of one answer: usage counts those of all choices, and Gemini's leaves thoughts
        out.
        """
        name = self.length or ""
        if length is None:
            return None
        if name.endswith("candidatesTokenCount"):
            thoughts = number_of(find(row, name.replace("candidatesToken", "thoughtsToken")))
            length += thoughts or 0
        if name.endswith("usage.completion_tokens"):
            choices = find(row, name.removesuffix("usage.completion_tokens") + "choices")
            length = length / len(choices) if isinstance(choices, list) and choices else length
        return int(length) if float(length).is_integer() else length

    @classmethod
    def found_in(
        cls,
        rows: Sequence[NumberedRow],
        at: Path | str,
        prompt: str | None = None,
        answer: str | None = None,
        length: str | None = None,
    ) -> "Fields":
        """
        The names given, else the first known ones that any of `rows` has.

        Raises:
            DataError: there is none, or one looks like the wrong one.
        """
        if not rows:
            raise DataError.at(at, "has no rows")
        found = cls(
            _named(prompt, rows, at, "prompt")
            or _first(PROMPT_FIELDS, rows, _is_asked)
            or "prompt",
            _named(answer, rows, at, "answer") or _first(ANSWER_FIELDS, rows, _is_answered),
            _named(length, rows, at, "length") or _first(LENGTH_FIELDS, rows, _is_length),
        )
        _must_have(found.prompt, rows, at, "prompt")
        if found.length and not answer and not _any(found.answer, rows, _is_answered):
            found = cls(found.prompt, None, found.length)  # a body that has its usage, and no text
        ends_answered = any(map(_ends_answered, (cls.value(row, found.prompt) for _, row in rows)))
        if found.answer is None and found.length is None and not ends_answered:
            known = ", ".join((*ANSWER_FIELDS, *_OWN_LENGTHS))
            problem = f"no answer and no length: expected one of {known}"
            more = ", a known log's usage, or a chat that ends with the assistant's message"
            raise DataError.at(at, problem + more, row=rows[0][0])
        _check_looks(found, rows, at)
        return found


def prompt_field_in(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where rows that may have no answer keep their prompt."""
    return _first(PROMPT_FIELDS, list(enumerate(rows, 1)), _is_asked) or "prompt"


def _named(name: str | None, rows: Sequence[NumberedRow], at: Path | str, what: str) -> str | None:
    if name:
        _must_have(name, rows, at, what)
    return name


def _must_have(name: str, rows: Sequence[NumberedRow], at: Path | str, what: str) -> None:
    if all(find(row, name) is ABSENT for _, row in rows):
        number, row = rows[0]
        has = ", ".join(sorted(map(str, row))) or "none"
        is_batch = "custom_id" in row and ("response" in row or "result" in row)
        hint = "; of a batch's output, give the input too: --requests FILE" if is_batch else ""
        if not is_batch:
            near = _nearest(name, list(map(str, row)))
            hint = f"; did you mean --{what}-field {near}?" if near else ""
            hint = hint or f"; --{what}-field names the right one, as a.b.c"
        raise DataError.at(at, f"has no field {name!r}; its fields: {has}{hint}", row=number)


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The field that was probably meant, whatever its case."""
    by_lower = {it.lower(): it for it in known}
    close = difflib.get_close_matches(name.lower(), by_lower, 1)
    return by_lower[close[0]] if close else None


def _first(
    names: Sequence[str], rows: Sequence[NumberedRow], is_good: Callable[[Any], bool]
) -> str | None:
    """
    The first name whose value is good in a row, else that in another case, as tables have it, else
    the first that a row has on its own.
    """
    keys = {str(key).lower(): str(key) for _, row in rows for key in row}
    others = [keys[name] for name in names if keys.get(name, name) != name]
    for name in (*names, *others):
        if _any(name, rows, is_good):
            return name
    return next((name for name in names if any(name in row for _, row in rows)), None)


def _any(name: str | None, rows: Sequence[NumberedRow], is_good: Callable[[Any], bool]) -> bool:
    return name is not None and any(is_good(Fields.value(row, name)) for _, row in rows)


def _is_asked(value: Any) -> bool:
    try:
        return bool(asked_in(value))
    except (NotUnderstood, WrongShape):
        return False


def _is_answered(value: Any) -> bool:
    try:
        answer = answer_in(value)
    except (NotUnderstood, WrongShape):
        return False
    return answer is not None and bool(answer.text)


def _is_length(value: Any) -> bool:
    return number_of(value) is not None


def _ends_answered(value: Any) -> bool:
    with suppress(NotUnderstood, WrongShape):
        asked = asked_in(value)
        return isinstance(asked, list) and answer_of_chat(asked)[1] is not None
    return False


def _check_looks(found: Fields, rows: Sequence[NumberedRow], at: Path | str) -> None:
    """
    Refuse a column that surely holds something else than it is taken for.

    Raises:
        DataError: lengths are times, costs or the prompt's; prompts are ids, dates or numbers.
    """
    if found.length and _NOT_LENGTHS.search(found.length):
        problem = f"field {found.length!r} is no length of an answer, by its name"
        raise DataError.at(at, f"{problem}; --length-field names the right one")
    values = [found.value(row, found.length) for _, row in rows] if found.length else []
    lengths = [it for it in map(number_of, values) if it is not None]
    if len(lengths) >= FEWEST_TO_JUDGE and min(lengths) > LARGEST_LENGTH:
        problem = (
            f"field {found.length!r} holds {lengths[0]:.0f} and the like, which are no lengths"
        )
        raise DataError.at(at, f"{problem}; --length-field names the right one")
    texts = [it for it in (found.value(row, found.prompt) for _, row in rows) if it]
    prompts = [it.strip() for it in texts if isinstance(it, str) and it.strip()]
    if len(prompts) >= FEWEST_TO_JUDGE and all(map(_ID.fullmatch, prompts)):
        problem = f"field {found.prompt!r} holds {prompts[0][:40]!r} and the like: ids, dates or"
        raise DataError.at(
            at, f"{problem} numbers, and no prompts; --prompt-field names the right one"
        )
    if len(prompts) >= 2 * FEWEST_TO_JUDGE and found.prompt.lower() not in PROMPT_FIELDS:
        labels = set(prompts)
        is_few = MOST_REPEATED * len(labels) <= len(prompts)
        if is_few and max(map(len, labels)) <= LONGEST_NAME:
            problem = f"field {found.prompt!r} holds {len(labels)} values in {len(prompts)} rows,"
            problem += f" as {prompts[0]!r}: labels, and no prompts"
            raise DataError.at(at, f"{problem}; --prompt-field names the right one")


def failure_in(row: Mapping[str, Any]) -> str | None:
    """Why a logged request got no answer, where the log says that it failed."""
    if isinstance(row.get("error"), Mapping | str) and row["error"]:
        return "failed request"
    if row.get("level") == "ERROR":
        return "failed request"
    for name in _STATUSES:
        status = find(row, name)
        code = number_of(status)
        if (code or 0) >= 400 or (isinstance(status, str) and status.lower() in _FAILED):
            return "failed request"
    return None


def unit_of(length_field: str, at: Path | str, rows: Sequence[NumberedRow]) -> str | None:
    """
    The unit of a length: what `pars prepare` noted beside its file, what the field's name says,
    what the answer's text shows; None for a bare `answer_length` of which nothing tells.

    A bare `length` is taken for tokens, which is what logs of language models hold.
    """
    name = length_field.rsplit(".", 1)[-1]
    if name == "answer_length" and isinstance(at, Path):
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads((at.parent / "prepare.json").read_text(encoding="utf-8"))
            if at.name in note.get("files", [at.name]):
                return str(note["length_unit"])
    last = re.split(r"[_ ]", name)[-1].lower()
    if last in _UNITS:
        return _UNITS[last]
    if name in ("output", "input"):  # Langfuse's usage may count other things
        unit = find(rows[0][1], f"{length_field.rpartition('.')[0]}.unit")
        return "characters" if isinstance(unit, str) and unit.upper() == "CHARACTERS" else "tokens"
    if name not in (*_BARE, "length"):
        return "tokens"
    told = {_unit_shown(row, find(row, length_field)) for _, row in rows} - {""}
    if len(told) == 1:
        return told.pop()
    return "tokens" if told or name == "length" else None


def _unit_shown(row: Mapping[str, Any], length: Any) -> str:
    """What a row's length counts of its answer's text, if it counts that; "" without a text."""
    text = next((row[it] for it in ANSWER_FIELDS if isinstance(row.get(it), str) and row[it]), "")
    number = number_of(length)
    if not text or number is None:
        return ""
    counts = {"words": len(text.split()), "characters": len(text)}
    if counts["words"] == counts["characters"]:
        return ""
    return next((unit for unit, count in counts.items() if count == number), "tokens")
