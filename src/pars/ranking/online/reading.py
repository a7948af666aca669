"""
A request's signals as numbers: ids of hashed features, and a short dense vector.

Ids are hashes under a secret (BLAKE2b of a word or fact, mixed for neighbours), so that what is
kept of a request tells neither its words nor who asked to anyone without the secret. Words are
hashed once and remembered; neighbours and first words are mixed from those by whole arrays.
"""

import hashlib
import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pars.ranking.word_vectors import word_vectors
from pars.request.features import Signals

SLOT_BITS = 18
NUM_SLOTS = 1 << SLOT_BITS
MAX_WORDS, NUM_LAST = 256, 64  # read of a prompt: its first 192 words and its last 64
MAX_CHARS = 6_000  # in which the first words are sought; a third of it for the last ones
MAX_KNOWN_WORDS = 1 << 16  # remembered; then the memory starts anew
WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|\n")
NUM_SURFACE, NUM_BEFORE, NUM_VECTOR, NUM_STACKED = 14, 5, 64, 1
NUM_DENSE = NUM_SURFACE + NUM_BEFORE + NUM_VECTOR + NUM_STACKED
VECTOR_SCALE = 2.5  # the mean of a prompt's word vectors, in the size of the other numbers
LOG_CHARS = 6.0  # of an answer of 400 characters

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_MIX_A, _MIX_B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_MIX_C = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT_A, _SHIFT_B = np.uint64(29), np.uint64(32)
_SLOT_SHIFT = np.uint64(64 - SLOT_BITS)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """
    A request as the model sees it.

    Attributes:
        text_ids: [num_features] slots of words, of neighbours, and of first words with who asks.
        fact_ids: [num_facts] slots of who asks and how.
        dense: [NUM_DENSE].
    """

    text_ids: IntArray
    fact_ids: IntArray
    dense: FloatArray


class Reader:
    """
    Reads signals under one secret. On one thread.

    Args:
        secret: At least 16 bytes; equal secrets give equal ids, in any process.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret[:64]
        vectors = word_vectors()
        self._rows = {word: row + 1 for row, word in enumerate(vectors.words)}
        self._vectors = np.vstack([np.zeros((1, NUM_VECTOR), np.float32), vectors.vectors])
        self._forget_words()

    def read(self, signals: Signals, stacked: float = 0.0) -> Reading:
        """
        Args:
            stacked: What an offline ranker says of the request, about -3 to 3; 0: nothing.
        """
        words = _words(signals.text)
        index = self._indices(words)
        keys = self._keys[index]
        facts = np.fromiter(map(self._hashed, signals.facts), np.uint64, len(signals.facts))
        crossed = _mixed(facts[:4, None], np.concatenate([self._start, keys[:2]])[None, :])
        rows = self._vector_rows[index]
        rows = rows[rows > 0]
        dense = np.empty(NUM_DENSE)
        dense[:NUM_SURFACE] = _surface(signals.text)
        dense[NUM_SURFACE : NUM_SURFACE + NUM_BEFORE] = _before(signals)
        vector = dense[NUM_SURFACE + NUM_BEFORE : -1]
        vector[:] = self._vectors[rows].mean(axis=0) * VECTOR_SCALE if len(rows) else 0.0
        dense[-1] = stacked
        return Reading(self._text_slots(keys, crossed.ravel()), _slots(facts), dense)

    def _text_slots(self, keys: NDArray[np.uint64], crossed: NDArray[np.uint64]) -> IntArray:
        """
        Words, neighbours (with start and end), the first one, two and three, the last, and the
        first words with who asks.
        """
        around = np.concatenate([self._start, keys, self._end])
        parts = [keys, _mixed(around[:-1], around[1:]), crossed]
        if len(keys):
            first = _mixed(keys[:1], self._first)
            parts += [first, _mixed(keys[-1:], self._last)]
            for at in range(1, min(3, len(keys))):
                first = _mixed(first, keys[at : at + 1])
                parts.append(first)
        return _distinct(_slots(np.concatenate(parts)))

    def _indices(self, words: list[str]) -> IntArray:
        """Where the words' hashes and vectors stand; new words are added."""
        if len(self._index) > MAX_KNOWN_WORDS:
            self._forget_words()
        found = [self._index.get(word, -1) for word in words]
        if -1 in found:
            for place, word in enumerate(words):
                if found[place] < 0:
                    found[place] = self._add(word)
        return np.array(found, dtype=np.int64)

    def _add(self, word: str) -> int:
        place = self._index.setdefault(word, len(self._index))
        self._keys[place] = self._hashed(word)
        self._vector_rows[place] = self._rows.get(word, 0)
        return place

    def _forget_words(self) -> None:
        size = MAX_KNOWN_WORDS + MAX_WORDS + 1
        self._index: dict[str, int] = {}
        self._keys = np.zeros(size, dtype=np.uint64)
        self._vector_rows = np.zeros(size, dtype=np.int64)
        marks = [
            np.array([self._hashed(f"\0{it}")], np.uint64) for it in ("start", "end", "1", "z")
        ]
        self._start, self._end, self._first, self._last = marks

    def _hashed(self, text: str) -> int:
        told = text.encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(told, digest_size=8, key=self._secret).digest())


