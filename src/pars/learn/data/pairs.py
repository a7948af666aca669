"""
The split of prompts into training and validation, and the drawing and writing of pairs.

The rules are PARS's (train_test_split of `datasets`, then rejection sampling of partners); NumPy
draws for all rows at once, and pairs are written from prompts that are each encoded once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring as _quoted  # with the quotes, as json.dump writes it
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pars.errors import DataError
from pars.files import utf8
from pars.learn.data.pair_files import (
    PAIRS_CLOSE,
    PAIRS_LABEL,
    PAIRS_MIDDLE,
    PAIRS_NEXT,
    PAIRS_OPEN,
)
from pars.learn.data.records import Row

TRIES_PER_PAIR = 10

Indices = NDArray[np.int64]

_PAIR_STREAM = 1  # keeps the draws apart from the split, which uses the seed alone
_ROWS_PER_DRAW = 16_384  # small enough that a block of draws stays in the processor's cache
_PAIRS_PER_WRITE = 1_024  # likewise: a hundred times more at once takes twice as long
_ROWS_PER_WRITE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pair k: row index_a[k] against row index_b[k]; label 1 where A's answer is longer."""

    index_a: NDArray[np.int32]
    index_b: NDArray[np.int32]
    labels: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)


def split_rows(num_rows: int, test_size: float, seed: int) -> tuple[Indices, Indices]:
    """
    Row indices for training and for validation, each in its split's order.

    The very split of `datasets.Dataset.train_test_split(test_size, seed=seed)`.
    """
    num_val = math.ceil(test_size * num_rows)
    if num_rows - num_val < 1:
        problem = f"{num_rows} rows, {num_val} of them for validation, leave none to train on"
        raise DataError(f"{problem}: give more rows or a smaller --test-size")
    order = np.random.default_rng(seed).permutation(num_rows)
    return order[num_val:], order[:num_val]


def split_groups(groups: Sequence[str], test_size: float, seed: int) -> tuple[Indices, Indices]:
    """`split_rows` over the distinct values of `groups` (one a row), so that none is in both."""
    ids: dict[str, int] = {}
    group = np.array([ids.setdefault(name, len(ids)) for name in groups], dtype=np.int64)
    train, val = split_rows(len(ids), test_size, seed)
    place = np.empty(len(ids), dtype=np.int64)
    place[val] = np.arange(len(val))
    place[train] = len(val) + np.arange(len(train))
    order = np.argsort(place[group], kind="stable")
    in_val = place[group[order]] < len(val)
    return order[~in_val], order[in_val]


def draw_pairs(
    lengths: Sequence[float],
    num_pairs: int,
    threshold: float,
    seed: int,
    *,
    is_censored: Sequence[bool] | None = None,
) -> Pairs:
    """
    For each row, in order, up to `num_pairs` partners whose lengths are far enough from its own.

    A try draws any row at random; it counts unless it is the row itself or
    |a - b| / max(a, b) < threshold, or the shorter answer was cut short. A row gets at most
    TRIES_PER_PAIR tries a wanted pair, so the number of pairs it ends with is distributed as in
    PARS's loop.
    """
    rng = np.random.default_rng([seed, _PAIR_STREAM])
    known = np.asarray(lengths, dtype=np.float64)
    # What was cut short may outlast everything: as the shorter one, it is apart from nothing.
    is_whole = ~np.asarray(is_censored or np.zeros(len(known)), dtype=bool)
    blocks = [(np.empty(0, np.int32), np.empty(0, np.int32))]
    for start in range(0, len(known) if num_pairs else 0, _ROWS_PER_DRAW):
        rows = np.arange(start, min(start + _ROWS_PER_DRAW, len(known)), dtype=np.int32)
        blocks.append(_draw_partners(rng, known, is_whole, rows, num_pairs, threshold))
    index_a, index_b = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return Pairs(index_a, index_b, known[index_a] > known[index_b])


