"""`priority` is set in a JSON body, and no other byte of it changes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pars.request.fields import SMALL_BYTES
from pars.scheduling.body_priority import PriorityAppender, with_priority, without_priority


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a": 1.50}', b'{"a": 1.50,"priority":7}'),
        (b"{}", b'{"priority":7}'),
        (b" { } \n", b' { "priority":7} \n'),
        (b'{"priority" : -9, "a": 1}', b'{"priority" : 7, "a": 1}'),
        (
            b'{"priority": [1, {"priority": 2}], "priority": null}',
            b'{"priority": 7, "priority": 7}',
        ),
        (b'{"priority": 1, "x": {"priority": 3}}', b'{"priority": 7, "x": {"priority": 3}}'),
        (b'{"x": {"priority": 3}}', b'{"x": {"priority": 3},"priority":7}'),
        (b'{"pri\\u006frity": 3}', b'{"pri\\u006frity": 7}'),
        ('{"priority":1}'.encode("utf-16"), b'{"priority":7}'),
        (b'\xef\xbb\xbf{"a":NaN,"priority":1}', b'{"a":NaN,"priority":7}'),
        (b'{"priority":1,"n":%s}' % (b"9" * 5000), b'{"priority":7,"n":%s}' % (b"9" * 5000)),
        (b'{"a": "}\\ud800"}', b'{"a": "}\\ud800","priority":7}'),
    ],
)
def test_by_hand(body: bytes, expected: bytes) -> None:
    """The field is added at the end, or each of the client's own is overwritten in place."""
    assert with_priority(body, 7) == expected


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"a"', b'{"a": 1', b"\xff{}", b"}", b"{"])
def test_not_an_object_is_refused(body: bytes) -> None:
    """What is not a JSON object raises ValueError and nothing else."""
    with pytest.raises(ValueError):  # noqa: PT011 - any kind of it
        with_priority(body, 7)


json_objects = st.dictionaries(
    st.sampled_from(["priority", "prompt", "}", '"', "\\"]) | st.text(max_size=4),
    st.recursive(
        st.none() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    ),
)


@given(json_objects, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.sampled_from([None, 2]))
def test_any_object_keeps_its_other_fields(
    value: dict[str, Any], priority: int, ascii_only: bool, indent: int | None
) -> None:
    """For any object and layout the result parses to the same object with this priority."""
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode(
        "utf-8", "surrogatepass"
    )
    assert json.loads(with_priority(body, priority)) == {**value, "priority": priority}


@given(json_objects.filter(bool), st.integers(0, 9), st.lists(st.integers(1, 9)), st.text(" \n"))
def test_a_body_in_pieces_gets_the_same_field(
    value: dict[str, Any], priority: int, cuts: list[int], space: str
) -> None:
    """However a body is cut, the appended field is the one that counts; the length is known."""
    body = (json.dumps(value) + space).encode()
    appender = PriorityAppender(priority)
    pieces = []
    for size in cuts:
        pieces.append(appender.feed(body[:size], is_last=False))
        body = body[size:]
    pieces.append(appender.feed(body, is_last=True))
    sent = b"".join(pieces)
    assert json.loads(sent) == {**value, "priority": priority}
    assert len(sent) == len((json.dumps(value) + space).encode()) + appender.num_added_bytes


def test_pieces_that_are_no_object_keep_the_promised_length() -> None:
    """Without a closing brace the field is replaced by white space of the same length."""
    appender = PriorityAppender(5)
    assert appender.feed(b"[1, 2]", is_last=True) == b"[1, 2]" + b" " * appender.num_added_bytes


@given(
    json_objects, st.lists(st.sampled_from(["priority", "pr\\u0069ority"]), max_size=3), st.data()
)
def test_a_priority_is_taken_out_and_nothing_else(
    value: dict[str, Any], own: list[str], data: st.DataObject
) -> None:
    """Wherever the client put it, however often and however spelt: the rest stays as written."""
    fields = [f"{json.dumps(name)}: {json.dumps(it)}" for name, it in value.items()]
    for name in own:
        fields.insert(data.draw(st.integers(0, len(fields))), f'"{name}" : [1,  {{"priority": 2}}]')
    body = "{" + " ,\n".join(fields) + " }"

    left = without_priority(body.encode()).decode()

    kept = {name: it for name, it in value.items() if name != "priority"}
    assert json.loads(left) == kept
    assert all(f"{json.dumps(name)}: {json.dumps(it)}" in left for name, it in kept.items())


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (b'{"priority": 1}', b"{}"),
        (b'{"priority": 1, "a": 1.50}', b'{"a": 1.50}'),
        (b'{"a": 1 , "priority":-9 }', b'{"a": 1 }'),
        (b'{"a": 1, "priority": 0, "b": 2}', b'{"a": 1, "b": 2}'),
        (b'{"priority":1,"priority":2,"a":{"priority":3}}', b'{"a":{"priority":3}}'),
        ('{"priority": 1, "a": "é"}'.encode("utf-16"), '{"a": "é"}'.encode()),
    ],
)
def test_what_is_left_without_a_priority(body: bytes, left: bytes) -> None:
    """Byte for byte; only the top level counts."""
    assert without_priority(body) == left


