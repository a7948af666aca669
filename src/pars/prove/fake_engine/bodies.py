"""
The bodies of the fake engine: what an OpenAI-style request asks for, and what an answer looks like.

    asked = read(path, headers, body, model="fake")
    events = Events(asked, "cmpl-7")                # events.token, events.last, ...
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pars.scheduling.engines import PRIORITY_HEADER

DEFAULT_TOKENS = 16  # as vLLM's for /v1/completions
CHARS_PER_TOKEN = 4
WORD = " tok"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body asks for, as far as it matters here."""

    model: str
    is_chat: bool
    num_prompt_tokens: int
    num_tokens: int
    priority: int
    is_stream: bool
    wants_usage: bool

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_tokens,
        }


def read(path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes, model: str) -> Asked:
    """
    Read a request.

    Raises:
        LookupError: it asks for another model.
        ValueError: it is no request that the fake engine could answer.
    """
    request = json.loads(body)
    if not isinstance(request, dict):
        raise ValueError("the body must be a JSON object")
    if request.get("model", model) != model:
        raise LookupError(f"The model `{request['model']}` does not exist.")
    if request.get("n", 1) != 1:
        raise ValueError("the fake engine gives one answer a request: n must be 1")
    is_chat = path.endswith("/chat/completions")
    num_tokens = request.get("max_completion_tokens", request.get("max_tokens", DEFAULT_TOKENS))
    num_prompt_tokens = max(1, _num_prompt_tokens(request, is_chat))
    limit = request.get("truncate_prompt_tokens", num_prompt_tokens)
    return Asked(
        model=model,
        is_chat=is_chat,
        num_prompt_tokens=min(num_prompt_tokens, _count("truncate_prompt_tokens", limit)),
        num_tokens=_count("max_tokens", num_tokens),
        priority=_priority(dict(headers).get(PRIORITY_HEADER), request.get("priority", 0)),
        is_stream=bool(request.get("stream")),
        wants_usage=bool((request.get("stream_options") or {}).get("include_usage")),
    )


def _num_prompt_tokens(request: dict[str, Any], is_chat: bool) -> int:
    if is_chat:
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ValueError("want messages, a list of one or more")
        return sum(len(json.dumps(message)) for message in messages) // CHARS_PER_TOKEN
    prompt = request.get("prompt")
    if isinstance(prompt, str):
        return len(prompt) // CHARS_PER_TOKEN
    if isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt):
        return len(prompt)
    raise ValueError("want one prompt, as text or as token ids")


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, not {value!r}")
    return value


def _priority(header: bytes | None, field_value: Any) -> int:
    """The header wins; one that is no integer is ignored, as vLLM does."""
    with suppress(ValueError, TypeError):
        return int(header or b"")
    if type(field_value) is not int:
        raise ValueError(f"priority must be a whole number, not {field_value!r}")
    return field_value


class Events:
    """
    The pieces of one stream.

    Attributes:
        opening: Before the first token (of a chat: the role).
        token, last: A token's event, and the last token's.
        end: After the last token: the usage, if asked for, and the end mark.
    """

    __slots__ = ("end", "last", "opening", "token")

    def __init__(self, asked: Asked, request_id: str) -> None:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        page = _page(asked, request_id, is_stream=True)
        said = choice | ({"delta": {"content": WORD}} if asked.is_chat else {"text": WORD})
        role = choice | {"delta": {"role": "assistant", "content": ""}}
        self.opening = _event(page, [role]) if asked.is_chat else b""
        self.token = _event(page, [said])
        self.last = _event(page, [said | {"finish_reason": "length"}])
        usage = _event(page | {"usage": asked.usage}, []) if asked.wants_usage else b""
        self.end = usage + DONE


def whole_answer(asked: Asked, request_id: str) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    text = WORD * asked.num_tokens
    said = {"message": {"role": "assistant", "content": text}} if asked.is_chat else {"text": text}
    choice = {"index": 0, "finish_reason": "length", **said}
    page = _page(asked, request_id, is_stream=False)
    return {**page, "choices": [choice], "usage": asked.usage}


def _page(asked: Asked, request_id: str, *, is_stream: bool) -> dict[str, Any]:
    chat = "chat.completion.chunk" if is_stream else "chat.completion"
    kind = chat if asked.is_chat else "text_completion"
    return {"id": request_id, "object": kind, "created": 0, "model": asked.model}


def _event(page: dict[str, Any], choices: list[Any]) -> bytes:
    return b"data: " + json.dumps({**page, "choices": choices}).encode() + b"\n\n"
