"""
What the ranker that learns while it serves would have been worth on a log: a replay in its order.

Each row is predicted, then learned (prequential evaluation); at first with the bundled ranker's
word, as in the gateway. Beside the running tau-b stands the order of the last fifth of the rows,
which is never learned, after so many of the others.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pars.errors import DataError
from pars.learn.data.record_reader import FOUND, Names
from pars.learn.data.records import length_unit_of, read_records
from pars.learn.evaluation.tables import table
from pars.outcomes.records import CUT_SHORT
from pars.ranking.intervals import Estimate, tau_b_interval
from pars.ranking.online.bundled import BundledWord
from pars.ranking.online.ranker import OnlineRanker
from pars.ranking.order_metrics import pair_sums
from pars.request.features import Signals, signals_of_row

CHECKPOINTS = (100, 300, 1_000, 3_000, 10_000)
WINDOW = 1_000
LEAST_ROWS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """One row: what may be known when it is asked, and how long its answer became."""

    signals: Signals
    length: float
    is_censored: bool


@dataclass(frozen=True, slots=True)
class Window:
    """Rows `first` to `last` (from 1): what was predicted before each, against what came."""

    first: int
    last: int
    tau_b: Estimate
    coverage: float


@dataclass(slots=True)
class OnlineEvaluation:
    """
    Attributes:
        after: By number of rows learned: tau-b on the last fifth.
        after_on_unseen: The same on those of its rows whose prompt no learned row has.
        windows: The running tau-b.
        coverage: Share of answers inside the 80% interval, after the first thousand (or, of fewer
            rows, the first half).
        learning_us: Of processor time for a row: read, predicted and learned.
    """

    path: Path
    unit: str
    num_rows: int
    num_held_out: int
    num_unseen: int
    after: dict[int, Estimate] = field(default_factory=dict)
    after_on_unseen: dict[int, Estimate] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    coverage: float = math.nan
    learning_us: float = math.nan

    def as_json(self) -> dict[str, Any]:
        """For programs; what is not known is null."""
        return {
            "file": str(self.path),
            "length_unit": self.unit,
            "num_rows": self.num_rows,
            "num_held_out": self.num_held_out,
            "num_unseen": self.num_unseen,
            "tau_b_after": {str(n): it.as_json() for n, it in self.after.items()},
            "tau_b_after_on_unseen_prompts": {
                str(n): it.as_json() for n, it in self.after_on_unseen.items()
            },
            "windows": [
                {"first": it.first, "last": it.last, "tau_b": it.tau_b.as_json()}
                | {"coverage": _finite(it.coverage)}
                for it in self.windows
            ],
            "interval_coverage": _finite(self.coverage),
            "learning_us": _finite(self.learning_us),
        }


def evaluate_online(
    path: Path, *, names: Names = FOUND, where: Iterable[tuple[str, str]] = ()
) -> OnlineEvaluation:
    """
    Replay the file's rows in their order.

    Args:
        names: Of the fields of prompt, answer and length.
        where: (field, value) conditions on the rows.

    Raises:
        DataError: a row cannot be read, or there are fewer than twenty.
    """
    rows = list(_replayed(path, names, list(where)))
    if len(rows) < LEAST_ROWS:
        raise DataError.at(path, f"has {len(rows)} rows; a replay needs {LEAST_ROWS} or more")
    learned, held_out = rows[: -len(rows) // 5], rows[-len(rows) // 5 :]
    known = {row.signals.text for row in learned}
    unseen = [row for row in held_out if row.signals.text not in known]
    result = OnlineEvaluation(
        path, length_unit_of(path, names), len(rows), len(held_out), len(unseen)
    )
    ranker, bundled = OnlineRanker(b"a replay is not kept"), BundledWord()
    order_of = _HeldOut(bundled, held_out).order_of
    told: list[tuple[float, float, bool, bool]] = []  # predicted, came, cut short, inside
    began_s, spent_s = time.process_time(), 0.0
    for number, row in enumerate(learned, 1):
        guess = ranker.expect(row.signals, bundled.for_now(ranker, row.signals))
        ranker.learn(guess, row.length, is_lower_bound=row.is_censored)
        inside = guess.low_tokens <= row.length <= guess.high_tokens
        told.append((guess.log_tokens, row.length, row.is_censored, inside))
        if number in CHECKPOINTS or number == len(learned):
            spent_s += time.process_time() - began_s
            result.after[number] = order_of(ranker, held_out)
            result.after_on_unseen[number] = order_of(ranker, unseen)
            began_s = time.process_time()
    result.learning_us = spent_s / len(learned) * 1e6
    result.windows = [
        _window(first + 1, told[first : first + WINDOW]) for first in range(0, len(told), WINDOW)
    ]
    late = told[WINDOW:] if len(told) > 2 * WINDOW else told[len(told) // 2 :]
    result.coverage = _coverage(late)
    return result


def render(result: OnlineEvaluation) -> str:
    """The evaluation for people."""
    lines = [
        f"{result.path}: {result.num_rows:,} rows in {result.unit}, the last"
        f" {result.num_held_out:,} held out ({result.num_unseen:,} of them with prompts that no"
        " other row has)",
        "",
        *table(
            ["after own requests", "tau-b on the held-out rows", "on prompts never seen"],
            [
                [f"{number:,}", str(it), str(result.after_on_unseen[number])]
                for number, it in result.after.items()
            ],
        ),
        "",
        "Predicted, then learned:",
        *table(
            ["rows", "running tau-b", "inside the 80% interval"],
            [
                [f"{it.first:,} to {it.last:,}", str(it.tau_b), f"{it.coverage:.0%}"]
                for it in result.windows
            ],
        ),
        "",
        f"Interval coverage later on {result.coverage:.1%} (80% meant);"
        f" {result.learning_us:.0f} us of processor time a row, read, predicted and learned.",
    ]
    return "\n".join(lines)


def _replayed(path: Path, names: Names, where: list[tuple[str, str]]) -> Iterator[Replayed]:
    for values, row in read_records(path, names=names, where=where):
        yield Replayed(
            signals_of_row(values, row.prompt),
            row.answer_length,
            row.is_censored or values.get("finish") in CUT_SHORT,
        )


class _HeldOut:
    """Rows that are never learned, and the bundled ranker's word on each."""

    def __init__(self, bundled: BundledWord, rows: list[Replayed]) -> None:
        words = bundled.of_all([row.signals.text for row in rows])
        self._words = dict(zip(map(id, rows), words, strict=True))

    def order_of(self, ranker: OnlineRanker, rows: list[Replayed]) -> Estimate:
        """How well `ranker` orders some of the rows by now."""
        share = ranker.bundled_share
        scores = [
            ranker.expect(row.signals, share * self._words[id(row)]).log_tokens for row in rows
        ]
        return _tau_b(scores, [row.length for row in rows], [row.is_censored for row in rows])


def _tau_b(scores: list[float], lengths: list[float], is_censored: list[bool]) -> Estimate:
    if len(scores) < 2:
        return Estimate(math.nan, math.nan, math.nan)
    return tau_b_interval(pair_sums(scores, lengths, is_censored=is_censored))


def _window(first: int, told: list[tuple[float, float, bool, bool]]) -> Window:
    scores, lengths, is_censored, _ = (list(it) for it in zip(*told, strict=True))
    order = _tau_b(scores, lengths, is_censored)
    return Window(first, first + len(told) - 1, order, _coverage(told))


def _coverage(told: list[tuple[float, float, bool, bool]]) -> float:
    whole = [inside for _, _, is_censored, inside in told if not is_censored]
    return sum(whole) / len(whole) if whole else math.nan


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
