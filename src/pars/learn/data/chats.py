"""
Chats and answers in the shapes that logs and data sets give them, as OpenAI's messages.

    asked_in([{"from": "human", "value": "Why?"}])     # [{"role": "user", "content": "Why?"}]
    answer_in({"choices": [{"message": {"role": "assistant", "content": "So."}}]}).text  # "So."

Read are messages of OpenAI, Anthropic, Gemini (`parts`), ShareGPT (`from`, `value`) and LangChain
(`type`, `data`); lists and structs of columns of them; whole request and response bodies; and the
JSON text of any of these. A text that merely looks like JSON stays the text that it is.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from pars.learn.data.fields import kind_of
from pars.request.conversation import prompt_of, text_of

_ROLES = {
    "user": "user human prompter customer client humanmessage input question",
    "assistant": "assistant model gpt chatgpt bot ai chatbot agent llm claude bard bing gemini"
    " gpt-3.5 gpt-4 aimessage aimessagechunk function_call tool_call assistant_message",
    "system": "system developer systemmessage instruction context",
    "tool": "tool function observation ipython environment toolmessage functionmessage"
    " function_response tool_response tool_result function_call_output",
}
ROLES = {name: role for role, names in _ROLES.items() for name in names.split()}
ROLES |= {name: name for name in ("developer", "function")}  # OpenAI's own, too
ROLE_KEYS = ("role", "from", "author", "speaker", "sender", "type")
CONTENT_KEYS = ("content", "value", "text", "parts", "message", "output")
CHAT_KEYS = ("messages", "conversation", "conversations", "contents", "chat")
ASKED_KEYS = (*CHAT_KEYS, "prompt", "input", "body", "request", "question", "query", "text")
# What a message keeps beside its role and content when it is asked again.
KEPT = (
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "type",
    "arguments",
    "reasoning_content",
)
ASKED_AGAIN = ("name", "tool_calls", "tool_call_id", "function_call")
_PASSED_OVER = ("reasoning", "item_reference")
_CHAT_TEXT = re.compile(
    r"""\s*(\{\s*["'](messages|contents)["']\s*:\s*)?\[\s*\{\s*["'](role|from|content|parts)["']"""
)

Message = dict[str, Any]


class NotUnderstood(Exception):
    """A value that is no chat and no answer; the text is the reason why its row is left out."""


class WrongShape(Exception):
    """A value that cannot be a prompt or an answer at all: the wrong column."""


class Answer(NamedTuple):
    """An answer's text, and what its log tells beside it."""

    text: str
    finish_reason: str | None = None
    num_tokens: int | None = None


def asked_in(value: Any) -> str | list[Message] | None:
    """
    What was asked: a text, or messages with roles of OpenAI's; None where there is nothing.

    Raises:
        NotUnderstood: a message has an unknown role, or JSON text of messages is broken.
        WrongShape: it is neither text nor messages nor a body with either.
    """
    if isinstance(value, str):
        loaded = _chat_in_text(value)
        return value if loaded is None else asked_in(loaded)
    if isinstance(value, Mapping):
        return _asked_in_body(value)
    if isinstance(value, list):
        return _messages(value)
    if value is None:
        return None
    raise WrongShape(f"text, not {kind_of(value)}")


def _asked_in_body(value: Mapping[str, Any]) -> str | list[Message] | None:
    if (messages := _zipped(value)) is not None:
        return _messages(messages)
    if _role_of(value) is not None and _content_of(value) is not None:
        return _messages([value])
    known = [key for key in ASKED_KEYS if key in value]
    for key in known:
        if asked := asked_in(value[key]):
            return asked
    if known or not value:
        return None
    raise WrongShape(f"text or messages, not an object of {', '.join(map(str, value))}")


def _messages(value: Sequence[Any]) -> str | list[Message] | None:
    if value and all(isinstance(one, str) for one in value):
        if len(value) == 1:
            return str(value[0])
        sides = ("user", "assistant")  # who takes turns begins with the question
        return [{"role": sides[n % 2], "content": text} for n, text in enumerate(value)]
    if not all(isinstance(one, Mapping) for one in value):
        raise WrongShape("text or a list of {role, content}")
    read = [message_in(one) for one in value]
    return [message for message in read if message is not None] or None


def message_in(one: Mapping[str, Any]) -> Message | None:
    """
    A message as OpenAI has it; None for one that says nothing to anybody.

    Raises:
        NotUnderstood: its role is unknown.
        WrongShape: it has none.
    """
    for key in ("data", "kwargs"):  # LangChain's, by two of its ways of writing them
        if isinstance(one.get(key), Mapping):
            one = {**one, **one[key]}
    named = _role_of(one)
    if named is None:
        raise WrongShape("text or a list of {role, content}")
    if named.lower() in _PASSED_OVER:
        return None
    kept = {key: one[key] for key in KEPT if one.get(key) is not None}
    if "role" not in one and kept.get("type") == named and named != "function_call":
        del kept["type"]
    return {"role": role_named(named), "content": _content_of(one), **kept}


def role_named(name: str) -> str:
    """
    OpenAI's name of a role.

    Raises:
        NotUnderstood: the role is unknown.
    """
    role = ROLES.get(name.strip().lower())
    if role is None:
        raise NotUnderstood(f"role {name[:40]!r} is not known")
    return role


def _role_of(one: Mapping[str, Any]) -> str | None:
    for key in ROLE_KEYS:
        value = one.get(key)
        if isinstance(value, Mapping):  # ChatGPT's own export
            value = value.get("role")
        if isinstance(value, str):
            return value
    return None


def _content_of(one: Mapping[str, Any]) -> Any:
    content = next((one[key] for key in CONTENT_KEYS if one.get(key) is not None), None)
    if isinstance(content, Mapping):
        content = content.get("parts", content.get("text", content.get("content")))
    if isinstance(content, list):
        content = [_part(part) for part in content]
    return content


def _part(part: Any) -> Any:
    """A part of a message; what Gemini hands to a tool as Anthropic writes it."""
    call = part.get("functionCall") if isinstance(part, Mapping) else None
    return {"type": "tool_use", "input": call.get("args")} if isinstance(call, Mapping) else part


def _zipped(value: Mapping[str, Any]) -> list[Message] | None:
    """A struct of columns, {"role": [...], "content": [...]}, as the rows that it is."""
    lists = {key: it for key, it in value.items() if isinstance(it, list)}
    if not any(key in lists for key in ROLE_KEYS) or len({len(it) for it in lists.values()}) != 1:
        return None
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


def _chat_in_text(text: str) -> Any:
    """
    The messages or the body that a text is the JSON of (or Python's spelling, as pandas writes it).

    None for every other text, whatever it looks like.
    """
    start = text.lstrip()[:1]
    if start == '"':  # JSON in JSON
        with suppress(ValueError, RecursionError):
            inner = json.loads(text)
            return _chat_in_text(inner) if isinstance(inner, str) else None
    if start not in ("[", "{") or not start:
        return None
    try:
        value = json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        if not _CHAT_TEXT.match(text) or error.msg == "Extra data":
            return None
        value = _python_in(text)
        if value is None and (len(text) - error.pos < 3 or text.rstrip().endswith(("}]", "}"))):
            raise NotUnderstood("messages in JSON text that is cut short or broken") from None
    except (ValueError, RecursionError):
        return None
    return value if _is_chat(value) else None


def _python_in(text: str) -> Any:
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text.strip())
    return None


def _is_chat(value: Any) -> bool:
    """Whether a loaded text is surely a chat: messages of which one has a known role."""
    if isinstance(value, list):
        return (
            bool(value)
            and all(isinstance(one, Mapping) for one in value)
            and any(
                (_role_of(one) or "").lower() in ROLES
                and (_content_of(one) is not None or "tool_calls" in one)
                for one in value
            )
        )
    if not isinstance(value, Mapping):
        return False
    if (_role_of(value) or "").lower() in ROLES and _content_of(value) is not None:
        return "role" in value or "from" in value
    return _zipped(value) is not None or any(_is_chat(value.get(key)) for key in CHAT_KEYS)


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
    loaded = _chat_in_text(text)
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
        roles = {(_role_of(one) or "").lower() for one in value}
        if not roles & ROLES.keys() and all(
            {"text", "input", "functionCall"} & one.keys() for one in value
        ):
            return Answer(answer_text({"content": [_part(one) for one in value]}))
        messages = _messages(value)
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
    if (messages := _zipped(value)) is not None:
        return _last_of(messages)
    role = (_role_of(value) or "").lower()
    content = _content_of(value)
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


FINISH_KEYS = ("finish_reason", "finishReason", "stop_reason", "done_reason")


def _finish(reason: str | None) -> str | None:
    """As OpenAI spells it: "length" is what a limit cut short."""
    return "length" if (reason or "").lower() in ("length", "max_tokens") else reason


def asked_again(message: Message) -> Message:
    """A message as an endpoint takes it: without the answer's thoughts and what logs add."""
    kept = {key: message[key] for key in ASKED_AGAIN if message.get(key) is not None}
    return {"role": message["role"], "content": message.get("content"), **kept}


def prompt_in_chat(asked: str | list[Message] | None) -> str | None:
    """What a ranker reads of messages; a text is its own."""
    return prompt_of(asked) if isinstance(asked, list) else asked
