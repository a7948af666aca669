"""
Chats in the shapes that logs and data sets give them, as OpenAI's messages.

    asked_in([{"from": "human", "value": "Why?"}])     # [{"role": "user", "content": "Why?"}]

Read are messages of OpenAI, Anthropic, Gemini (`parts`), ShareGPT (`from`, `value`) and LangChain
(`type`, `data`); lists and structs of columns of them; whole bodies of requests; and the
JSON text of any of these. A text that merely looks like JSON stays the text that it is.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pars.learn.data.fields import kind_of
from pars.request.conversation import prompt_of

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


def asked_in(value: Any) -> str | list[Message] | None:
    """
    What was asked: a text, or messages with roles of OpenAI's; None where there is nothing.

    Raises:
        NotUnderstood: a message has an unknown role, or JSON text of messages is broken.
        WrongShape: it is neither text nor messages nor a body with either.
    """
    if isinstance(value, str):
        loaded = chat_in_text(value)
        return value if loaded is None else asked_in(loaded)
    if isinstance(value, Mapping):
        return _asked_in_body(value)
    if isinstance(value, list):
        return messages_in(value)
    if value is None:
        return None
    raise WrongShape(f"text, not {kind_of(value)}")


def _asked_in_body(value: Mapping[str, Any]) -> str | list[Message] | None:
    if (messages := zipped(value)) is not None:
        return messages_in(messages)
    if role_of(value) is not None and content_of(value) is not None:
        return messages_in([value])
    known = [key for key in ASKED_KEYS if key in value]
    for key in known:
        if asked := asked_in(value[key]):
            return asked
    if known or not value:
        return None
    raise WrongShape(f"text or messages, not an object of {', '.join(map(str, value))}")


def messages_in(value: Sequence[Any]) -> str | list[Message] | None:
    """The messages of a list: of messages, of turns, or of one text alone."""
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
    named = role_of(one)
    if named is None:
        raise WrongShape("text or a list of {role, content}")
    if named.lower() in _PASSED_OVER:
        return None
    kept = {key: one[key] for key in KEPT if one.get(key) is not None}
    if "role" not in one and kept.get("type") == named and named != "function_call":
        del kept["type"]
    return {"role": role_named(named), "content": content_of(one), **kept}


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


def role_of(one: Mapping[str, Any]) -> str | None:
    """Who says a message, as the message has it."""
    for key in ROLE_KEYS:
        value = one.get(key)
        if isinstance(value, Mapping):  # ChatGPT's own export
            value = value.get("role")
        if isinstance(value, str):
            return value
    return None


def content_of(one: Mapping[str, Any]) -> Any:
    """What a message says: text, or parts that have some."""
    content = next((one[key] for key in CONTENT_KEYS if one.get(key) is not None), None)
    if isinstance(content, Mapping):
        content = content.get("parts", content.get("text", content.get("content")))
    if isinstance(content, list):
        content = [part_in(part) for part in content]
    return content


def part_in(part: Any) -> Any:
    """A part of a message; what Gemini hands to a tool as Anthropic writes it."""
    call = part.get("functionCall") if isinstance(part, Mapping) else None
    return {"type": "tool_use", "input": call.get("args")} if isinstance(call, Mapping) else part


def zipped(value: Mapping[str, Any]) -> list[Message] | None:
    """A struct of columns, {"role": [...], "content": [...]}, as the rows that it is."""
    lists = {key: it for key, it in value.items() if isinstance(it, list)}
    if not any(key in lists for key in ROLE_KEYS) or len({len(it) for it in lists.values()}) != 1:
        return None
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


def chat_in_text(text: str) -> Any:
    """
    The messages or the body that a text is the JSON of (or Python's spelling, as pandas writes it).

    None for every other text, whatever it looks like.
    """
    start = text.lstrip()[:1]
    if start == '"':  # JSON in JSON
        with suppress(ValueError, RecursionError):
            inner = json.loads(text)
            return chat_in_text(inner) if isinstance(inner, str) else None
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
                (role_of(one) or "").lower() in ROLES
                and (content_of(one) is not None or "tool_calls" in one)
                for one in value
            )
        )
    if not isinstance(value, Mapping):
        return False
    if (role_of(value) or "").lower() in ROLES and content_of(value) is not None:
        return "role" in value or "from" in value
    return zipped(value) is not None or any(_is_chat(value.get(key)) for key in CHAT_KEYS)


def asked_again(message: Message) -> Message:
    """A message as an endpoint takes it: without the answer's thoughts and what logs add."""
    kept = {key: message[key] for key in ASKED_AGAIN if message.get(key) is not None}
    return {"role": message["role"], "content": message.get("content"), **kept}


def prompt_in_chat(asked: str | list[Message] | None) -> str | None:
    """What a ranker reads of messages; a text is its own."""
    return prompt_of(asked) if isinstance(asked, list) else asked
