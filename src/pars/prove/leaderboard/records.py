"""
A log as answered requests, and which of them train: whole conversations on one side or the other.

    data = read_answered(Path("log.jsonl"), Split(test_share=0.2))
    data.train, data.test
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pars.errors import DataError, ParsError
from pars.outcomes.records import CUT_SHORT
from pars.prove.rivals.predictor import Answered
from pars.request.features import signals_of_row
from pars.request.token_counts import CHARS_PER_TOKEN

CONVERSATION_FIELDS = ("conversation_id", "conversation", "session_id", "chat_id", "thread_id")
FEWEST = 50  # requests on either side
PARTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """
    How a file is parted.

    Attributes:
        conversation_field: Requests with one value of it stay together; None: the first known one.
        num_train, num_test: At most; None: all.
        names: Of the fields of prompt, answer and length; None: found.
    """

    test_share: float = 0.2
    num_train: int | None = None
    num_test: int | None = None
    seed: int = 0
    where: tuple[tuple[str, str], ...] = ()
    names: tuple[str | None, str | None, str | None] = (None, None, None)
    conversation_field: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise ParsError(f"--test-share must be between 0 and 1, not {self.test_share}")
        for name in ("num_train", "num_test"):
            value = getattr(self, name)
            if value is not None and value < FEWEST:
                option = "--" + name.replace("_", "-")
                raise ParsError(f"{option} must be at least {FEWEST}, not {value}")


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """One file's requests in its order; no conversation, and no message, stands in both parts."""

    name: str
    train: list[Answered]
    test: list[Answered]
    has_conversations: bool


def read_answered(path: Path, split: Split) -> Data:
    """
    All of the file's rows, parted.

    Raises:
        DataError: a row cannot be read, or a part has fewer than 50 requests.
    """
    from pars.learn.data.records import length_unit_of, read_records
    from pars.learn.training.calibration import TOKENS_PER_UNIT

    per_unit = TOKENS_PER_UNIT.get(length_unit_of(path, split.names), 1.0)
    requests, known = [], False
    rows = read_records(path, names=split.names, where=split.where)
    for number, (values, row) in enumerate(rows):
        field = split.conversation_field or next(
            (it for it in CONVERSATION_FIELDS if isinstance(values.get(it), str | int)), None
        )
        label = values.get(field) if field else None
        known = known or isinstance(label, str | int)
        told = values.get("prompt_tokens")
        requests.append(
            Answered(
                request_id=str(number),
                prompt=row.prompt,
                tokens=max(1.0, row.answer_length * per_unit),
                prompt_tokens=told
                if type(told) is int and told > 0
                else max(1, round(len(row.prompt) / CHARS_PER_TOKEN)),
                is_censored=row.is_censored or values.get("finish") in CUT_SHORT,
                model=row.model,
                conversation=f"{label}" if isinstance(label, str | int) else row.message,
                signals=signals_of_row(values, row.prompt),
            )
        )
    if split.conversation_field and not known:
        raise DataError.at(
            path, f"has no field {split.conversation_field!r} (--conversation-field)"
        )
    return _parted(path, requests, split, known)


def _parted(path: Path, requests: Sequence[Answered], split: Split, known: bool) -> Data:
    """By a checksum of the conversation, so that no other row moves one."""
    salt = f"{split.seed}:".encode()
    cut = split.test_share * PARTS
    is_test = [
        zlib.crc32(salt + it.conversation.encode("utf-8", "replace")) % PARTS < cut
        for it in requests
    ]
    test = [it for it, held_out in zip(requests, is_test, strict=True) if held_out]
    seen = {it.signals.text for it in test}
    train = [
        it
        for it, held_out in zip(requests, is_test, strict=True)
        if not held_out and it.signals.text not in seen
    ]
    parts = _some(train, split.num_train, split.seed), _some(test, split.num_test, split.seed)
    for name, part in zip(("train on", "judge by"), parts, strict=True):
        if len(part) < FEWEST:
            raise DataError.at(
                path, f"leaves {len(part)} requests to {name}: want {FEWEST} or more"
            )
    if len({it.tokens for it in parts[1]}) < 2:
        raise DataError.at(path, "all answers held out have one length, so there is no order")
    return Data(path.name.split(".")[0], *parts, known)


def _some(requests: list[Answered], count: int | None, seed: int) -> list[Answered]:
    """So many of them, drawn, in their order."""
    if count is None or count >= len(requests):
        return requests
    chosen = np.sort(np.random.default_rng(seed).permutation(len(requests))[:count])
    return [requests[int(place)] for place in chosen]
