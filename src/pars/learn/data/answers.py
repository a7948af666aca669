"""
Answers in the shapes that logs and data sets give them: texts, messages, bodies of responses.

    answer_in({"choices": [{"message": {"role": "assistant", "content": "So."}}]}).text  # "So."

Known are the bodies of OpenAI (chat, completions, responses), Anthropic, Gemini, Ollama and vLLM,
and the JSON text of any of these.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from pars.learn.data.chats import (
    CHAT_KEYS,
    ROLES,
    Message,
    WrongShape,
    chat_in_text,
    content_of,
    messages_in,
    part_in,
    role_of,
    zipped,
)
from pars.learn.data.fields import kind_of
from pars.request.conversation import text_of

FINISH_KEYS = ("finish_reason", "finishReason", "stop_reason", "done_reason")
_NESTED = (
    "body",
    "message",
    "response",
    "completion",
    "generated_text",
    "answer",
    "output",
    "result",
)


class Answer(NamedTuple):
    """An answer's text, and what its log tells beside it."""

    text: str
    finish_reason: str | None = None
    num_tokens: int | None = None


def answer_in(value: Any) -> Answer | None:
    """
    The answer in a text, a message, the messages of a chat (its last), or a response's body.

    Raises:
        NotUnderstood: a message has an unknown role, or JSON text of messages is broken.
        WrongShape: it is nothing of these.
    """
    if isinstance(value, str):
        loaded = _answer_in_text(value)
        return Answer(value) if loaded is None else answer_in(loaded)
    if isinstance(value, Mapping):
        return _answer_in_body(value)
    if isinstance(value, list):
        return _last_of(value)
    if value is None:
        return None
    raise WrongShape(f"text, not {kind_of(value)}")


def _answer_in_text(text: str) -> Any:
    loaded = chat_in_text(text)
    if loaded is None and text.lstrip()[:1] == "{":
        with suppress(ValueError, RecursionError):
            body = json.loads(text, strict=False)
            if any(isinstance(body.get(key), list) for key in ("choices", "candidates")):
                return body
            if body.get("object") == "response":
                return body
    return loaded


def _last_of(value: Sequence[Any]) -> Answer | None:
    if not value:
        return None
    if all(isinstance(one, str) for one in value) and len(value) == 1:
        return Answer(value[0])
    if all(isinstance(one, Mapping) for one in value):
        roles = {(role_of(one) or "").lower() for one in value}
        if not roles & ROLES.keys() and all(
            {"text", "input", "functionCall"} & one.keys() for one in value
        ):
            return Answer(answer_text({"content": [part_in(one) for one in value]}))
        messages = messages_in(value)
        assert not isinstance(messages, str)
        return answer_of_chat(messages or [])[1]
    raise WrongShape(f"text, not {kind_of(value)}")


def answer_of_chat(messages: Sequence[Message]) -> tuple[list[Message], Answer | None]:
    """A chat's last answer, and the messages before it; what follows it was not answered yet."""
    end = len(messages)
    while end and messages[end - 1]["role"] != "assistant":
        end -= 1
    start = end
    while start and messages[start - 1]["role"] == "assistant":
        start -= 1
    if start == end:
        return list(messages), None
    texts = (answer_text(message) for message in messages[start:end])
    return list(messages[:start]), Answer("\n".join(filter(None, texts)))


def answer_text(message: Mapping[str, Any]) -> str:
    """All that was generated: thoughts, text, and what is handed to tools."""
    content = message.get("content")
    calls = message.get("tool_calls")
    handed = [
        call["function"].get("arguments")
        for call in (calls if isinstance(calls, list) else [])
        if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping)
    ]
    parts = content if isinstance(content, list) else []
    handed += [part.get("input") for part in parts if isinstance(part, Mapping)]
    handed.append(message.get("arguments"))
    texts = [message.get("reasoning_content"), text_of(content)]
    texts += [it if isinstance(it, str) else json.dumps(it) for it in handed if it]
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def _answer_in_body(value: Mapping[str, Any]) -> Answer | None:
    finish = next((value[key] for key in FINISH_KEYS if isinstance(value.get(key), str)), None)
    for key in ("choices", "candidates", "outputs", "generations"):
        if isinstance(value.get(key), list):
            first = next(iter(value[key]), None)
            first = next(iter(first), None) if isinstance(first, list) else first
            return answer_in(first)
    if isinstance(value.get("token_ids"), list):
        return Answer(str(value.get("text") or ""), _finish(finish), len(value["token_ids"]))
    if value.get("object") == "response" and isinstance(value.get("output"), list):
        return _last_of(value["output"])
    if isinstance(value.get("content"), Mapping):  # a candidate of Gemini's
        value = {**value["content"], **({"role": "model"} if "role" not in value else {})}
    for key in _NESTED:
        inner = value.get(key)
        if inner is not None and (key != "message" or not isinstance(inner, str)):
            found = answer_in(inner)
            return (
                found._replace(finish_reason=found.finish_reason or _finish(finish))
                if found
                else None
            )
    if (messages := zipped(value)) is not None:
        return _last_of(messages)
    role = (role_of(value) or "").lower()
    content = content_of(value)
    if role in ROLES or content is not None or value.get("tool_calls"):
        if role in ROLES and ROLES[role] != "assistant":
            return None
        told = answer_text({**value, "content": content})
        return Answer(told, _finish(finish))
    for key in CHAT_KEYS:
        if key in value:
            return answer_in(value[key])
    if not value or {"error", "status_code"} & value.keys():
        return None
    raise WrongShape(f"text, not an object of {', '.join(map(str, value))}")


def _finish(reason: str | None) -> str | None:
    """As OpenAI spells it: "length" is what a limit cut short."""
    return "length" if (reason or "").lower() in ("length", "max_tokens") else reason
