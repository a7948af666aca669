"""
What an endpoint answered, judged; and how long to wait before asking again.

    reply_of(page, seconds, clean)       # a Reply; `problem` where usage tells no length
    delay_s(failure, attempt=0, share=0.5)
"""

import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 60.0


class Failure(Exception):
    """
    No answer.

    Attributes:
        kind: A few words that many failures share.
        is_final: Asking this prompt again is no use.
        is_hopeless: Nor is asking any other.
        retry_after_s: What the server asked us to wait.
    """

    def __init__(
        self,
        kind: str,
        excerpt: str = "",
        *,
        is_final: bool = False,
        is_hopeless: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{kind}: {excerpt}" if excerpt else kind)
        self.kind = kind
        self.is_final = is_final
        self.is_hopeless = is_hopeless
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Reply:
    """
    One answer.

    Attributes:
        answer_tokens: None where the server's number cannot be one; `problem` says why.
        thinking_tokens: Of the answer's, where the server tells.
    """

    answer_tokens: int | None
    prompt_tokens: int | None
    thinking_tokens: int | None
    finish_reason: str | None
    text: str
    thinking: str
    seconds: float
    problem: str | None = None


def reply_of(
    page: Any, seconds: float, clean: Callable[[str], str], max_tokens: int | None = None
) -> Reply:
    """
    The first choice of a page of chat or completions, with its usage.

    Args:
        clean: Applied to every text that is kept.
        max_tokens: What the answer could have at most, as it was asked for.

    Raises:
        TypeError, LookupError, AttributeError: it is no such page.
    """
    choice = page["choices"][0]
    told = choice["message"] if "message" in choice else {"content": choice["text"]}
    said = [told.get(name) for name in ("content", "reasoning_content", "reasoning")]
    answer, *thinking = [clean(one) if isinstance(one, str) else "" for one in said]
    usage = page.get("usage")
    problem = usage_problem(usage, bool(answer or any(thinking)), max_tokens)
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("completion_tokens_details")
    details = details if isinstance(details, dict) else {}
    reason = choice.get("finish_reason")
    return Reply(
        answer_tokens=None if problem else usage["completion_tokens"],
        prompt_tokens=_count(usage.get("prompt_tokens")),
        thinking_tokens=_count(details.get("reasoning_tokens")),
        finish_reason=clean(reason)[:40] if isinstance(reason, str) else None,
        text=answer,
        thinking=next(filter(None, thinking), ""),
        seconds=round(seconds, 3),
        problem=problem,
    )


def usage_problem(usage: Any, has_text: bool, max_tokens: int | None = None) -> str | None:
    """Why `usage` tells no number of answer tokens; None when it does."""
    if not isinstance(usage, dict):
        return "no usage"
    if "completion_tokens" not in usage:
        return "usage without completion_tokens"
    tokens = usage["completion_tokens"]
    if tokens is None:
        return "completion_tokens is null"
    if type(tokens) is not int:
        return "completion_tokens is not a whole number"
    if tokens < 0:
        return "completion_tokens is negative"
    if max_tokens is not None and tokens > max_tokens:
        return "completion_tokens is more than max_tokens"
    return "completion_tokens is 0, with text" if tokens == 0 and has_text else None


def retry_after_s(headers: Mapping[str, str], now_s: float | None = None) -> float | None:
    """
    Retry-After in seconds from now (RFC 9110, 10.2.3): a number, or a date less the server's Date.

    Args:
        now_s: Unix time, for servers that send no Date.  [default: the clock's]
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    with suppress(ValueError):
        until_s = parsedate_to_datetime(value).timestamp()
        with suppress(ValueError):  # by the server's own clock, which may be off
            return max(0.0, until_s - parsedate_to_datetime(headers.get("date", "")).timestamp())
        return max(0.0, until_s - (time.time() if now_s is None else now_s))
    return None


def delay_s(failure: Failure, attempt: int, share: float) -> float:
    """
    How long to wait before attempt number `attempt` + 1 (from 0) of a prompt.

    Doubling from half a second to a minute, half of it at random, so that many do not come back
    together; never less than the server asked for.

    Args:
        share: Uniform in [0, 1].
    """
    backoff_s = min(LONGEST_BACKOFF_S, math.ldexp(FIRST_BACKOFF_S, min(attempt, 60)))
    return (failure.retry_after_s or 0.0) + backoff_s * (0.5 + 0.5 * share)


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
