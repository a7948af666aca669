"""The text to score comes out of any body, and nothing a client sends makes the reader raise."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pars.request.prompts import (
    MAX_COUNT,
    READERS,
    UNTIL_FULL_TOKENS,
    Prompt,
    Request,
    head_and_tail,
    read_request,
    unread_request,
)
from pars.request.token_counts import MEDIA_TOKENS

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"


def read(path: str, **body: Any) -> Request:
    request = read_request(path, body)
    assert request is not None
    return request


def texts(path: str, **body: Any) -> list[str | None]:
    return [prompt.text for prompt in read(path, **body).prompts]


def test_completion_string_is_one_prompt_of_a_quarter_token_per_character() -> None:
    """A completions string is one prompt; 8 characters count as 2 tokens."""
    assert read(COMPLETIONS, prompt="12345678").prompts == (Prompt("12345678", 2.0),)


def test_completion_list_is_one_prompt_each() -> None:
    """Each string of a completions list is a prompt of its own."""
    assert texts(COMPLETIONS, prompt=["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([1, 2, 3], (Prompt(None, 3.0),)),
        ([[1, 2], [3]], (Prompt(None, 2.0), Prompt(None, 1.0))),
        (None, (Prompt(None, 0.0),)),
        ([], (Prompt(None, 0.0),)),
    ],
)
def test_token_ids_have_a_length_but_no_text(prompt: Any, expected: tuple[Prompt, ...]) -> None:
    """Token ids are counted exactly and give no text to score."""
    assert read(COMPLETIONS, prompt=prompt).prompts == expected


def test_chat_scores_the_last_user_message_and_counts_all() -> None:
    """
    Of a conversation the last user text is scored, and the history counts as prompt.

    A note tells that one answer came before, of 7 characters, rounded down to 6.
    """
    messages = [
        {"role": "system", "content": "1234"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "1234567"},
        {"role": "user", "content": "last"},
    ]
    assert read(CHAT, messages=messages).prompts == (Prompt("→1 6 0\nlast", 20 / 4),)


def test_an_answer_to_go_on_with_did_not_come_before() -> None:
    """The assistant's last words are the start of this answer."""
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Once"}]
    assert read(CHAT, messages=messages).prompts == (Prompt("q", 5 / 4),)


def test_a_completion_is_no_conversation() -> None:
    """A plain prompt has no note, and cannot forge one."""
    assert texts(COMPLETIONS, prompt=["hi", "→1 6 0\nhi"]) == ["hi", " →1 6 0\nhi"]


def test_content_parts_are_joined_and_images_skipped() -> None:
    """Text parts of one message are joined by a line break; an image has no text."""
    content = [
        {"type": "text", "text": "what is"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "this?"},
    ]
    assert texts(CHAT, messages=[{"role": "user", "content": content}]) == ["what is\nthis?"]


def test_media_count_towards_the_prompt() -> None:
    """An image has no text, and takes the engine as long as a page of it."""
    content = [{"type": "text", "text": "1234"}, {"type": "image_url", "image_url": {"url": "x"}}]
    [prompt] = read(CHAT, messages=[{"role": "user", "content": content}]).prompts
    assert prompt == Prompt("1234", 1 + MEDIA_TOKENS)


def test_many_prompts_count_though_only_the_first_are_told_apart() -> None:
    """Of 100 prompts of 8 characters 64 stand alone, and the rest together for 36."""
    prompts = read(COMPLETIONS, prompt=["12345678"] * 100).prompts
    assert len(prompts) == 65
    assert prompts[-1] == Prompt(None, 72.0, 36)


def test_tool_results_do_not_hide_the_question() -> None:
    """After a tool call the question that led to it is still what is scored."""
    messages = [
        {"role": "user", "content": "weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "tool", "tool_call_id": "1", "content": "22 degrees"},
    ]
    asked = "→1 0 0\nweather in Rome?"
    assert texts(CHAT, messages=messages, tools=[{"type": "function"}]) == [asked]
    anthropic = [
        {"role": "user", "content": "weather in Rome?"},
        {"role": "user", "content": [{"type": "tool_result", "content": "22 degrees"}]},
    ]
    assert texts(MESSAGES, messages=anthropic) == ["weather in Rome?"]


def test_responses_input_is_a_string_or_items() -> None:
    """/v1/responses gives its text from a string or from its last user item."""
    items = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    assert texts(RESPONSES, input="hello") == ["hello"]
    assert texts(RESPONSES, input=items) == ["hi"]
    assert read(RESPONSES, input="1234", instructions="12345678").prompts == (Prompt("1234", 3.0),)


def test_batch_and_native_paths_are_read() -> None:
    """vLLM's batch chat and the engines' own generate paths give prompts too."""
    two = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
    assert texts("/v1/chat/completions/batch", messages=two) == ["a", "b"]
    native = read("/inference/v1/generate", token_ids=[1, 2], sampling_params={"max_tokens": 7})
    assert native == Request((Prompt(None, 2.0),), 7)
    sglang = read("/generate", text="hi", sampling_params={"max_new_tokens": 9})
    assert (sglang.prompts[0].text, sglang.max_tokens) == ("hi", 9)
    assert texts("/invocations", messages=two[0]) == ["a"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, {"max_completion_tokens": 5, "max_tokens": 9}, 5),
        (CHAT, {"max_tokens": 9, "max_output_tokens": 1}, 9),
        (CHAT, {}, None),
        (COMPLETIONS, {}, 16),
        (COMPLETIONS, {"max_tokens": None}, 16),
        (RESPONSES, {"max_output_tokens": 7, "max_tokens": 1}, 7),
        (MESSAGES, {"max_tokens": 3}, 3),
        (CHAT, {"max_tokens": True}, 1),
        (CHAT, {"max_tokens": "5"}, 5),
        (CHAT, {"max_tokens": " 5 "}, 5),
        (CHAT, {"max_tokens": 5.0}, 5),
        (CHAT, {"max_tokens": 5.5}, None),
        (CHAT, {"max_tokens": 1 << 70}, MAX_COUNT),
        (CHAT, {"max_tokens": float("inf")}, None),
        (CHAT, {"max_tokens": float("nan")}, None),
        (CHAT, {"max_tokens": -3}, 0),
    ],
)
def test_the_limit_is_the_one_the_engine_obeys(path: str, body: Any, expected: int | None) -> None:
    """Only the limit that the engine reads on that path counts, and odd values are no limit."""
    assert read(path, **body).max_tokens == expected


