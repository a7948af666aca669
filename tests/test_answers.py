"""What an answer tells of itself on its way through, however it is cut and whatever is wrong."""

import json
from typing import Any

import pytest

from pars.outcomes.answers import MAX_HELD_BYTES, Answer, AnswerFacts
from pars.request.body import ByteBudget

JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


def facts_of(
    *pieces: bytes,
    headers: Any = EVENTS,
    status: int = 200,
    is_whole: bool = True,
    client_left: bool = False,
) -> AnswerFacts:
    """What is known of an answer that came in these pieces."""
    budget = ByteBudget(1 << 20)
    answer = Answer(budget)
    answer.head(status, headers)
    for piece in pieces:
        answer.piece(piece, is_last=False)
    if is_whole:
        answer.piece(b"", is_last=True)
    facts = answer.facts(client_left=client_left)
    assert budget.num_bytes == 0, "bytes are held after the end"
    return facts


def stream(*events: Any, name: str | None = None) -> bytes:
    """Server-sent events as vLLM writes them."""
    lines = []
    for event in events:
        named = f"event: {event['type']}\n" if name == "type" else ""
        text = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
        lines.append(f"{named}data: {text}\n\n")
    return "".join(lines).encode()


def piece_of_text(text: str, finish_reason: str | None = None, index: int = 0) -> Any:
    """An event of a stream of completions."""
    return {"choices": [{"index": index, "text": text, "finish_reason": finish_reason}]}


def delta(finish_reason: str | None = None, index: int = 0, **fields: Any) -> Any:
    """An event of a streamed chat."""
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish_reason}]}


def usage(prompt: Any, answer: Any) -> Any:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": 0}


# A text that looks like fields of an answer, and like the lines of a stream.
TRAP = (
    '"finish_reason":"stop"}]}\n\ndata: [DONE]\n\ndata: {"usage":{"completion_tokens":9}} "role":'
)

COMPLETION = stream(piece_of_text("a"), piece_of_text(TRAP), piece_of_text("c", "length"), "[DONE]")
CHAT = stream(
    delta(role="assistant", content=""),
    delta(content="a"),
    delta(content=TRAP),
    delta("stop", content=""),
    "[DONE]",
)
TWO_ANSWERS = stream(
    delta(role="assistant", content=""),
    delta(role="assistant", content="", index=1),
    delta(content="a"),
    delta(content="b", index=1),
    delta("stop", content=""),
    delta("length", content="c", index=1),
    {"choices": [], "usage": usage(7, 5)},
    "[DONE]",
)
LONG = [
    *[delta(role="assistant", content="", index=index) for index in (0, 1)],
    *[delta(content="a", index=index) for _ in range(9) for index in (0, 1)],
    delta("stop", content=""),
    *[delta(content="b", index=1)] * 9,
    delta("stop", content="c", index=1),
    {"choices": [], "usage": usage(7, 29)},
    "[DONE]",
]
MESSAGES = stream(
    {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 0}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": TRAP}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "b"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "max_tokens"},
        "usage": {"output_tokens": 2},
    },
    {"type": "message_stop"},
    name="type",
)
RESPONSE = {"object": "response", "status": "in_progress", "incomplete_details": None}
RESPONSES = stream(
    {"type": "response.created", "response": {**RESPONSE, "usage": None, "error": None}},
    {"type": "response.output_item.added", "item": {"role": "assistant"}},
    {"type": "response.output_text.delta", "delta": "a"},
    {"type": "response.output_text.delta", "delta": TRAP},
    {
        "type": "response.completed",
        "response": {
            **RESPONSE,
            "status": "completed",
            "output": [{"role": "assistant", "content": [{"text": f"a{TRAP}"}]}],
            "usage": {"input_tokens": 4, "output_tokens": 2},
        },
    },
    name="type",
)


def counted(tokens: int, reason: str | None) -> AnswerFacts:
    return AnswerFacts(known="events", answer_tokens=tokens, finish_reason=reason)


def told(prompt: int | None, tokens: int, reason: str | None) -> AnswerFacts:
    return AnswerFacts(
        known="usage",
        prompt_tokens=prompt,
        answer_tokens=tokens,
        is_exact=True,
        finish_reason=reason,
    )


