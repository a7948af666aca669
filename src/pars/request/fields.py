"""
The fields of a JSON body that pars looks at, in time and memory that are linear in its size.

A client chooses the body, and other clients wait while it is read. So nothing is built of what
nobody looks at (msgspec skips it at about 400 MB/s), and a value made of more lists and objects
than a person's request has is not built either: it is `Unread`, and only its size counts.

What msgspec refuses and Python's `json`, which engines use, takes (NaN, lone surrogates, UTF-16,
a byte order mark) is read by `json`, within the same bounds.
"""

import json
from dataclasses import dataclass
from typing import Any

import msgspec

from pars.errors import ParsError, one_line

# Fields of any path, by whoever reads them. A field that is not here is skipped in large bodies.
FIELDS = (
    *("model", "request_id", "user", "safety_identifier", "metadata", "stream"),
    *("prompt", "suffix", "messages", "input", "instructions", "system", "text", "query", "items"),
    *("token_ids", "input_ids", "sampling_params", "state", "questions", "documents"),
    *("instances", "parameters"),
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "n", "best_of"),
    *("ignore_eos", "stop", "stop_sequences", "temperature", "top_p", "response_format"),
    *("guided_json", "structured_outputs", "json_schema", "tools", "tool_choice", "functions"),
    *("reasoning", "reasoning_effort", "thinking", "chat_template_kwargs", "prompt_cache_key"),
)
SMALL_BYTES = 1 << 14  # built as a whole: 5 ms at the worst, lists in lists from end to end
MOST_CONTAINERS = 5_000  # lists and objects of one large value that are built
MOST_ITEMS = 50_000  # commas of one: numbers and strings cost less than lists do

_RAW = msgspec.json.Decoder(
    msgspec.defstruct("Fields", [(name, msgspec.Raw, msgspec.Raw()) for name in FIELDS])
)


@dataclass(frozen=True, slots=True)
class Unread:
    """
    A value that was not built: how large it is, in bytes of JSON, and what it may be made of.

    Attributes:
        num_commas, num_lists: Bounds from above on its items and on its lists.
        has_text: Whether there is a string in it.
    """

    num_bytes: int
    num_commas: int
    num_lists: int
    has_text: bool


def read_fields(content: bytes) -> dict[str, Any] | None:
    """
    The object in `content`: whole if it is small, else its FIELDS; None where it cannot be read.

    Never raises. Of repeated keys the last one counts, as in the engines' parsers.
    """
    if len(content) <= SMALL_BYTES:
        return _whole(content)
    try:
        raw = _RAW.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None if is_too_much(content) else _by_json(content)
    found = {}
    for name in FIELDS:
        value = bytes(getattr(raw, name))
        if value:
            found[name] = _value(value)
    return found


def _whole(content: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _by_json(content)
    return value if isinstance(value, dict) else None


def _by_json(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _value(raw: bytes) -> Any:
    """One field's value, or what can be said of it without building it."""
    is_large = len(raw) > SMALL_BYTES
    if is_large and raw[:1] in b"[{":
        told = _told_of(raw)
        if not told.has_text or is_too_much(raw):
            return told
    elif is_large and raw[:1] != b'"':
        return None  # a number that no engine takes
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            return _told_of(raw)


def _told_of(raw: bytes) -> Unread:
    return Unread(len(raw), raw.count(b","), raw.count(b"["), b'"' in raw)


def is_too_much(raw: bytes, most_containers: int = MOST_CONTAINERS) -> bool:
    """Whether it takes long to build what is in it, at the worst."""
    return raw.count(b",") > MOST_ITEMS or raw.count(b"[") + raw.count(b"{") > most_containers


def fields_of(body: dict[str, Any] | str | bytes) -> dict[str, Any]:
    """
    The fields of a body, parsed if need be.

    Raises:
        ParsError: it is no JSON object.
    """
    if isinstance(body, dict):
        return body
    try:
        values = json.loads(body)
    except (ValueError, TypeError, RecursionError) as error:
        raise ParsError(f"body: want a JSON object: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise ParsError(f"body: want a JSON object, not {type(values).__name__}")
    return values
