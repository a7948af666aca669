"""
What came before a message in its conversation, as a note in front of its text.

    →2 1024 768
    Now the same in German.

Two answers came before; the last was some 1,024 characters long and the one before it 768. Who has
had long answers tends to get another: on ShareGPT the last answer's length alone orders the next
one nearly as well as the words of the message do (docs/results.md). A chat request brings its
conversation along, so a server knows this as well as a training set does.

A note is text so that each file, wire format and ranker that takes a prompt takes it too. A ranker
that was trained without notes is shown none (`pars.ranking.ranker`).
"""

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple

MARK = "→"
MOST = 1 << 20  # answers, or characters of one: keeps a note short, and its numbers in range
FEWEST_NOTED, LEAST_NOTED_SHARE = 100, 0.01  # of a training's prompts, to learn what notes say
_NOTE = re.compile(MARK + r"(\d{1,7}) (\d{1,7}) (\d{1,7})\n")


class Before(NamedTuple):
    """The answers before a message: how many, and the characters of the last two (0: none)."""

    num_answers: int = 0
    last_chars: int = 0
    second_last_chars: int = 0


NOTHING = Before()


def prompt_of(messages: Any) -> str | None:
    """
    What a ranker reads of a chat's messages: the last user message with text, behind its note.

    Total: what is no message is passed over; None where no user message has text. The answers are
    all messages of the assistant, also those after the last user message, which called tools.
    """
    asked, answers = None, []
    for message in _dicts_of(messages):
        role = message.get("role")
        if role == "user" and (text := text_of(message.get("content"))).strip():
            asked = text
        elif role == "assistant" or message.get("type") == "function_call":
            answers.append(message)
    if asked is None:
        return None
    # Of a long conversation, whose calls may be large, only what a note tells is measured.
    return _behind_note(asked, len(answers), list(map(_num_chars_of_answer, answers[-2:])))


def without_answer(messages: Sequence[Any]) -> list[Any]:
    """The messages of a logged chat up to its last answer: what was asked when that was given."""
    asked = list(messages)
    while asked and isinstance(asked[-1], dict) and asked[-1].get("role") == "assistant":
        asked.pop()
    return asked


def with_note(message: str, answer_chars: Sequence[int] = ()) -> str:
    """
    The message behind a note of the answers before it, oldest first; without any, itself.

    A message that begins as notes do is moved by a space, so that its writer cannot forge one.
    """
    return _behind_note(message, len(answer_chars), answer_chars[-2:])


def with_message(prompt: str, message: str) -> str:
    """The prompt's note, if it has one, in front of another message."""
    note = prompt[: len(prompt) - len(message_of(prompt))]
    return note + _guarded(message)


def split_note(prompt: str) -> tuple[Before, str]:
    """What a note says, and the message behind it."""
    note = _NOTE.match(prompt) if prompt.startswith(MARK) else None
    if note is None:
        return NOTHING, prompt
    num_answers, last, second_last = map(int, note.groups())
    return Before(num_answers, last, second_last), prompt[note.end() :]


def message_of(prompt: str) -> str:
    """The message without its note."""
    return split_note(prompt)[1]


def checksum_of(prompt: str) -> str:
    """Stands for a prompt where its text is not to be kept: 16 hex digits of its SHA-256."""
    return sha256(prompt.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def as_read(prompts: Sequence[str], reads_notes: bool) -> list[str]:
    """The prompts as a ranker is shown them: without their notes, unless it was trained on some."""
    return list(prompts) if reads_notes else list(map(message_of, prompts))


def teaches_notes(prompts: Sequence[str]) -> bool:
    """Whether enough of the training prompts have a note for a ranker to learn what they say."""
    num_noted = sum(split_note(prompt)[0] is not NOTHING for prompt in prompts)
    return num_noted >= max(FEWEST_NOTED, LEAST_NOTED_SHARE * len(prompts))


def text_of(content: Any) -> str:
    """The text of a message: a string, or the text of its parts (images and calls have none)."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def _num_chars_of_answer(message: dict[str, Any]) -> int:
    """Of an assistant message: its text, and what it hands to the tools that it calls."""
    content = message.get("content")
    calls = [call.get("function") for call in _dicts_of(message.get("tool_calls"))]
    handed = [call.get("arguments") for call in _dicts_of(calls)]  # OpenAI's chat
    handed += [part.get("input") for part in _dicts_of(content)]  # Anthropic's messages
    if message.get("type") == "function_call":  # OpenAI's responses
        handed.append(message.get("arguments"))
    texts = (json.dumps(it) if isinstance(it, dict) else it for it in handed)
    return len(text_of(content)) + sum(len(text) for text in texts if isinstance(text, str))


def _behind_note(message: str, num_answers: int, last_chars: Sequence[int]) -> str:
    """The message behind a note; `last_chars` are of the last answers, two if there are as many."""
    message = _guarded(message)
    if not num_answers:
        return message
    second_last, last = map(_rounded, [0, *last_chars][-2:])
    return f"{MARK}{min(num_answers, MOST)} {last} {second_last}\n{message}"


def _dicts_of(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _guarded(message: str) -> str:
    return f" {message}" if message.startswith(MARK) else message


def _rounded(num_chars: int) -> int:
    """Down to 1 or 1.5 times a power of two: few numbers, which an encoder can learn as words."""
    if num_chars < 2:
        return max(num_chars, 0)
    octave = 1 << (min(num_chars, MOST).bit_length() - 1)
    return octave + octave // 2 if num_chars >= octave + octave // 2 else octave
