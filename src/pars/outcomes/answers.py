"""
Reads off an answer that passes by how long it was and why it ended; changes and delays no byte.

Three kinds of body tell it, of OpenAI's, Anthropic's and SGLang's interfaces: JSON with its usage,
a stream of events that ends with its usage, and a stream without, whose events are counted. vLLM
sends an event a token then, but not where a token is no text yet, or two come at once.

A stream's events are counted by their bytes. Only those are parsed that say something: of hundreds
the one that ends an answer and those that tell usage. In JSON a quotation mark inside a text is
escaped, so that no text can look like such a field.
"""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pars.outcomes.answer_fields import (
    has_token,
    json_of,
    reasons_of,
    sum_of,
    usage_object_of,
    usage_of,
)
from pars.request.body import ByteBudget

MAX_HELD_BYTES = 256 << 10  # of a JSON body, or of one line of a stream
EVENTS_A_TOKEN, EVENTS_BESIDES = 2, 8  # beyond what any engine sends for a number of tokens

# Why the length of an answer is known, or is not.
KNOWN = ("engine", "usage", "events")
UNKNOWN = (
    "refused",  # status 400 or more
    "client_left",
    "cut_short",  # by the upstream, in the middle
    "no_answer",
    "compressed",
    "not_json",  # nor events: HTML, say
    "too_large",
    "no_usage",
    "bad_usage",  # no count, or one that the stream's events belie
)

CUT_SHORT_FIRST = ("error", "abort", "length")  # one answer of several that did not end by itself

# Every event is searched for an ending; for all that says something those at both ends of a stream.
NUM_FIRST_EVENTS = 16
NUM_LAST_BLOCKS = 4
_ENDS = re.compile(rb'reason": ?["{]')
_SPEAKS = re.compile(rb'"role":|"error":|reason": ?["{]')
_TELLS_USAGE = re.compile(rb'"usage": ?\{|"meta_info":')
_SAYS = re.compile(b"|".join((_SPEAKS.pattern, _TELLS_USAGE.pattern, rb"\[DONE\]")))


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFacts:
    """
    What an answer told.

    Attributes:
        known: By what the length is known, or why it is not: one of KNOWN or UNKNOWN.
        prompt_tokens, answer_tokens: Of all prompts and all answers; None if not known.
        is_exact: Whether somebody counted tokens, not events.
        finish_reason: As in `Outcome`.
    """

    known: str
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    is_exact: bool = False
    finish_reason: str | None = None


