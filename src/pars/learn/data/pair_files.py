"""
Pairs of prompts in a file: which of two has the longer answer.

    read_pairs(Path("train_pairs_length_diff_0.2.json"))
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pars.errors import DataError
from pars.learn.data.fields import field_of, text_of
from pars.learn.data.rows import read_rows

# The layout of a pair file, as json.dump(indent=2) writes it. No JSON text holds a raw newline,
# so these bytes can only stand where they mean what they say.
PAIRS_OPEN = b'[\n  {\n    "prompt_A": '
PAIRS_MIDDLE = b',\n    "prompt_B": '
PAIRS_LABEL = b',\n    "label": '
PAIRS_NEXT = b'\n  },\n  {\n    "prompt_A": '
PAIRS_CLOSE = b"\n  }\n]"


@dataclass(frozen=True, slots=True, eq=False)
class PairFile:
    """Pairs by index: pair k says whether prompts[index_a[k]] has the longer answer (label 1)."""

    prompts: list[str]
    index_a: NDArray[np.int64]
    index_b: NDArray[np.int64]
    labels: NDArray[np.int8]


def read_pairs(path: Path) -> PairFile:
    """
    The pairs of a pair file, each distinct prompt once.

    Raises:
        DataError: a row lacks prompt_A, prompt_B or label, or one has the wrong type.
    """
    return _parse_pairs(path) or _pairs_by_row(path)


def _pairs_by_row(path: Path) -> PairFile:
    ids: dict[str, int] = {}
    index_a: list[int] = []
    index_b: list[int] = []
    labels: list[int] = []
    for number, row in enumerate(read_rows(path), 1):
        for name, index in (("prompt_A", index_a), ("prompt_B", index_b)):
            prompt = text_of(row, name, path, number)
            index.append(ids.setdefault(prompt, len(ids)))
        label = field_of(row, "label", path, number)
        if label not in (0, 1) or not isinstance(label, int) or isinstance(label, bool):
            raise DataError.at(path, f"field 'label' must be 0 or 1, not {label!r}", row=number)
        labels.append(label)
    if not labels:
        raise DataError.at(path, "has no pairs")
    return _pair_file(list(ids), index_a, index_b, labels)


def _parse_pairs(path: Path) -> PairFile | None:
    """
    The pairs of a file in PARS's very layout, without building a dict a pair; else None.

    About twice as fast as json.loads and in a fraction of its memory: prompts are compared as
    bytes, and each distinct one is decoded once.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if not data.startswith(PAIRS_OPEN):
        return None
    ids: dict[bytes, int] = {}
    index_a, index_b, labels = [], [], bytearray()
    position = len(PAIRS_OPEN)
    while True:
        middle = data.find(PAIRS_MIDDLE, position)
        end = data.find(PAIRS_LABEL, middle)
        if middle < 0 or end < 0:
            return None
        index_a.append(ids.setdefault(data[position:middle], len(ids)))
        index_b.append(ids.setdefault(data[middle + len(PAIRS_MIDDLE) : end], len(ids)))
        position = end + len(PAIRS_LABEL)
        labels += data[position : position + 1]
        position += 1
        if not data.startswith(PAIRS_NEXT, position):
            break
        position += len(PAIRS_NEXT)
    if data[position:].strip() != PAIRS_CLOSE.strip() or not set(labels) <= set(b"01"):
        return None
    try:
        prompts = [json.loads(encoded) for encoded in ids]
    except ValueError:
        return None
    if not all(isinstance(prompt, str) for prompt in prompts) or len(set(prompts)) < len(prompts):
        return None  # the second: one prompt, escaped in two ways
    return _pair_file(prompts, index_a, index_b, [label - ord("0") for label in labels])


def _pair_file(
    prompts: list[str], index_a: list[int], index_b: list[int], labels: list[int]
) -> PairFile:
    a, b = np.array(index_a, dtype=np.int64), np.array(index_b, dtype=np.int64)
    return PairFile(prompts, a, b, np.array(labels, dtype=np.int8))