STREAMS = {
    "completion": (COMPLETION, counted(3, "length")),
    "chat": (CHAT, counted(3, "stop")),  # two texts, and the token that ends it
    "two answers": (TWO_ANSWERS, told(7, 5, "length")),
    "an answer that ends long before the other": (stream(*LONG), told(7, 29, "stop")),
    "the same without usage": (stream(*LONG[:-2], LONG[-1]), counted(29, "stop")),
    "messages": (MESSAGES, told(9, 2, "length")),
    "responses": (RESPONSES, told(4, 2, "stop")),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_stream_cut_anywhere_tells_the_same(name: str, line_end: bytes):
    """In two pieces cut at each byte, and byte by byte, it says what it says as a whole."""
    data, facts = STREAMS[name]
    data = data.replace(b"\n", line_end)

    assert facts_of(data) == facts
    assert facts_of(*(data[i : i + 1] for i in range(len(data)))) == facts
    for cut in range(len(data)):
        assert facts_of(data[:cut], data[cut:]) == facts, cut


def test_a_stream_with_usage_in_every_event_counts_the_last():
    """With vLLM's `continuous_usage_stats` the total at the end is the one that counts."""
    events = [
        {**piece_of_text("a"), "usage": usage(5, 1)},
        {**piece_of_text("b", "stop"), "usage": usage(5, 2)},
        {"choices": [], "usage": usage(5, 3)},
        "[DONE]",
    ]

    assert facts_of(stream(*events)) == told(5, 3, "stop")
    assert facts_of(stream(*events[:1]), is_whole=False, client_left=True) == AnswerFacts(
        known="client_left",
        prompt_tokens=5,
        answer_tokens=1,
        is_exact=True,
        finish_reason="abort",
    )


def test_roles_in_every_event_are_no_reason_to_leave_it_out():
    """Some servers repeat the role beside each token; only an event without text has no token."""
    events = [delta(role="assistant", content=text) for text in ("", "a", "b")]

    assert facts_of(stream(*events, delta("stop"))) == counted(3, "stop")


@pytest.mark.parametrize("cut", range(0, len(CHAT) - 14, 7))
def test_half_a_stream_is_an_answer_that_broke_off(cut: int):
    """An upstream that dies, or ends its stream without an end mark, has cut it short."""
    broken = facts_of(CHAT[:cut], is_whole=False)

    assert (broken.known, broken.finish_reason) == ("cut_short", "error")
    assert broken.answer_tokens is not None
    assert broken.answer_tokens <= 3
    if b'"stop"' not in CHAT[:cut]:
        assert facts_of(CHAT[:cut]) == broken


def test_a_client_that_leaves_leaves_a_lower_bound():
    """Of a stream the client left the tokens that came are counted."""
    half = stream(piece_of_text("a"), piece_of_text("b"))

    assert facts_of(half, is_whole=False, client_left=True) == AnswerFacts(
        known="client_left", answer_tokens=2, finish_reason="abort"
    )


def test_an_error_within_a_stream_cuts_it_short():
    """vLLM reports what goes wrong after the first token as an event."""
    data = stream(piece_of_text("a"), {"error": {"message": "out of memory"}}, "[DONE]")

    assert facts_of(data) == AnswerFacts(known="cut_short", answer_tokens=1, finish_reason="error")


@pytest.mark.parametrize(
    "wrong",
    [usage(5, -1), usage(5, "9"), usage(5, 2.5), usage(5, True), usage(5, None), usage(5, 10**12)],
)
def test_usage_that_is_no_count_is_not_believed(wrong: Any):
    """Then a stream's events count, and JSON has no length."""
    data = stream(piece_of_text("a", "stop"), {"choices": [], "usage": wrong}, "[DONE]")
    body = json.dumps({"choices": [{"finish_reason": "stop"}], "usage": wrong}).encode()

    assert facts_of(data) == AnswerFacts(
        known="bad_usage", prompt_tokens=5, answer_tokens=1, finish_reason="stop"
    )
    assert facts_of(body, headers=JSON) == AnswerFacts(known="bad_usage", finish_reason="stop")


def test_usage_that_the_events_belie_is_not_believed():
    """Eleven events cannot be one token; the ten of two tokens' bound are let pass."""
    texts = [piece_of_text("a")] * 10
    end = piece_of_text("b", "stop")

    belied = facts_of(stream(*texts, end, {"choices": [], "usage": usage(1, 1)}))
    passed = facts_of(stream(*texts[1:], end, {"choices": [], "usage": usage(1, 1)}))

    assert (belied.known, belied.answer_tokens, belied.is_exact) == ("bad_usage", 11, False)
    assert (passed.known, passed.answer_tokens, passed.is_exact) == ("usage", 1, True)


# JSON


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        (
            {"choices": [{"finish_reason": "stop", "text": TRAP}], "usage": usage(3, 4)},
            told(3, 4, "stop"),
        ),
        (
            {
                "choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}],
                "usage": usage(3, 4),
            },
            told(3, 4, "length"),
        ),
        (
            {"choices": [{"finish_reason": "tool_calls"}], "usage": usage(3, 4)},
            told(3, 4, "tool_calls"),
        ),
        (
            {"stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 4}},
            told(3, 4, "stop"),
        ),
        (
            {
                "object": "response",
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
                "usage": {"input_tokens": 3, "output_tokens": 4},
            },
            told(3, 4, "length"),
        ),
        (
            {
                "text": "a",
                "meta_info": {
                    "prompt_tokens": 3,
                    "completion_tokens": 4,
                    "finish_reason": {"type": "length", "length": 4},
                },
            },
            told(3, 4, "length"),
        ),
        (
            {"choices": [{"finish_reason": "stop"}]},
            AnswerFacts(known="no_usage", finish_reason="stop"),
        ),
        ({}, AnswerFacts(known="no_usage")),
        ([], AnswerFacts(known="not_json")),
        ([1], AnswerFacts(known="not_json")),
        ("usage", AnswerFacts(known="not_json")),
        ({"usage": [], "choices": {"a": 1}, "meta_info": 3}, AnswerFacts(known="no_usage")),
        ({"choices": [3, None, {"finish_reason": 7}], "usage": usage(1, 1)}, told(1, 1, None)),
    ],
)
def test_json_tells_its_usage_and_its_reason(body: Any, facts: AnswerFacts):
    """In the shapes of each interface; other shapes tell nothing, and raise nothing."""
    data = json.dumps(body).encode()

    assert facts_of(data, headers=JSON) == facts
    assert facts_of(data[:9], data[9:], headers=JSON) == facts


