"""Where the interfaces tell why an answer ended and how long it was; total functions of JSON."""

import json
from collections.abc import Iterable
from typing import Any

MAX_TOKENS = 1 << 31

REASONS = {
    "end_turn": "stop",  # Anthropic's names
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "max_output_tokens": "length",  # of /v1/responses
    "completed": "stop",
    "failed": "error",
    "cancelled": "abort",
}


def json_of(data: bytes | None) -> Any:
    """The JSON value, or None where it is none."""
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None


def reasons_of(event: dict[str, Any]) -> list[str]:
    """Why answers ended, as far as a body or an event says it."""
    delta, response = _object(event, "delta"), _object(event, "response")
    found = [_object(event, "meta_info").get("finish_reason")]
    found += [event.get("stop_reason"), delta.get("stop_reason")]
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        found.append(choice.get("finish_reason") if isinstance(choice, dict) else None)
    for answer in (event, response):
        if answer.get("object") == "response" and answer.get("status") not in (
            "in_progress",
            "queued",
        ):
            found.append(_object(answer, "incomplete_details").get("reason"))
            found.append(answer.get("status") if found[-1] is None else None)
    if event.get("error") or response.get("error"):
        found.append("error")
    names = (it.get("type") if isinstance(it, dict) else it for it in found)
    return [REASONS.get(name, name[:32]) for name in names if isinstance(name, str)]


def has_token(event: dict[str, Any]) -> bool:
    """Whether a choice of the event brings anything but its role."""
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and (
            choice.get("text")
            or any(value for name, value in _object(choice, "delta").items() if name != "role")
        ):
            return True
    return False


def usage_object_of(event: Any) -> dict[str, Any]:
    """Usage at the place where one of the interfaces has it; empty if nowhere."""
    if not isinstance(event, dict):
        return {}
    return (
        _object(event, "usage")
        or _object(_object(event, "response"), "usage")
        or _object(event, "meta_info")
    )


def usage_of(event: Any) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer; None where it is no count."""
    usage = usage_object_of(event)
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    answer = usage.get("completion_tokens", usage.get("output_tokens"))
    return _count_or_none(prompt), _count_or_none(answer)


def _count_or_none(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS
    return value if is_count else None


def sum_of(counts: Iterable[int | None]) -> int | None:
    """The sum, or None if one is not known."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _object(value: dict[str, Any], name: str) -> dict[str, Any]:
    field = value.get(name)
    return field if isinstance(field, dict) else {}
