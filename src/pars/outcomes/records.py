"""
The outcomes of finished requests: one JSON line each, in a folder that processes append to.

    DIR/
    ├── outcomes-20261124T150405Z-417-000001.jsonl   `Outcome`s; by start, process and number
    ├── prompts-20261124T150405Z-417-000001.jsonl    scored texts, if asked for; for a time
    └── key                                          of the hash that stands for a text

`outcomes.writer` writes them. Reading takes what a killed process or a full disk leaves: a line
that is cut or damaged is counted and left out, a field of a later version is ignored.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pars.errors import DataError

OUTCOMES, PROMPTS, SUFFIX = "outcomes-", "prompts-", ".jsonl"
KEY_FILE = "key"
LENGTH = "length"  # as engines name the end at a limit
CUT_SHORT = (LENGTH, "abort", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    One finished request. What is not known is None.

    Attributes:
        arrival_s: Unix time at which the body was in.
        model: As the request names it.
        decision: As counted in pars_decisions_total.
        ranker: Fingerprint of the ranker that scored it.
        score: The ranker's raw score of the first prompt.
        expected_tokens: Of one answer to the first prompt, by calibration, before limits.
        max_tokens: The request's own limit on an answer.
        num_answers: To each prompt.
        key: Its place in the engine's queue: smaller goes first.
        seen_prompt_tokens: Of all prompts, as texts and token ids show.
        prompt_tokens, answer_tokens: As the engine counted them; of all prompts, of all answers.
        is_exact: False: the events of a stream were counted, for want of a better number.
        finish_reason: "stop", "length", "tool_calls"; "abort": the client left; "error": the
            answer broke off. Of several answers the one that was cut short.
        wait_s: In the engine's queue where the engine tells, else until the answer's first byte.
        engine_wait_s: From its being handed on until the answer's first byte; None where either
            moment is not known well, since this process was busy with other things.
        total_s: From arrival to the answer's last byte, by a clock that is never set.
        limits_are_ends: Whoever reaches a limit has ended by himself, as in benchmarks.
        prompt_key: A keyed hash of the scored text: equal texts can be told without the text.
        prompt: The scored text, where it was kept and is not too old.
    """

    arrival_s: float
    path: str
    decision: str
    model: str | None = None
    ranker: str | None = None
    score: float | None = None
    expected_tokens: float | None = None
    max_tokens: int | None = None
    num_answers: int = 1
    num_prompts: int = 1
    key: int | None = None
    seen_prompt_tokens: float | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    is_exact: bool = False
    finish_reason: str | None = None
    status: int | None = None
    wait_s: float | None = None
    engine_wait_s: float | None = None
    total_s: float | None = None
    limits_are_ends: bool | None = None
    prompt_key: str | None = None
    prompt: str | None = None

    @property
    def is_censored(self) -> bool:
        """Whether the answer was cut short: it would have become `answer_tokens` or longer."""
        failed = self.status is not None and self.status >= 400
        if self.limits_are_ends and self.finish_reason == LENGTH:
            return failed
        return failed or self.finish_reason in CUT_SHORT

    @property
    def is_answered(self) -> bool:
        """Whether an answer came, and it is known how long it became."""
        came = self.status is not None and self.status < 400
        return came and bool(self.answer_tokens) and self.total_s is not None

    @property
    def known_prompt_tokens(self) -> float | None:
        """By the engine's count, else by what its texts show."""
        return self.seen_prompt_tokens if self.prompt_tokens is None else self.prompt_tokens

    def to_line(self) -> bytes:
        """The outcome as a line of JSON, without its prompt and without what is not known."""
        values = {name: getattr(self, name) for name in _KINDS if name != "prompt"}
        return json_line({name: value for name, value in values.items() if value is not None})

    @classmethod
    def from_line(cls, line: bytes) -> tuple["Outcome", bool]:
        """
        The outcome in a line of JSON, and whether the line has fields that are not known here.

        Raises:
            ValueError: the line is cut, damaged or lacks a field that must be there.
        """
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        known = {name: value for name, value in values.items() if name in _KINDS}
        for name, value in known.items():
            if not _is_kind(value, _KINDS[name]):
                raise ValueError(f"{name} is {value!r}")
        try:
            return cls(**known), len(known) < len(values)
        except TypeError as error:
            raise ValueError(str(error)) from None


def _kinds() -> dict[str, tuple[type, ...]]:
    hints = get_type_hints(Outcome)
    return {it.name: get_args(hints[it.name]) or (hints[it.name],) for it in fields(Outcome)}


_KINDS = _kinds()


def _is_kind(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a JSON value is of one of `kinds`: a whole number is a float too, a bool is none."""
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int | float) and float in kinds:
        return math.isfinite(value)
    return isinstance(value, kinds)


def json_line(values: dict[str, Any]) -> bytes:
    """A line of JSON in ASCII: no text can break it, not even half of a surrogate pair."""
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomesRead:
    """
    What `read_outcomes` found.

    Attributes:
        outcomes: By arrival.
        num_files: That hold outcomes.
        num_damaged: Lines, of outcomes or prompts, that are cut or no such thing.
        num_newer: Outcomes with fields that only a later pars knows.
    """

    outcomes: list[Outcome]
    num_files: int
    num_damaged: int
    num_newer: int


def read_outcomes(folder: Path) -> OutcomesRead:
    """
    All outcomes in `folder`, with their prompts where those are there. May be written to meanwhile.

    Raises:
        DataError: there is no such folder, or a file in it cannot be read.
    """
    if not folder.is_dir():
        raise DataError.at(folder, "no such folder of outcomes (PARS_OUTCOMES names one)")
    prompts: dict[str, str] = {}
    num_damaged = num_newer = 0
    for line in _lines(segments(folder, PROMPTS)):
        try:
            values = json.loads(line)
            prompts[values["prompt_key"]] = str(values["prompt"])
        except (ValueError, TypeError, KeyError):
            num_damaged += 1
    outcomes = []
    files = segments(folder, OUTCOMES)
    for line in _lines(files):
        try:
            outcome, is_newer = Outcome.from_line(line)
        except (ValueError, RecursionError):
            num_damaged += 1
            continue
        num_newer += is_newer
        if outcome.prompt_key in prompts:
            outcome = replace(outcome, prompt=prompts[outcome.prompt_key])
        outcomes.append(outcome)
    outcomes.sort(key=lambda outcome: outcome.arrival_s)
    return OutcomesRead(
        outcomes=outcomes, num_files=len(files), num_damaged=num_damaged, num_newer=num_newer
    )


def segments(folder: Path, kind: str) -> list[Path]:
    """The files of outcomes or of prompts in `folder`, oldest first."""
    return sorted(folder.glob(f"{kind}*{SUFFIX}"))


def _lines(files: list[Path]) -> Iterator[bytes]:
    for path in files:
        try:
            with path.open("rb") as file:
                yield from (line for line in file if line.strip())
        except FileNotFoundError:  # its writer has just made room
            continue
        except OSError as error:
            raise DataError.at(path, f"cannot be read: {error.strerror or error}") from error
