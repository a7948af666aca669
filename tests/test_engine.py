"""The engine that other tests stand on behaves as they assume."""

import json
import random

import httpx
import pytest

from doors import Ask, Door, order_of_admission

from engine import MODEL, Engine, Engines

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
PRIORITY = ("--scheduling-policy", "priority")
HEADER = "X-Vllm-Priority"


def post(engine: Engine, path: str, **body: object) -> dict:
    answer = httpx.post(f"{engine.url}{path}", json={"model": MODEL, **body}, timeout=60)
    return answer.raise_for_status().json()


def order_of(engine: Engine, priorities: list[int]) -> list[int]:
    """Send one request per priority while the slot is held; the order in which they begin."""
    prompt = {"model": MODEL, "prompt": "x"}
    asks = [Ask(str(p), "/v1/completions", prompt, {HEADER: str(p)}) for p in priorities]
    names = order_of_admission(Door(engine.url, engine), asks, in_turn=True)
    return [int(name) for name in names]


def test_completion_has_exactly_max_tokens(vllm: Engines):
    """An answer ends at max_tokens and nowhere else, one printable character a token."""
    length = {"max_tokens": 37, "ignore_eos": True}  # as a client asks that fixes it
    answer = post(vllm(*PRIORITY), "/v1/completions", prompt="Hello", **length)

    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (5, 37)
    text = answer["choices"][0]["text"]
    assert len(text) == 37
    assert text.isascii()
    assert text.isprintable()


def test_chat_answers(vllm: Engines):
    """The tiny model has a chat template, for plain text and for content parts alike."""
    parts = [{"type": "text", "text": "Hello"}]

    for content in ("Hello", parts):
        messages = [{"role": "user", "content": content}]
        answer = post(vllm(*PRIORITY), "/v1/chat/completions", messages=messages, max_tokens=5)

        assert answer["choices"][0]["message"]["role"] == "assistant"
        # <s>user: Hello</s><s>assistant: , where <s> and </s> are one token each
        num_tokens = 3 + len("user: Hello") + len("assistant: ")
        assert answer["usage"]["prompt_tokens"] == num_tokens


def test_stream_comes_piece_by_piece_and_leaving_it_frees_the_slot(vllm: Engines):
    """The first piece is here while the answer still runs; a client that leaves ends the answer."""
    engine = vllm(*PRIORITY)
    num_done = engine.metric("vllm:request_success_total")

    with engine.held():
        engine.wait_for(running=1)

    engine.wait_for(running=0)
    assert engine.metric("vllm:request_success_total") == num_done


def test_a_stream_has_a_character_for_each_token(vllm: Engines):
    """A stream of 20 tokens is events with 20 characters, and the end mark."""
    body = {"model": MODEL, "prompt": "x", "max_tokens": 20, "stream": True}
    url = f"{vllm(*PRIORITY).url}/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as answer:
        *events, end = [line.removeprefix("data: ") for line in answer.iter_lines() if line]

    assert end == "[DONE]"
    assert len("".join(json.loads(event)["choices"][0]["text"] for event in events)) == 20


def test_priority_header_orders_the_queue(vllm: Engines):
    """With one slot, waiting requests begin in the order of their header, smallest first."""
    priorities = random.Random(0).sample(range(-5, 1000), 8)

    order = order_of(vllm(*PRIORITY), priorities)

    assert order == sorted(priorities)


def test_fcfs_ignores_the_header_without_a_word(vllm: Engines):
    """Without --scheduling-policy priority they begin as they came, and nothing says so."""
    priorities = random.Random(0).sample(range(-5, 1000), 8)

    order = order_of(vllm(), priorities)

    assert order == priorities


def test_a_server_that_dies_fails_at_once_with_its_last_words(vllm: Engines):
    """What stopped vLLM is told from its log, without waiting for /health."""
    with pytest.raises(pytest.fail.Exception, match="No module named 'encodings'"):
        vllm(PYTHONHOME="/nowhere")
