"""
The prompts that `pars collect` asks, in whatever shape a file holds them.

    prompts = read_prompts(Path("prompts.jsonl"), "chat")
    prompts[0].text, prompts[0].asked, prompts[0].checksum

Rows as everywhere in the learn lane (JSON array, JSON lines, Parquet, a .gz of these) with the
prompt in a field, as text or as chat messages; or a .txt with a prompt on each line.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pars.errors import DataError
from pars.learn.data.chats import NotUnderstood, WrongShape, asked_again, asked_in
from pars.learn.data.fields import field_of, kind_of
from pars.learn.data.layouts import prompt_field_in
from pars.learn.data.rows import read_rows
from pars.request.conversation import message_of, prompt_of, without_answer

APIS = ("chat", "completions")


@dataclass(frozen=True, slots=True)
class Prompt:
    """
    One prompt of the file.

    Attributes:
        index: Its place among the file's rows, from 0.
        text: What a ranker reads of it: all of it, or what `request.conversation` makes of a chat.
        asked: What the endpoint is asked: the text, or the messages.
        checksum: Of `asked`: 16 hexadecimal digits of its SHA-256.
    """

    index: int
    text: str
    asked: str | list[dict[str, Any]]
    checksum: str


def read_prompts(path: Path, api: str, prompt_field: str | None = None) -> list[Prompt]:
    """
    All prompts of a file, as `api` asks them.

    Raises:
        DataError: a row has no prompt, an empty one, or a chat where the API takes text.
    """
    prompts = []
    for index, value in enumerate(_values(path, prompt_field)):
        asked, text = _asked(value, path, index + 1)
        if api == "completions" and not isinstance(asked, str):
            problem = "is a chat, and --api completions asks text: use --api chat"
            raise DataError.at(path, problem, row=index + 1)
        if api == "chat" and isinstance(asked, str):
            asked = [{"role": "user", "content": asked}]
        prompts.append(Prompt(index, text, asked, _checksum(asked)))
    if not prompts:
        raise DataError.at(path, "has no prompts")
    return prompts


def _values(path: Path, prompt_field: str | None) -> Iterator[Any]:
    if path.suffix == ".txt":
        yield from filter(str.strip, _lines(path))
        return
    name = prompt_field
    for number, row in enumerate(read_rows(path), 1):
        name = name or prompt_field_in([row])
        value = field_of(row, name, path, number)
        try:
            asked = asked_in(value)
        except (NotUnderstood, WrongShape) as error:
            told = error if isinstance(error, NotUnderstood) else f"must be {error}"
            raise DataError.at(path, f"field {name!r}: {told}", row=number) from None
        yield asked if asked is not None else value


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError.at(path, "is not UTF-8 text") from error
    except OSError as error:
        raise DataError.at(path, f"cannot be read: {error.strerror or error}") from error


def _asked(value: Any, path: Path, number: int) -> tuple[str | list[dict[str, Any]], str]:
    """What is asked, and its text; an answer that ends a logged chat is left out of it."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError.at(path, "its prompt is empty", row=number)
        value = message_of(value)  # the conversation that a note tells of is not asked
        return value, value
    if not isinstance(value, list):
        problem = f"its prompt must be text or chat messages, not {kind_of(value)}"
        raise DataError.at(path, problem, row=number)
    messages = list(map(asked_again, value))
    messages = without_answer(messages)
    prompt = prompt_of(messages)
    if prompt is None:
        raise DataError.at(path, "its messages hold no user message with text", row=number)
    return messages, prompt


def _checksum(asked: Any) -> str:
    whole = json.dumps(asked, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]
