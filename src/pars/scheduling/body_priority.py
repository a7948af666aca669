"""
Sets the top-level `priority` of a JSON body, or takes it out; every other byte stays as it came.

For engines that take a priority from the body only. Re-encoding would be simpler, but it changes
what the client wrote: floats, escapes, repeated keys, the order of fields. All of it takes time
linear in the body's size: a small body is gone through field by field; in a large one the client's
own field is searched for by its name, and what was found is checked by a parser that skips values.
"""

import json
import re
from collections.abc import Iterator

import msgspec

MOST_WALKED_BYTES = 1 << 13  # field by field: 4 ms at the worst, on the event loop
MAX_HELD_BYTES = 1 << 20  # of white space after the last brace of a body in pieces
MOST_MENTIONS = 1000  # of the name in a large body: more cost milliseconds to go through
MOST_TRIED = 4  # places in a large body that look like the client's own field: the last ones
_NAME = b'"priority"'
_SPACES = b" \t\r\n"
_SPACE = re.compile(r"[ \t\n\r]*")
_SPACE_OF_BYTES = re.compile(rb"[ \t\n\r]*")
_DECODER = json.JSONDecoder(parse_int=str)  # an int has at most 4300 digits, in Python


class _Own(msgspec.Struct):
    priority: msgspec.Raw = msgspec.Raw()


_OWN = msgspec.json.Decoder(_Own)


def with_priority(body: bytes, priority: int | float) -> bytes:
    """
    `body` with `priority` as its top-level field, whatever the client had put there.

    Each of the client's own is overwritten where it stands. Where that cannot be told (in a large
    body that has several, or spells the name with escapes) ours is added at the end: the last of
    repeated keys counts in the parsers of vLLM and SGLang.

    Raises:
        ValueError: the body cannot be a JSON object.
    """
    body, value = as_utf8(body), str(priority)
    if len(body) <= MOST_WALKED_BYTES:
        text = body.decode("utf-8", "surrogatepass")
        members = read_members(text)
        spans = [(start, end) for name, _, start, end in members or () if name == "priority"]
        return overwritten(text, spans, value) if spans else appended(body, value)
    return _overwritten_in_large(body, value.encode()) or appended(body, value)


def without_priority(body: bytes) -> bytes:
    """
    `body` without any top-level field `priority`, and with every other byte as it was.

    Where it cannot be taken out (see `with_priority`), it is 0, which is what absent means.

    Raises:
        ValueError: the body is not a JSON object.
    """
    if not may_have_own(body):
        return body
    body = as_utf8(body)
    if len(body) <= MOST_WALKED_BYTES:
        text = body.decode("utf-8", "surrogatepass")
        members = read_members(text)
        if members is not None:
            return _taken_out(text, members) if members else body
    elif _own_value(body) == b"":
        return body
    return _overwritten_in_large(body, b"0") or appended(body, "0")


def may_have_own(body: bytes) -> bool:
    """Whether the name stands there in any spelling or encoding."""
    has_escapes = b"\\" in body and b"\\u" in body  # one byte is found ten times as fast as two
    return has_escapes or b"priority" in body or b"\0" in body[:4]


def as_utf8(body: bytes) -> bytes:
    """The body in UTF-8 without a byte order mark: engines read UTF-16 and UTF-32 too."""
    encoding = json.detect_encoding(body)
    if encoding == "utf-8":
        return body
    return body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")


def appended(body: bytes, value: str, name: str = "priority") -> bytes:
    """The object with one more field at its end."""
    begin, end = _after_space_of_bytes(body, 0), _before_space(body, len(body)) - 1
    if end <= begin or body[begin : begin + 1] != b"{" or body[end : end + 1] != b"}":
        raise ValueError("the body is not a JSON object")
    is_empty = _before_space(body, end) == begin + 1
    field = b'%s"%s":%s' % (b"" if is_empty else b",", name.encode(), value.encode())
    return b"".join((body[:end], field, body[end:]))


# A small body, gone through field by field


Member = tuple[str, int, int, int]  # name, where it starts, where its value starts and ends


def read_members(text: str) -> list[Member] | None:
    """The top-level fields; None where Python's parser cannot read them (but others might)."""
    try:
        return list(_members(text))
    except RecursionError:
        return None


