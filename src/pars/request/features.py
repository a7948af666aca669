"""
What a request tells of its answer's length beside the words of its prompt: who asks, and how.

Knowing the caller is worth more than reading the prompt: an application sends the same system
prompt, tools and limits with every request, and gets answers of its own kind. All of it is in the
request, and in a logged row of the same shape, so replaying a log and serving share this reader.
Values are plain text here; whoever keeps them hashes them under a secret first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pars.request.conversation import Before, split_note, text_of
from pars.request.fields import fields_of
from pars.request.prompts import Prompt, Request
from pars.request.token_counts import CHARS_PER_TOKEN

MAX_VALUE_CHARS = 4096  # of one fact: of a longer system prompt, say, its start
MAX_NAMES = 16  # of tools, stop texts and the like
# Fields whose small values tell how an application asks.
SWITCHES = (
    *("temperature", "top_p", "stream", "n", "best_of", "tool_choice", "reasoning_effort"),
    *("ignore_eos", "min_tokens"),
)
WHO = ("model", "user", "safety_identifier", "prompt_cache_key")
# Who asked, as logs name it beside what a request itself says; the first that a row has.
CALLER_FIELDS = ("api_key", "application", "app", "caller", "tenant", "team", "source", "dataset")
REQUEST_FIELDS = ("request", "body", "request_body")
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Signals:
    """
    What a predictor may know of a request.

    Attributes:
        text: The prompt's own words; "" where there are none.
        facts: "name=value" of who asks and how, the caller's identity first.
        before: The answers before in the conversation.
        num_prompt_tokens: Of prompt and history together, as far as known.
    """

    text: str
    facts: tuple[str, ...]
    before: Before
    num_prompt_tokens: float

    @classmethod
    def from_openai(
        cls,
        body: dict[str, Any] | str | bytes,
        path: str = "/v1/chat/completions",
        *,
        api_key: str = "",
    ) -> "Signals":
        """
        The signals of an OpenAI-style request, read as the gateway reads it.

        Args:
            body: The body, parsed or as JSON.
            path: Where it is sent.
            api_key: Of the client, who is told apart by it.

        Raises:
            ParsError: the body is no JSON object, or the path generates no answers.
        """
        fields = fields_of(body)
        return signals_of(path, fields, Request.from_openai(fields, path), api_key)


def signals_of(path: str, fields: dict[str, Any], request: Request, api_key: str = "") -> Signals:
    """
    The signals of a request that was read from `fields`.

    Total: an odd value tells nothing.

    Args:
        api_key: As the client sent it; it never leaves the process in clear.
    """
    first = request.prompts[0]
    before, text = split_note(first.text or "")
    facts = [f"path={path.rpartition('/v1/')[2] or path}"]
    if api_key:
        facts.append(f"key={api_key}")
    facts += [f"{name}={_short(fields[name])}" for name in WHO if _is_told(fields, name)]
    facts += [f"system={it}" for it in (_system_prompt(fields),) if it]
    facts += [f"{name}={_short(fields[name])}" for name in SWITCHES if _is_told(fields, name)]
    facts += _limits(fields) + _shapes(fields)
    facts.append(f"turns={min(before.num_answers, 8)}")
    if before.num_answers:
        facts.append(f"last={_half_octave(before.last_chars)}")
    if before.num_answers > 1:
        facts.append(f"second_last={_half_octave(before.second_last_chars)}")
    num_tokens = sum(prompt.num_tokens for prompt in request.prompts)
    return Signals(text, tuple(facts), before, num_tokens)


def without_limits(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields but those that set how long an answer may, or must, become."""
    hidden = {*LIMITS, "min_tokens", "ignore_eos"}
    return {name: value for name, value in fields.items() if name not in hidden}


def signals_of_row(values: Mapping[str, Any], prompt: str) -> Signals:
    """What a logged row tells of its request: what it holds of the body, and who asked."""
    asked: Mapping[str, Any] = next(
        (values[it] for it in REQUEST_FIELDS if isinstance(values.get(it), dict)), {}
    )
    request = Request((Prompt(prompt, len(prompt) / CHARS_PER_TOKEN),))
    caller = next((str(values[it]) for it in CALLER_FIELDS if values.get(it)), "")
    return signals_of(
        str(values.get("path") or "/v1/chat/completions"), {**values, **asked}, request, caller
    )


def caller_of(fields: dict[str, Any], api_key: str = "") -> str:
    """Who answers for a request: its API key, else its user, else its model."""
    if api_key:
        return f"key={api_key}"
    for name in ("user", "model"):
        if _is_told(fields, name):
            return f"{name}={_short(fields[name])}"
    return ""


def _is_told(fields: dict[str, Any], name: str) -> bool:
    return isinstance(fields.get(name), str | int | float)


def _short(value: Any) -> str:
    return str(value)[:MAX_VALUE_CHARS]


def _system_prompt(fields: dict[str, Any]) -> str:
    for name in ("system", "instructions"):
        if text := text_of(fields.get(name)):
            return text[:MAX_VALUE_CHARS]
    messages = fields.get("messages", fields.get("input"))
    first = messages[0] if isinstance(messages, list) and messages else None
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        return text_of(first.get("content"))[:MAX_VALUE_CHARS]
    return ""


def _limits(fields: dict[str, Any]) -> list[str]:
    limits = [fields[name] for name in LIMITS if isinstance(fields.get(name), int | float)]
    return [f"limit={_half_octave(limits[0])}"] if limits else []


def _shapes(fields: dict[str, Any]) -> list[str]:
    """Tools by their names, the format that is asked for, switches of the chat template, stops."""
    facts = []
    tools = fields.get("tools")
    if isinstance(tools, list) and tools:
        names = [_tool_name(tool) for tool in tools[:MAX_NAMES]]
        facts += [f"tools={','.join(names)}", f"num_tools={min(len(tools), MAX_NAMES)}"]
    for name in ("response_format", "thinking", "reasoning", "chat_template_kwargs", "metadata"):
        value = fields.get(name)
        if isinstance(value, dict):
            told = [f"{key}:{it}" for key, it in value.items() if isinstance(it, str | int | float)]
            facts.append(f"{name}={','.join(told[:MAX_NAMES])}"[:MAX_VALUE_CHARS])
    stop = fields.get("stop")
    if isinstance(stop, str | list) and stop:
        facts.append(f"stop={_short(stop[:MAX_NAMES])}")
    return facts


def _tool_name(tool: Any) -> str:
    if not isinstance(tool, dict):
        return "?"
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else tool.get("name")
    return str(name)[:64]


def _half_octave(value: float) -> int:
    return int(2 * math.log2(1 + min(max(value, 0.0), 1e9))) if value == value else 0