class Answer:
    """
    One answer, told piece by piece.

    Attributes:
        status: None before its head.
        has_begun: A byte of its body has come.
        is_whole: Its end has come.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self.status: int | None = None
        self.has_begun = False
        self.is_whole = False
        self._body: _Json | _Events | None = None
        self._unknown: str | None = "no_answer"
        self._budget = budget

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """The status and headers."""
        self.status = status
        fields = {name.lower(): value.lower() for name, value in headers}
        kind = fields.get(b"content-type", b"").partition(b";")[0].strip()
        self._unknown = None
        if status >= 400:
            self._unknown = "refused"
        elif fields.get(b"content-encoding", b"identity") != b"identity":
            self._unknown = "compressed"
        elif kind == b"text/event-stream":
            self._body = _Events(self._budget)
        elif kind == b"application/json" or kind.endswith(b"+json"):
            self._body = _Json(self._budget)
        else:
            self._unknown = "not_json"

    def piece(self, data: bytes, *, is_last: bool) -> None:
        """Some of the body."""
        self.has_begun = self.has_begun or bool(data)
        self.is_whole = is_last
        if self._body is not None:
            self._body.feed(data)

    def facts(self, *, client_left: bool) -> AnswerFacts:
        """
        What it told, once nothing more comes. Gives back what was held; call it once.

        Args:
            client_left: Before the end. What an engine says to nobody then does not count.
        """
        told = AnswerFacts(
            known=self._unknown or "no_answer",
            finish_reason="error" if self.status is None else None,
        )
        broke_off = False
        if self._body is not None:
            told = self._body.told()
            broke_off = self._body.broke_off or not self.is_whole
            self._body.give_back()
        if client_left:
            return replace(told, known="client_left", finish_reason="abort")
        if broke_off:
            return replace(told, known="cut_short", finish_reason="error")
        return told


class _Body:
    """What both kinds of body have in common: reasons, usage, and bytes held for a while."""

    def __init__(self, budget: ByteBudget) -> None:
        self.broke_off = False
        self._budget = budget
        self._num_held = 0
        self._reasons: list[str] = []

    def _hold(self, num_bytes: int) -> bool:
        """Whether so many bytes in all may be held by this body."""
        has_room = self._budget.take(num_bytes - self._num_held)
        self._num_held = num_bytes
        return has_room and num_bytes <= MAX_HELD_BYTES

    def give_back(self) -> None:
        self._budget.give_back(self._num_held)
        self._num_held = 0

    def _reason(self) -> str | None:
        for reason in CUT_SHORT_FIRST:
            if reason in self._reasons:
                return reason
        return self._reasons[0] if self._reasons else None


class _Json(_Body):
    def __init__(self, budget: ByteBudget) -> None:
        super().__init__(budget)
        self._pieces: list[bytes] = []
        self._is_too_large = False

    def feed(self, data: bytes) -> None:
        if self._is_too_large:
            return
        self._pieces.append(data)
        if not self._hold(self._num_held + len(data)):
            self._is_too_large = True
            self._pieces.clear()
            self.give_back()

    def told(self) -> AnswerFacts:
        if self._is_too_large:
            return AnswerFacts(known="too_large")
        value = json_of(b"".join(self._pieces))
        answers = value if isinstance(value, list) else [value]
        if not answers or not all(isinstance(answer, dict) for answer in answers):
            return AnswerFacts(known="not_json")
        usages = []
        for answer in answers:
            self._reasons += reasons_of(answer)
            usages.append(usage_of(answer))
        prompt_tokens = sum_of(it[0] for it in usages)
        answer_tokens = sum_of(it[1] for it in usages)
        if answer_tokens is None:
            has_usage = any(usage_object_of(answer) for answer in answers)
            known = "bad_usage" if has_usage else "no_usage"
            return AnswerFacts(known=known, finish_reason=self._reason())
        return AnswerFacts(
            known="usage",
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            is_exact=True,
            finish_reason=self._reason(),
        )


class _Events(_Body):
    """A stream of server-sent events, in pieces cut anywhere."""

    def __init__(self, budget: ByteBudget) -> None:
        super().__init__(budget)
        self._rest = b""  # of a line whose end has not come
        self._last: deque[bytes] = deque(maxlen=NUM_LAST_BLOCKS)  # lines not yet looked through
        self._num_data = 0  # events, less those without a token
        self._num_deltas = 0  # events whose name says that they add something
        self._has_names = False
        self._is_done = False
        self._first_usage: bytes | None = None
        self._last_usage: bytes | None = None

    def feed(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n") + 1
        block, rest = data[:end], data[end:]
        if rest or self._rest:
            self._rest = rest if self._hold(len(rest)) else b""
        if block:
            self._count(block)

    def _count(self, block: bytes) -> None:
        """Whole lines. Cheap for an event that says nothing but its token."""
        self._num_data += block.count(b"\ndata:") + block.startswith(b"data:")
        is_early = self._num_data <= NUM_FIRST_EVENTS
        if is_early:
            self._has_names |= block.startswith(b"event:") or b"\nevent:" in block
        if self._has_names:
            self._num_deltas += block.count(b"delta\n") + block.count(b"delta\r\n")
        self._last.append(block)
        if (_SAYS if is_early else _ENDS).search(block):
            self._look_through()

    def _look_through(self) -> None:
        for block in self._last:
            for line in block.split(b"\n"):
                if line.startswith(b"data:"):
                    self._read(line[5:].strip())
        self._last.clear()

    def _read(self, line: bytes) -> None:
        if _TELLS_USAGE.search(line):
            self._first_usage = self._first_usage or line
            self._last_usage = line
        if line == b"[DONE]":
            self._is_done = True
            self._num_data -= 1
        elif _SPEAKS.search(line):
            event = json_of(line)
            if isinstance(event, dict):
                reasons = reasons_of(event)
                self._reasons += reasons
                self._num_data -= reasons in ([], ["error"]) and not has_token(event)

    def told(self) -> AnswerFacts:
        if self._rest:  # a last line that lacks its end
            self._count(self._rest + b"\n")
            self._rest = b""
        self._look_through()
        first, last = json_of(self._first_usage), json_of(self._last_usage)
        if isinstance(last, dict) and last.get("choices") == []:
            self._num_data -= 1
        num_events = max(0, self._num_deltas if self._has_names else self._num_data)
        prompt_tokens, answer_tokens = usage_of(last)
        if prompt_tokens is None and isinstance(first, dict):  # where Anthropic's interface has it
            prompt_tokens = usage_of(first.get("message"))[0]
        ends = bool(self._reasons) or self._is_done or answer_tokens is not None
        self.broke_off = "error" in self._reasons or not ends
        known = "events" if answer_tokens is None else "usage"
        if usage_object_of(last) and (
            answer_tokens is None or num_events > EVENTS_A_TOKEN * answer_tokens + EVENTS_BESIDES
        ):
            known, answer_tokens = "bad_usage", None
        return AnswerFacts(
            known=known,
            prompt_tokens=prompt_tokens,
            answer_tokens=num_events if answer_tokens is None else answer_tokens,
            is_exact=answer_tokens is not None,
            finish_reason=self._reason(),
        )
