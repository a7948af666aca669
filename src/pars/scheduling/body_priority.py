"""
Sets the top-level `priority` of a JSON body and leaves every other byte as it came.

For engines that take a priority from the body only. Re-encoding would be simpler, but it changes
what the client wrote: floats, escapes, repeated keys, the order of fields.
"""

import json
import re

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


def _field_values(text: str, name: str) -> tuple[list[tuple[int, int]], bool]:
    """Spans of the values of top-level fields called `name`, and whether there is no field."""
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        raise ValueError("the body is not a JSON object")
    at = _after_space(text, at + 1)
    if text[at : at + 1] == "}":
        return [], True
    spans = []
    while True:
        key, at = _DECODER.raw_decode(text, at)
        start = _after_space(text, _after_space(text, at) + 1)  # past the colon
        _, at = _DECODER.raw_decode(text, start)
        if key == name:
            spans.append((start, at))
        at = _after_space(text, at)
        if text[at : at + 1] != ",":
            return spans, False
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
    """

    def __init__(self, priority: int) -> None:
        self._field = b',"priority":%d' % priority
        self._held = b""
        self._is_done = False
        self.num_added_bytes = len(self._field)

    def feed(self, piece: bytes, *, is_last: bool) -> bytes:
        """What to send on now; a closing brace is held back until something follows it."""
        data = self._held + piece
        self._held = b""
        if self._is_done:
            return data
        end = data.rfind(b"}")
        may_be_closing = end >= 0 and not data[end + 1 :].strip(b" \t\r\n")
        if is_last or (may_be_closing and len(data) - end > MAX_HELD_BYTES):
            self._is_done = True
            if not may_be_closing:
                return data + b" " * self.num_added_bytes
            return data[:end] + self._field + data[end:]
        if may_be_closing:
            self._held = data[end:]
            return data[:end]
        return data