def _members(text: str) -> Iterator[Member]:
    """
    Each top-level field.

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
        start = _after_space(text, _past(":", text, at))
        _, at = _DECODER.raw_decode(text, start)
        yield key, begin, start, at
        at = _after_space(text, at)
        if text[at : at + 1] != "}":
            at = _after_space(text, _past(",", text, at))


def _past(mark: str, text: str, at: int) -> int:
    at = _after_space(text, at)
    if text[at : at + 1] != mark:
        raise ValueError("the body is not a JSON object")
    return at + 1


def overwritten(text: str, spans: list[tuple[int, int]], value: str) -> bytes:
    pieces, at = [], 0
    for start, end in spans:
        pieces += [text[at:start], value]
        at = end
    return "".join([*pieces, text[at:]]).encode("utf-8", "surrogatepass")


def _taken_out(text: str, members: list[Member]) -> bytes:
    # A field that stays takes along what stands between it and the next one.
    next_starts = [start for _, start, _, _ in members[1:]] + [members[-1][3]]
    kept = [index for index, member in enumerate(members) if member[0] != "priority"]
    pieces = [text[: members[0][1]]]
    pieces += [text[members[index][1] : next_starts[index]] for index in kept[:-1]]
    pieces += [text[members[index][1] : members[index][3]] for index in kept[-1:]]
    return "".join([*pieces, text[members[-1][3] :]]).encode("utf-8", "surrogatepass")


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


# A large body, searched


def _overwritten_in_large(body: bytes, value: bytes) -> bytes | None:
    """The body with `value` as its own priority; None where its place cannot be told."""
    if body.count(_NAME) > MOST_MENTIONS:
        return None
    own = _own_value(body)
    if not own:
        return None
    for start in _mentions(body):
        if body.startswith(own, start):
            changed = body[:start] + value + body[start + len(own) :]
            if _own_value(changed) == value:
                return changed
    return None


def _own_value(body: bytes) -> bytes | None:
    """The bytes of the top-level `priority`, the last one; empty: there is none; None: unknown."""
    if not may_have_own(body):
        return b""
    try:
        return bytes(_OWN.decode(body).priority)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _mentions(body: bytes) -> Iterator[int]:
    """Where values of fields called `priority`, at any depth, begin: the last few, last first."""
    at = len(body)
    for _ in range(MOST_TRIED):
        at = body.rfind(_NAME, 0, at)
        if at < 0:
            return
        colon = _after_space_of_bytes(body, at + len(_NAME))
        if body[colon : colon + 1] == b":":
            yield _after_space_of_bytes(body, colon + 1)


def _before_space(body: bytes, end: int) -> int:
    """Where the white space that ends at `end` begins, found without a copy of the body."""
    step = 64
    while end > 0:
        last = body[max(0, end - step) : end]
        num_spaces = len(last) - len(last.rstrip(_SPACES))
        end -= num_spaces
        if num_spaces < len(last):
            break
        step *= 2
    return end


def _after_space_of_bytes(body: bytes, at: int) -> int:
    match = _SPACE_OF_BYTES.match(body, at)
    return match.end() if match else at


def may_append(beginning: bytes) -> bool:
    """Whether a body that begins so is one that `PriorityAppender` understands."""
    return json.detect_encoding(beginning[:4]).startswith("utf-8")


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

    def __init__(self, priority: int | float, *, only_over_own: bool = False) -> None:
        self._may_be_own = not only_over_own
        self._tail = b""  # of what has passed: a name may be cut in two
        self._field = b',"priority":%s' % str(priority).encode()
        self._held = bytearray()
        self._is_done = False
        self.num_added_bytes = len(self._field)

    def feed(self, piece: bytes, *, is_last: bool) -> bytes:
        """
        What to send on now; a closing brace is held back until something follows it.

        Raises:
            ValueError: more white space follows it than can be held; nothing may be sent on then,
                for what follows might be a field of the client's own behind ours.
        """
        self._look(piece)
        if (
            self._held
            and not is_last
            and len(self._held) < MAX_HELD_BYTES
            and not piece.strip(_SPACES)
        ):
            self._held += piece  # in place: pieces of one byte each must not cost a copy each
            return b""
        data = bytes(self._held) + piece
        self._held = bytearray()
        if self._is_done:
            return data
        end = data.rfind(b"}")
        may_be_closing = end >= 0 and not data[end + 1 :].strip(b" \t\r\n")
        if may_be_closing and not is_last and len(data) - end > MAX_HELD_BYTES:
            raise ValueError(f"more than {MAX_HELD_BYTES} bytes of white space behind a brace")
        if is_last:
            self._is_done = True
            if not (may_be_closing and self._may_be_own):
                return data + b" " * self.num_added_bytes
            return data[:end] + self._field + data[end:]
        if may_be_closing:
            self._held = bytearray(data[end:])
            return data[:end]
        return data

    def _look(self, piece: bytes) -> None:
        if not self._may_be_own:
            seen = self._tail + piece
            self._may_be_own = any(name in seen for name in (b"priority", b"\\u", b"\0"))
            self._tail = seen[-8:]