def _draw_partners(
    rng: np.random.Generator,
    lengths: NDArray[np.float64],
    is_whole: NDArray[np.bool_],
    rows: NDArray[np.int32],
    num_pairs: int,
    threshold: float,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`num_pairs` tries for every row at once, then again for the rows that lack some."""
    kept_a, kept_b = [], []
    num_found = np.zeros(len(rows), dtype=np.int64)
    for _ in range(TRIES_PER_PAIR):
        partners = rng.integers(len(lengths), size=(len(rows), num_pairs), dtype=np.int32)
        passed = _is_apart(lengths[rows][:, None], lengths[partners], threshold)
        passed &= partners != rows[:, None]
        partner_is_shorter = lengths[partners] < lengths[rows][:, None]
        passed &= is_whole[np.where(partner_is_shorter, partners, rows[:, None])]
        rank = num_found[:, None] + np.cumsum(passed, axis=1)
        passed &= rank <= num_pairs
        kept_a.append(rows[np.nonzero(passed)[0]])
        kept_b.append(partners[passed])
        lacking = rank[:, -1] < num_pairs
        rows, num_found = rows[lacking], rank[lacking, -1]
        if not len(rows):
            break
    index_a = np.concatenate(kept_a)
    by_row = np.argsort(index_a, kind="stable")
    return index_a[by_row], np.concatenate(kept_b)[by_row]


def _is_apart(
    length_a: NDArray[np.float64], length_b: NDArray[np.float64], threshold: float
) -> NDArray[np.bool_]:
    longer = np.maximum(length_a, length_b)
    relative = np.abs(length_a - length_b)
    np.divide(relative, longer, out=relative, where=longer > 0)  # two empty answers differ by 0
    return relative >= threshold


def write_pairs(file: IO[bytes], prompts: Sequence[str], pairs: Pairs) -> None:
    """Write rows {prompt_A, prompt_B, label} in PARS's layout: json.dump with an indent of 2."""
    if not len(pairs):
        file.write(b"[]")
        return
    ends = [PAIRS_LABEL + label + PAIRS_NEXT for label in (b"0", b"1")]
    # One array of all that a file is made of, so that a single lookup strings a chunk together.
    parts = np.empty(len(prompts) + 3, dtype=object)
    parts[:] = [*(utf8(_quoted(prompt)) for prompt in prompts), PAIRS_MIDDLE, *ends]
    order = np.empty((_PAIRS_PER_WRITE, 4), dtype=np.intp)
    order[:, 1] = len(prompts)
    file.write(PAIRS_OPEN)
    for start in range(0, len(pairs), _PAIRS_PER_WRITE):
        chunk = slice(start, start + _PAIRS_PER_WRITE)
        in_order = order[: len(pairs.labels[chunk])]
        in_order[:, 0] = pairs.index_a[chunk]
        in_order[:, 2] = pairs.index_b[chunk]
        in_order[:, 3] = len(prompts) + 1 + pairs.labels[chunk]
        pieces = parts[in_order.ravel()].tolist()
        if start + _PAIRS_PER_WRITE >= len(pairs):
            pieces[-1] = pieces[-1].removesuffix(PAIRS_NEXT) + PAIRS_CLOSE
        file.write(b"".join(pieces))


def write_data(file: IO[bytes], rows: Sequence[Row]) -> None:
    """Write rows {task_id, prompt, answer_content, answer_length} in PARS's layout."""
    for start in range(0, len(rows), _ROWS_PER_WRITE):
        chunk = rows[start : start + _ROWS_PER_WRITE]
        file.write(utf8((",\n" if start else "[\n") + ",\n".join(map(_row_text, chunk))))
    file.write(b"\n]" if rows else b"[]")


def _row_text(row: Row) -> str:
    task_id = _quoted(row.task_id) if isinstance(row.task_id, str) else row.task_id
    known = {"category": row.category, "model": row.model, "finish_reason": row.finish_reason}
    more = "".join(
        f',\n    "{name}": {_quoted(text)}' for name, text in known.items() if text is not None
    )
    return (
        f'  {{\n    "task_id": {task_id},\n    "prompt": {_quoted(row.prompt)},\n'
        f'    "answer_content": {_quoted(row.answer_content)},\n'
        f'    "answer_length": {row.answer_length!r}{more}\n  }}'
    )
