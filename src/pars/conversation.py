"""
What came before a message in its conversation, as a note in front of its text.

    →2 1024 768
    Now the same in German.

Two answers came before; the last was some 1,024 characters long and the one before it 768. Who has
had long answers tends to get another: on ShareGPT the last answer's length alone orders the next
one about as well as the words of the message do (docs/results.md). A request brings its whole
conversation along, so a server knows this as well as a training set does.

A note is text so that each file, wire format and ranker that takes a prompt takes it too. A ranker
that was trained without notes is shown none (`pars.ranker`).
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

MARK = "→"
MOST = 1 << 20  # answers, or characters of one: keeps a note short, and its numbers in range
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
    asked, answer_chars = None, []
    for message in _dicts_of(messages):
        role = message.get("role")
        if role == "user" and (text := text_of(message.get("content"))).strip():
            asked = text
        elif role == "assistant" or message.get("type") == "function_call":
            answer_chars.append(_num_chars_of_answer(message))
    return None if asked is None else with_note(asked, answer_chars)


def without_answer(messages: Sequence[Any]) -> list[Any]:
    """The messages of a logged chat up to its last answer: what was asked when that was given."""
    asked = list(messages)
    while asked and isinstance(asked[-1], dict) and asked[-1].get("role") == "assistant":
        asked.pop()
    return asked


def with_note(message: str, answer_chars: Sequence[int] = ()) -> str:
    """
    The message behind a note of the answers before it, oldest first; without any, itself.

    A message that looks like a note is moved by a space, so that no client can forge one.
    """
    if not answer_chars:
        return f" {message}" if message.startswith(MARK) else message
    last, second_last = answer_chars[-1], answer_chars[-2] if len(answer_chars) > 1 else 0
    num_answers = min(len(answer_chars), MOST)
    return f"{MARK}{num_answers} {_rounded(last)} {_rounded(second_last)}\n{message}"


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


def has_note(prompt: str) -> bool:
    """Whether a note stands in front of the message."""
    return split_note(prompt)[0] is not NOTHING


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
    parts = [*_dicts_of(message.get("tool_calls")), *_dicts_of(content)]
    return len(text_of(content)) + sum(map(_num_chars_of_call, [message, *parts]))


def _num_chars_of_call(call: dict[str, Any]) -> int:
    """Of the arguments: a string (OpenAI's two interfaces), or an object (Anthropic's)."""
    function = call.get("function")
    told = (function if isinstance(function, dict) else call).get("arguments", call.get("input"))
    values = told.values() if isinstance(told, dict) else (told,)
    return sum(len(value) for value in values if isinstance(value, str))


def _dicts_of(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _rounded(num_chars: int) -> int:
    """Down to 1 or 1.5 times a power of two: few numbers, which an encoder can learn as words."""
    if num_chars < 2:
        return max(num_chars, 0)
    octave = 1 << (min(num_chars, MOST).bit_length() - 1)
    return octave + octave // 2 if num_chars >= octave + octave // 2 else octave