LARGE = b" " * SMALL_BYTES


@pytest.mark.parametrize(
    ("body", "stamped", "left"),
    [
        (b'{"a": 1}', b'{"a": 1,"priority":7}', b'{"a": 1}'),
        (b'{"priority" : -9, "a": 1}', b'{"priority" : 7, "a": 1}', b'{"priority" : 0, "a": 1}'),
        (
            b'{"priority": 9, "x": {"priority": 9}}',
            b'{"priority": 7, "x": {"priority": 9}}',
            b'{"priority": 0, "x": {"priority": 9}}',
        ),
        (
            b'{"pri\\u006frity": 3}',
            b'{"pri\\u006frity": 3,"priority":7}',
            b'{"pri\\u006frity": 3,"priority":0}',
        ),
        (
            b'{"a": NaN, "priority": 3}',
            b'{"a": NaN, "priority": 3,"priority":7}',
            b'{"a": NaN, "priority": 3,"priority":0}',
        ),
    ],
)
def test_a_large_body_is_searched(body: bytes, stamped: bytes, left: bytes) -> None:
    """Where the client's own cannot be told, ours stands behind it, and the last one counts."""
    assert with_priority(body + LARGE, 7) == stamped + LARGE
    assert without_priority(body + LARGE) == left + LARGE


@given(json_objects, st.integers(-9, 9), st.lists(st.sampled_from(["priority", "pr\\u0069ority"])))
def test_a_large_object_keeps_its_other_fields(
    value: dict[str, Any], priority: int, own: list[str]
) -> None:
    """For any object, with any number of priorities of its own, ours is the one that counts."""
    fields = [f"{json.dumps(name)}: {json.dumps(it)}" for name, it in value.items()]
    body = ("{" + ",".join([*fields, *(f'"{name}": 3' for name in own)]) + "}").encode() + LARGE
    kept = {name: it for name, it in value.items() if name != "priority"}

    assert json.loads(with_priority(body, priority)) == {**kept, "priority": priority}
    assert json.loads(without_priority(body)) in (kept, {**kept, "priority": 0})


def test_a_body_without_a_priority_is_the_same_object() -> None:
    """Nothing is read where no spelling of the name can be."""
    body = b'{"prompt": "x"'

    assert without_priority(body) is body
    with pytest.raises(ValueError, match="JSON"):
        without_priority(b'["priority"]')


@pytest.mark.parametrize(
    ("pieces", "ending"),
    [
        ([b'{"a": "', b'b", "prio', b'rity": 9}'], b',"priority":0}'),
        ([b'{"a": 1, "prior\\u0069ty": 9}'], b',"priority":0}'),
        ([b'{"a": "', b'b"}'], b'"}' + b" " * 13),
    ],
)
def test_a_client_s_own_is_outdone_in_pieces_only_where_it_may_be(
    pieces: list[bytes], ending: bytes
) -> None:
    """Elsewhere white space keeps the promised length."""
    appender = PriorityAppender(0, only_over_own=True)
    sent = [appender.feed(piece, is_last=piece is pieces[-1]) for piece in pieces]

    assert b"".join(sent).endswith(ending)
    assert len(b"".join(sent)) == len(b"".join(pieces)) + appender.num_added_bytes
    assert json.loads(b"".join(sent)).get("priority", 0) == 0
