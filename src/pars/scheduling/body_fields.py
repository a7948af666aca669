"""
Sets a field inside an object of a JSON body, such as `extra_body.priority`; the rest stays.

The outer object is written anew, all that stands beside it stays byte for byte. Fields of the body
itself are `body_priority`'s.
"""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from pars.request.fields import SMALL_BYTES
from pars.scheduling.body_priority import appended, as_utf8, overwritten, read_members


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
    written = json.dumps(_set(_last(body, outer), path[1:], value))
    if len(body) <= SMALL_BYTES:
        text = body.decode("utf-8", "surrogatepass")
        members = read_members(text)
        spans = [(start, end) for name, _, start, end in members or () if name == outer]
        if spans:
            return overwritten(text, spans, written)
    return appended(body, written, outer)


def _last(body: bytes, name: str) -> Any:
    """What stands under a top-level name, the last time; None: nothing that can be read."""
    kind = msgspec.defstruct("_Own", [("own", msgspec.Raw, msgspec.Raw())], rename={"own": name})
    try:
        own: Any = msgspec.json.decode(body, type=kind)
        raw = bytes(own.own)
        return json.loads(raw) if raw else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _set(there: Any, path: Sequence[str], value: int | float) -> Any:
    if not path:
        return value
    inner = dict(there) if isinstance(there, dict) else {}
    inner[path[0]] = _set(inner.get(path[0]), path[1:], value)
    return inner