def _words(text: str) -> list[str]:
    if len(text) <= MAX_CHARS:
        words = WORD.findall(text.lower())
        return (
            words if len(words) <= MAX_WORDS else words[: MAX_WORDS - NUM_LAST] + words[-NUM_LAST:]
        )
    first = WORD.findall(text[:MAX_CHARS].lower())[: MAX_WORDS - NUM_LAST]
    return first + WORD.findall(text[-MAX_CHARS // 3 :].lower())[-NUM_LAST:]


def _mixed(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each two hashes, which tells (a, b) from (b, a)."""
    mixed: NDArray[np.uint64] = (a * _MIX_A) ^ (b * _MIX_B)
    mixed ^= mixed >> _SHIFT_A
    mixed *= _MIX_C
    mixed ^= mixed >> _SHIFT_B
    return mixed


def _slots(hashes: NDArray[np.uint64]) -> IntArray:
    return (hashes >> _SLOT_SHIFT).astype(np.int64)


def _distinct(slots: IntArray) -> IntArray:
    """As numpy.unique, which takes twice as long for some hundred."""
    slots.sort()
    is_new = np.empty(len(slots), dtype=bool)
    is_new[:1] = True
    np.not_equal(slots[1:], slots[:-1], out=is_new[1:])
    return slots[is_new]


def _surface(text: str) -> tuple[float, ...]:
    """How long and of what kind the text is, each number around -1 to 1: [NUM_SURFACE]."""
    start, end = text[: MAX_CHARS // 2], text[-64:].rstrip()[-1:]
    num_chars = len(start) or 1
    size = math.log1p(len(text)) / 8 - 0.5
    return (
        1.0,
        size,
        4 * size * size,
        math.log1p(start.count(" ")) / 6 - 0.5,
        math.log1p(start.count("\n")) / 4,
        float("?" in start),
        math.log1p(sum(map(start.count, "0123456789"))) / 4,
        float(end == "?"),
        float(end == ":"),
        float(end == "."),
        float("```" in start),
        min(1.0, sum(map(start.count, "{}();=<>[]")) * 10 / num_chars),
        0.0 if start.isascii() else (len(start.encode("utf-8", "replace")) / num_chars - 1) / 2,
        float("\n\n" in start),
    )


def _before(signals: Signals) -> tuple[float, ...]:
    """The answers before, and how much prompt there is: [NUM_BEFORE]."""
    before = signals.before
    last = math.log1p(before.last_chars) - LOG_CHARS if before.num_answers else 0.0
    second = math.log1p(before.second_last_chars) - LOG_CHARS if before.num_answers > 1 else 0.0
    return (
        float(before.num_answers > 0),
        math.log1p(before.num_answers) / 2,
        last,
        second,
        math.log1p(signals.num_prompt_tokens) / 8 - 0.5,
    )
