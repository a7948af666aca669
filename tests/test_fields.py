"""A body's fields, read in bounds: what a client sends decides neither time nor memory."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pars.request.fields import MOST_CONTAINERS, SMALL_BYTES, Unread, read_fields
from pars.request.prompts import READERS, read_request

PADDING = " " * SMALL_BYTES  # makes any body a large one


def large(text: str) -> bytes:
    """The JSON text as a body that is too large to be built as a whole."""
    return (text + PADDING).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("size", ["", PADDING])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"prompt": "a", "n": 2}', {"prompt": "a", "n": 2}),
        ('{"n": 1, "n": 2}', {"n": 2}),
        ('{"temperature": NaN, "prompt": "a", "top_p": null}', ...),
        ('{"prompt": "\\ud800"}', {"prompt": "\ud800"}),
        (
            '{"max_tokens": 123456789012345678901234567890}',
            {"max_tokens": 123456789012345678901234567890},
        ),
        ("[1]", None),
        ('"text"', None),
        ("", None),
        ("{", None),
        ('{"prompt": "a"} x', None),
    ],
)
def test_a_body_is_read_as_python_reads_it(text: str, expected: Any, size: str) -> None:
    """Small or large, the fields are those of Python's parser, which engines use."""
    found = read_fields((text + size).encode())

    if expected is ...:
        assert found is not None
        assert found["prompt"] == "a"
    else:
        assert found == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be"])
def test_other_encodings_are_read(encoding: str) -> None:
    """Python's parser takes them, and so do engines."""
    assert read_fields('{"prompt": "é"}'.encode(encoding)) == {"prompt": "é"}


def test_of_a_large_body_only_what_somebody_reads_is_built() -> None:
    """A field without a reader is skipped."""
    assert read_fields(large('{"prompt": "a", "whatever": [[]]}')) == {"prompt": "a"}


def test_a_value_of_too_many_lists_is_not_built() -> None:
    """Its size and its parts are told."""
    lists = "[" + "[]," * (2 * MOST_CONTAINERS) + "[]]"

    assert read_fields(large('{"prompt": ' + lists + "}")) == {
        "prompt": Unread(len(lists), 2 * MOST_CONTAINERS, 2 * MOST_CONTAINERS + 2, has_text=False)
    }


def test_a_long_list_of_token_ids_is_counted() -> None:
    """40,000 ids are that many tokens, without a list of them."""
    body = json.dumps({"prompt": [7] * 40_000}, indent=0).encode()

    fields = read_fields(body)
    request = read_request("/v1/completions", fields)

    assert request is not None
    [prompt] = request.prompts
    assert (prompt.text, prompt.num_tokens, prompt.num_prompts) == (None, 40_000, 1)


@pytest.mark.parametrize(
    ("prompt", "least_prompts"),
    [('["a",' + '"a",' * 60_000 + '"a"]', 60_002), ("[[1]," + "[2]," * 30_000 + "[3]]", 30_002)],
)
def test_prompts_that_are_not_told_apart_all_count(prompt: str, least_prompts: int) -> None:
    """Each of them is an answer to make, so that no crowd of them passes for one."""
    request = read_request("/v1/completions", read_fields(large('{"prompt": ' + prompt + "}")))

    assert request is not None
    assert sum(it.num_prompts for it in request.prompts) >= least_prompts


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting_is_no_body_to_read(opening: str) -> None:
    """Half a million levels cost nothing, and are refused by the engine anyway."""
    assert read_fields(b'{"prompt":' + opening.encode() * 500_000) is None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(body=st.dictionaries(st.sampled_from(["prompt", "messages", "n", "stop", "other"]), values))
def test_a_large_body_is_read_as_a_small_one(body: dict[str, Any]) -> None:
    """Padding changes nothing of what is read."""
    text = json.dumps(body)
    body.pop("other", None)

    found = read_fields(large(text))

    assert found is not None
    assert {name: it for name, it in found.items() if not isinstance(it, Unread)} == {
        name: it for name, it in body.items() if not isinstance(found.get(name), Unread)
    }


@given(path=st.sampled_from(list(READERS)), content=st.binary(max_size=60))
def test_any_bytes_are_read(path: str, content: bytes) -> None:
    """Nothing raises, whatever comes."""
    for body in (content, content + PADDING.encode()):
        assert read_request(path, read_fields(body)) is not None
