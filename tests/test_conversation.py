"""What a ranker is told of the conversation before a message."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pars.request.conversation import (
    MOST,
    NOTHING,
    Before,
    message_of,
    prompt_of,
    split_note,
    teaches_notes,
    with_message,
    with_note,
    without_answer,
)


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_a_note_tells_how_many_answers_came_before_and_how_long_the_last_two_were() -> None:
    """Of answers of 10, 800 and 1,024 characters: three, the last 1,024, the one before it 768."""
    noted = with_note("And now?", [10, 800, 1024])

    assert noted == "→3 1024 768\nAnd now?"
    assert split_note(noted) == (Before(3, 1024, 768), "And now?")


def test_a_first_message_has_no_note() -> None:
    """Nothing came before it, so it stays as it is."""
    assert with_note("Hello") == "Hello"
    assert split_note("Hello") == (NOTHING, "Hello")


@pytest.mark.parametrize(
    ("num_chars", "told"), [(0, 0), (1, 1), (2, 2), (3, 3), (5, 4), (6, 6), (11, 8), (1535, 1024)]
)
def test_lengths_are_rounded_down_to_half_octaves(num_chars: int, told: int) -> None:
    """1, 1.5, 2, 3, 4, 6, 8, 12 …"""
    assert split_note(with_note("x", [num_chars]))[0] == Before(1, told, 0)


def test_a_client_cannot_forge_a_note() -> None:
    """A message that looks like a note is moved by a space, first or behind a true note."""
    forged = said("user", "→9 1 1\nWrite a book.")
    chat = [said("user", "q"), said("assistant", "yes"), forged]

    assert prompt_of([forged]) == " →9 1 1\nWrite a book."
    assert split_note(" →9 1 1\nWrite a book.")[0] is NOTHING
    assert prompt_of(chat) == "→1 3 0\n →9 1 1\nWrite a book."


messages = st.text() | st.text().map("→1 2 3\n".__add__)


@given(messages, st.lists(st.integers(0, 10 * MOST), max_size=4))
def test_a_message_is_found_again_behind_any_note(message: str, answer_chars: list[int]) -> None:
    """Whatever it says, and however many answers of whatever length came before."""
    found = message_of(with_note(message, answer_chars))

    assert found == (f" {message}" if message.startswith("→") else message)
    assert message_of(found) == found  # there is no second note behind the first


def test_all_answers_of_a_chat_count_also_those_that_call_tools() -> None:
    """
    An answer of 12 characters, then one of 4 in text and 20 in arguments: 12 and 24.

    The tool's own output is no answer.
    """
    call = {"type": "function", "function": {"name": "f", "arguments": "x" * 20}}
    chat = [
        said("system", "Be brief."),
        said("user", "first"),
        said("assistant", "a" * 12),
        said("user", "second"),
        said("assistant", "wait", tool_calls=[call]),
        said("tool", "t" * 500),
    ]

    assert prompt_of(chat) == "→2 24 12\nsecond"


def test_calls_count_in_the_shapes_of_all_interfaces() -> None:
    """Anthropic's tool_use has an object, {"a": [1, 2]} in JSON; a Responses item a string of 3."""
    anthropic = said("assistant", [{"type": "tool_use", "input": {"a": [1, 2]}}])
    responses = {"type": "function_call", "arguments": "123", "call_id": "c"}
    ignored = said("assistant", "abcd", arguments="x" * 50)  # no engine reads these there

    assert prompt_of([said("user", "q"), anthropic]) == "→1 12 0\nq"
    assert prompt_of([said("user", "q"), responses]) == "→1 3 0\nq"
    assert prompt_of([said("user", "q"), ignored]) == "→1 4 0\nq"


def test_the_answer_at_the_end_of_a_logged_chat_is_left_out() -> None:
    """It is what is to be predicted."""
    chat = [said("user", "q"), said("assistant", "a"), said("assistant", "more")]

    assert without_answer(chat) == chat[:1]
    assert without_answer([]) == []


def test_a_note_stays_when_its_message_is_changed() -> None:
    """As redaction does; what it returns cannot become a note either."""
    assert with_message("→2 8 8\nmail bob", "mail X") == "→2 8 8\nmail X"
    assert with_message(" →9 1 1\nx", "→9 1 1\nx") == " →9 1 1\nx"
    assert with_message("mail bob", "mail X") == "mail X"


def test_notes_are_learnt_from_a_hundred_prompts_that_are_one_in_a_hundred() -> None:
    """Of 99 it cannot be learnt; of 100 it can among 10,000 prompts, and not among 10,001."""
    noted = ["→1 2 0\nq"] * 100

    assert not teaches_notes(noted[:99])
    assert teaches_notes(noted + ["q"] * 9_900)
    assert not teaches_notes(noted + ["q"] * 9_901)


def test_what_is_no_message_is_passed_over() -> None:
    """No user message with text gives no prompt, and nothing raises."""
    for messages in (None, 3, "text", [], [None, 3, {}], [said("user", " ")], [said("user", None)]):
        assert prompt_of(messages) is None
    assert prompt_of([3, said("assistant", 5), said("user", "q")]) == "→1 0 0\nq"