def test_answers_are_counted_by_n_and_best_of() -> None:
    """The larger of n and best_of is how many answers the engine makes."""
    assert read(COMPLETIONS, n=2, best_of=5).num_answers == 5
    assert read(COMPLETIONS, n=3).num_answers == 3
    assert read(COMPLETIONS, n=0).num_answers == 1
    assert read(COMPLETIONS, n="many").num_answers == 1


def test_ignored_end_of_text_makes_the_length_known() -> None:
    """With ignore_eos the answer is exactly max_tokens long; min_tokens is a floor."""
    assert read(CHAT, max_tokens=50, ignore_eos=True).min_tokens == 50
    assert read(CHAT, max_tokens=50, min_tokens=20).min_tokens == 20


@pytest.mark.parametrize("spelled", [1, "true", "1", "yes", "on", "True", 1.0])
def test_a_switch_is_on_where_the_engine_takes_it_as_on(spelled: Any) -> None:
    """Every spelling that pydantic takes for true counts as true."""
    assert read(CHAT, max_tokens=50, ignore_eos=spelled).min_tokens == 50


@pytest.mark.parametrize("spelled", [0, "off", "maybe", 2, None, [], {}])
def test_a_switch_is_off_otherwise(spelled: Any) -> None:
    """What the engine takes for false, or refuses, is off."""
    assert read(CHAT, max_tokens=50, ignore_eos=spelled).min_tokens == 0


def test_an_answer_without_an_end_is_a_long_one() -> None:
    """ignore_eos without a limit goes on until the model's context is full."""
    assert read(CHAT, ignore_eos=True).min_tokens == UNTIL_FULL_TOKENS


def test_scores_and_decisions_are_read_by_their_size() -> None:
    """vLLM makes one token an item of 8 + 4 characters, and a label for each question."""
    scored = read("/generative_scoring", query="12345678", items=["1234", "1234"], n=7)
    assert scored == Request((Prompt(None, 2 * 2.0 + 2 * 1.0, 2),), 1)
    asked = read("/v1/systemone", state="12345678", questions={"a": {"type": "x"}, "b": {}})
    assert asked.prompts == (Prompt(None, 2.0, 2),)
    assert texts("/cohere/v2/chat", messages=[{"role": "user", "content": "hi"}]) == ["hi"]


def test_what_could_not_be_read_counts_by_its_size() -> None:
    """4,000 bytes are taken for a prompt of 1,000 tokens without text."""
    assert unread_request(4000).prompts == (Prompt(None, 1000.0),)


def test_of_a_long_text_start_and_end_are_kept() -> None:
    """Three quarters from the start, one from the end: where rankers read."""
    assert head_and_tail("abcdefghij", 4) == "abcj"
    assert head_and_tail("abcd", 4) == "abcd"


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/v1/embeddings", "/v1/completions/render", "/v1/responses/abc"]
)
def test_other_paths_are_not_read(path: str) -> None:
    """A path that generates nothing gives no request."""
    assert read_request(path, {"prompt": "x"}) is None


def test_a_prefix_does_not_hide_a_path() -> None:
    """The path counts under any root path."""
    assert texts("/team-a/v1/completions", prompt="x") == ["x"]


fields = st.sampled_from(
    [
        "prompt",
        "messages",
        "input",
        "instructions",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "n",
        "best_of",
        "min_tokens",
        "ignore_eos",
        "sampling_params",
        "text",
        "token_ids",
        "role",
        "content",
    ]
)
bodies = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=4),
    max_leaves=10,
)


@given(path=st.sampled_from(list(READERS)), body=bodies)
def test_any_json_value_is_read(path: str, body: Any) -> None:
    """No JSON value makes the reader raise, and what it reads is always in range."""
    request = read_request(path, body)
    assert request is not None
    assert len(request.prompts) >= 1
    assert all(prompt.num_tokens >= 0 for prompt in request.prompts)
    assert request.num_answers >= 1
    assert 0 <= request.min_tokens <= MAX_COUNT
