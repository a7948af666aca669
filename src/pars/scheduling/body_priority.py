"""
Sets the top-level `priority` of a JSON body, or takes it out; every other byte stays as it came.

For engines that take a priority from the body only. Re-encoding would be simpler, but it changes
what the client wrote: floats, escapes, repeated keys, the order of fields.
"""

import json
import re
from collections.abc import Iterator

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
MAX_HELD_BYTES = 1 << 20  # of white space after the last brace of a body in pieces


def with_priority(body: bytes, priority: int) -> bytes:
    """
    `body` with `priority` as its top-level field, whatever the client had put there.

    Raises:
        ValueError: the body is not a JSON object.
    """
    encoding = json.detect_encoding(body)
    text = body.decode(encoding, "surrogatepass")
    spans, is_empty = _field_values(text, "priority")
    value = str(priority)
    if not spans:
        end = text.rindex("}")
        text = f'{text[:end]}{"" if is_empty else ","}"priority":{value}{text[end:]}'
    for start, end in reversed(spans):
        text = text[:start] + value + text[end:]
    return text.encode("utf-8", "surrogatepass")


def without_priority(body: bytes) -> bytes:
    """
    `body` without any top-level field `priority`, and with every other byte as it was.

    Raises:
        ValueError: the body is not a JSON object.
    """
    if b"\0" not in body[:4] and b"priority" not in body and b"\\u" not in body:
        return body  # in no spelling
    encoding = json.detect_encoding(body)
    text = body.decode(encoding, "surrogatepass")
    members = list(_members(text))
    if all(name != "priority" for name, _, _, _ in members):
        return body
    # A field that stays takes along what stands between it and the next one.
    next_starts = [start for _, start, _, _ in members[1:]] + [members[-1][3]]
    kept = [index for index, member in enumerate(members) if member[0] != "priority"]
    pieces = [text[: members[0][1]]]
    pieces += [text[members[index][1] : next_starts[index]] for index in kept[:-1]]
    pieces += [text[members[index][1] : members[index][3]] for index in kept[-1:]]
    return "".join([*pieces, text[members[-1][3] :]]).encode("utf-8", "surrogatepass")


def _field_values(text: str, name: str) -> tuple[list[tuple[int, int]], bool]:
    """Spans of the values of top-level fields called `name`, and whether there is no field."""
    members = list(_members(text))
    return [(start, end) for key, _, start, end in members if key == name], not members


def _members(text: str) -> Iterator[tuple[str, int, int, int]]:
    """
    Each top-level field: name, where it starts, where its value starts and ends.

    Raises:
        ValueError: the text is not a JSON object.
    """
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        raise ValueError("the body is not a JSON object")
    at = _after_space(text, at + 1)
    while text[at : at + 1] != "}":
        begin = at
        key, at = _DECODER.raw_decode(text, at)
        start = _after_space(text, _after_space(text, at) + 1)  # past the colon
        _, at = _DECODER.raw_decode(text, start)
        yield key, begin, start, at
        at = _after_space(text, at)
        if text[at : at + 1] != ",":
            return
        at = _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


class PriorityAppender:
    """
    Appends `priority` to a JSON object that is too large to hold, as its pieces pass by.

    The last of repeated keys counts in the parsers of vLLM and SGLang, so the appended field wins
    over the client's own. The body grows by `num_added_bytes` always: where there is no closing
    brace to insert before (the engine will refuse such a body), white space is added.

    Args:
        only_over_own: Add white space too where the client has put no priority there, as far as
            its bytes show: to an engine that takes none, a field that it does not know is an error.
    """

    def __init__(self, priority: int, *, only_over_own: bool = False) -> None:
        self._may_be_own = not only_over_own
        self._tail = b""  # of what has passed: a name may be cut in two
        self._field = b',"priority":%d' % priority
        self._held = b""
        self._is_done = False
        self.num_added_bytes = len(self._field)

    def feed(self, piece: bytes, *, is_last: bool) -> bytes:
        """What to send on now; a closing brace is held back until something follows it."""
        self._look(piece)
        data = self._held + piece
        self._held = b""
        if self._is_done:
            return data
        end = data.rfind(b"}")
        may_be_closing = end >= 0 and not data[end + 1 :].strip(b" \t\r\n")
        if is_last or (may_be_closing and len(data) - end > MAX_HELD_BYTES):
            self._is_done = True
            if not (may_be_closing and self._may_be_own):
                return data + b" " * self.num_added_bytes
            return data[:end] + self._field + data[end:]
        if may_be_closing:
            self._held = data[end:]
            return data[:end]
        return data

    def _look(self, piece: bytes) -> None:
        if not self._may_be_own:
            seen = self._tail + piece
            self._may_be_own = any(name in seen for name in (b"priority", b"\\u", b"\0"))
            self._tail = seen[-8:]
