"""
Sets a field inside an object of a JSON body, such as `extra_body.priority`; the rest stays.

The outer object is written anew, all that stands beside it stays byte for byte. Fields of the body
itself are `body_priority`'s.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from pars.request.fields import SMALL_BYTES
from pars.scheduling.body_priority import (
    appended,
    as_utf8,
    may_have_own,
    overwritten,
    read_members,
    with_priority,
    without_priority,
)


class _Unreadable(Exception):
    """What stands in a body cannot be told here; its engine may read it all the same."""


def with_field(body: bytes, path: Sequence[str], value: int | float) -> bytes:
    """
    `body` with `value` at `path` (two names or more), whatever the client had put there.

    What stands on the way and is no object gives way to one. In a large body the outer object is
    added once more at the end, where the last of repeated names counts.

    Raises:
        ValueError: the body is no JSON object.
    """
    body = as_utf8(body)
    outer = path[0]
    if path[1:] == ("priority",):
        absent = json.dumps({"priority": value}).encode()

        def set_in(inner: bytes) -> bytes:
            return with_priority(inner, value) if inner[:1] == b"{" else absent

        with suppress(_Unreadable):
            if changed := _with_inner(body, outer, set_in):
                return changed
        return appended(body, absent.decode(), outer)
    written = json.dumps(_set(_last(body, outer), path[1:], value))
    if len(body) <= SMALL_BYTES:
        text = body.decode("utf-8", "surrogatepass")
        members = read_members(text)
        spans = [(start, end) for name, _, start, end in members or () if name == outer]
        if spans:
            return overwritten(text, spans, written)
    return appended(body, written, outer)


def without_inner(body: bytes, outer: str) -> bytes:
    """
    `body` without a field `priority` in the object `outer`, and with every other byte as it was.

    In a large body that object is added once more at the end, without it; and an empty one where
    it cannot be read.

    Raises:
        ValueError: the body is no JSON object.
    """
    if not may_have_own(body):
        return body
    body = as_utf8(body)

    def free(inner: bytes) -> bytes:
        return without_priority(inner) if inner[:1] == b"{" else inner

    try:
        return _with_inner(body, outer, free) or body
    except _Unreadable:
        return appended(body, "{}", outer)


def _with_inner(body: bytes, outer: str, change: Callable[[bytes], bytes]) -> bytes | None:
    """
    The body with what stands under the name `outer` changed; None: nothing does.

    Raises:
        _Unreadable: that cannot be told.
    """
    if len(body) > SMALL_BYTES:
        raw = _raw(body, outer)
        if not raw:
            return None
        changed = change(raw)
        return body if changed == raw else appended(body, changed.decode(), outer)
    text = body.decode("utf-8", "surrogatepass")
    members = read_members(text)
    if members is None:
        raise _Unreadable
    spans = [(start, end) for name, _, start, end in members if name == outer]
    pieces, at = [], 0
    for start, end in spans:
        inner = text[start:end].encode("utf-8", "surrogatepass")
        pieces += [text[at:start], change(inner).decode("utf-8", "surrogatepass")]
        at = end
    return "".join([*pieces, text[at:]]).encode("utf-8", "surrogatepass") if spans else None


def _raw(body: bytes, name: str) -> bytes:
    """
    What stands under a top-level name, the last time; empty: nothing does.

    Raises:
        _Unreadable: the body cannot be read.
    """
    kind = msgspec.defstruct("_Own", [("own", msgspec.Raw, msgspec.Raw())], rename={"own": name})
    try:
        own: Any = msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Unreadable from error
    return bytes(own.own)


def _last(body: bytes, name: str) -> Any:
    """What stands under a top-level name, the last time; None: nothing that can be read."""
    with suppress(_Unreadable, ValueError, RecursionError):
        return json.loads(_raw(body, name))
    return None


def _set(there: Any, path: Sequence[str], value: int | float) -> Any:
    if not path:
        return value
    inner = dict(there) if isinstance(there, dict) else {}
    inner[path[0]] = _set(inner.get(path[0]), path[1:], value)
    return inner