def test_several_answers_of_sglang_add_up():
    """A list of prompts gets a list of answers there."""
    ended = {"finish_reason": {"type": "stop"}, "prompt_tokens": 3, "completion_tokens": 4}
    data = json.dumps([{"meta_info": ended}, {"meta_info": ended}]).encode()

    assert facts_of(data, headers=JSON) == told(6, 8, "stop")


@pytest.mark.parametrize(
    ("body", "headers", "status", "known"),
    [
        (b"<html>busy</html>", [(b"content-type", b"text/html")], 200, "not_json"),
        (b"<html>busy</html>", JSON, 200, "not_json"),
        (b'{"usage": {"completion_tokens": 1', JSON, 200, "not_json"),
        (b"[" * 10_000, JSON, 200, "not_json"),
        (b"\xff\xfe\x00", JSON, 200, "not_json"),
        (b"", [], 200, "not_json"),
        (b"", JSON, 200, "not_json"),
        (b"\x1f\x8b", [*JSON, (b"Content-Encoding", b"gzip")], 200, "compressed"),
        (b'{"usage": {"completion_tokens": 1}}', JSON, 503, "refused"),
        (b" " * MAX_HELD_BYTES + b" {}", JSON, 200, "too_large"),
    ],
)
def test_an_answer_that_tells_nothing_is_named(body: bytes, headers: Any, status: int, known: str):
    """HTML, half a body, a compressed or large one, an error: each has its name and no length."""
    assert facts_of(body, headers=headers, status=status) == AnswerFacts(known=known)


def test_a_line_too_long_to_hold_is_left_out():
    """A stream goes on being counted after a line of a megabyte, and holds none of it."""
    long = b"data: " + b"x" * (4 * MAX_HELD_BYTES)
    pieces = [long[start : start + 65536] for start in range(0, len(long), 65536)]

    facts = facts_of(*pieces, b"\n\n", COMPLETION)

    assert facts.finish_reason == "length"
    assert facts.answer_tokens in (3, 4)


def test_what_all_answers_hold_is_bounded():
    """With room for ten bytes among all, a longer body is not held."""
    answer = Answer(ByteBudget(10))
    answer.head(200, JSON)
    answer.piece(b'{"usage": {}}', is_last=True)

    assert answer.facts(client_left=False) == AnswerFacts(known="too_large")


def test_no_answer_at_all_is_named():
    """An app that sends nothing has answered nothing, whoever left."""
    assert Answer(ByteBudget(1)).facts(client_left=False) == AnswerFacts(
        known="no_answer", finish_reason="error"
    )
    assert Answer(ByteBudget(1)).facts(client_left=True) == AnswerFacts(
        known="client_left", finish_reason="abort"
    )
