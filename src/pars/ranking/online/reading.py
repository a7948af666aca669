"""
A request's signals as numbers: ids of hashed features, and a short dense vector.

Ids are hashes under a secret (BLAKE2b of a word or fact, mixed for neighbours), so that what is
kept of a request tells neither its words nor who asked to anyone without the secret. Words are
hashed once and remembered; neighbours and first words are mixed from those by whole arrays.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pars.ranking.online.words import MAX_CHARS, WordHashes
from pars.ranking.word_vectors import word_vectors
from pars.request.features import Signals

SLOT_BITS = 18
NUM_SLOTS = 1 << SLOT_BITS
NUM_CROSSED = 4  # facts that are crossed with the first words: the first, so who asks
MAX_FACTS, MAX_FACT_CHARS = 4096, 256  # whose hashes are remembered
NUM_SURFACE, NUM_BEFORE, NUM_VECTOR, NUM_STACKED = 14, 5, 32, 1  # of word vectors the main half
NUM_DENSE = NUM_SURFACE + NUM_BEFORE + NUM_VECTOR + NUM_STACKED
VECTOR_SCALE = 2.5  # the mean of a prompt's word vectors, in the size of the other numbers
LOG_CHARS = 6.0  # of an answer of 400 characters

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
HashArray = NDArray[np.uint64]

_A, _B, _C = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9
_ALL = (1 << 64) - 1
_MIX_A, _MIX_B, _MIX_C = np.uint64(_A), np.uint64(_B), np.uint64(_C)
_SHIFT_A, _SHIFT_B = np.uint64(29), np.uint64(32)
_SLOT_SHIFT = np.uint64(64 - SLOT_BITS)


class Reading(NamedTuple):
    """
    A request as the model sees it.

    Attributes:
        ids: [num_text + num_facts + num_crossed] slots: of words and neighbours, which all share;
            of who asks and how; and of the first words with who asks.
        num_text, num_facts: How many of the first two kinds.
        dense: [NUM_DENSE].
    """

    ids: IntArray
    num_text: int
    num_facts: int
    dense: FloatArray

    @property
    def caller(self) -> int:
        """The slot of who asks: behind the path, the first that is known; 0: nothing is."""
        at = self.num_text + 1
        return int(self.ids[at]) if self.num_facts > 1 else 0


class Reader:
    """
    Reads signals under one secret. On one thread.

    Args:
        secret: At least 16 bytes; equal secrets give equal ids, in any process.
    """

    def __init__(self, secret: bytes) -> None:
        vectors = word_vectors()
        self._vectors = np.zeros((len(vectors.words) + 1, NUM_VECTOR), np.float32)
        self._vectors[1:] = vectors.vectors[:, :NUM_VECTOR]
        self._words = WordHashes(
            secret, {word: row for row, word in enumerate(vectors.words, start=1)}
        )
        marks = [
            int.from_bytes(self._words.hashed(f"\0{it}"), "little") for it in ("start", "end", "1")
        ]
        self._start, self._end, self._first = marks
        self._last = int.from_bytes(self._words.hashed("\0z"), "little")
        self._facts: dict[str, bytes] = {}

    def read(self, signals: Signals, stacked: float = 0.0) -> Reading:
        """
        Args:
            stacked: What an offline ranker says of the request, about -3 to 3; 0: nothing.
        """
        keys, rows = self._words.of(signals.text)
        facts = np.frombuffer(b"".join(map(self._fact, signals.facts)), dtype="<u8")
        dense = np.empty(NUM_DENSE)
        dense[: -NUM_VECTOR - 1] = _surface(signals.text) + _before(signals)
        dense[-NUM_VECTOR - 1 : -1] = self._mean_vector(rows)
        dense[-1] = stacked
        pairs, crossed = self._pairs(keys, facts[:NUM_CROSSED])
        places = np.array(self._places(keys), np.uint64)
        text_ids = _distinct(_slots(np.concatenate([keys, pairs, places])))
        ids = np.concatenate([text_ids, _slots(facts), _slots(crossed)])
        return Reading(ids, len(text_ids), len(facts), dense)

    def _pairs(self, keys: HashArray, who: HashArray) -> tuple[HashArray, HashArray]:
        """Hashes of neighbours, with start and end; and of the first words with who asks."""
        num_words, num_crossed = len(keys), min(3, len(keys) + 1)
        num_pairs = num_words + 1 + len(who) * num_crossed
        around = np.empty(num_words + 2, np.uint64)
        around[0], around[1:-1], around[-1] = self._start, keys, self._end
        left, right = np.empty((2, num_pairs), np.uint64)
        left[: num_words + 1], right[: num_words + 1] = around[:-1], around[1:]
        left[num_words + 1 :].reshape(num_crossed, -1)[:] = who
        right[num_words + 1 :].reshape(num_crossed, -1)[:] = around[:num_crossed, None]
        mixed = _mixed(left, right)
        return mixed[: num_words + 1], mixed[num_words + 1 :]

    def _places(self, keys: HashArray) -> list[int]:
        """The last word, the first one, the first two and three, as such."""
        first, told = self._first, [_mixed_one(int(it), self._last) for it in keys[-1:]]
        for at, key in enumerate(keys[:3].tolist()):
            first = _mixed_one(key, first) if at == 0 else _mixed_one(first, key)
            told.append(first)
        return told

    def _mean_vector(self, rows: HashArray) -> NDArray[np.float32] | float:
        """Of the words that have one; row 0 is of zeros."""
        num_known = np.count_nonzero(rows)
        if not num_known:
            return 0.0
        weights = np.full(len(rows), VECTOR_SCALE / num_known, np.float32)
        mean: NDArray[np.float32] = weights @ self._vectors.take(rows.view(np.int64), axis=0)
        return mean

    def _fact(self, fact: str) -> bytes:
        known = self._facts.get(fact)
        if known is None:
            known = self._words.hashed(fact)
            if len(fact) <= MAX_FACT_CHARS:
                if len(self._facts) >= MAX_FACTS:
                    self._facts.clear()
                self._facts[fact] = known
        return known


def _mixed(a: HashArray, b: HashArray) -> HashArray:
    """A hash of each two hashes, which tells (a, b) from (b, a)."""
    mixed, other = a * _MIX_A, b * _MIX_B
    mixed ^= other
    mixed ^= np.right_shift(mixed, _SHIFT_A, out=other)
    mixed *= _MIX_C
    mixed ^= np.right_shift(mixed, _SHIFT_B, out=other)
    return mixed


def _mixed_one(a: int, b: int) -> int:
    """As `_mixed`, of one pair: ten times as fast as an array of one."""
    mixed = (a * _A ^ b * _B) & _ALL
    mixed ^= mixed >> 29
    mixed = (mixed * _C) & _ALL
    return mixed ^ (mixed >> 32)


def slots_of_facts(secret: bytes, facts: Iterable[str]) -> list[int]:
    """Where the facts' weights stand under that secret."""
    words = WordHashes(secret, {})
    told = b"".join(map(words.hashed, facts))
    return list(map(int, _slots(np.frombuffer(told, "<u8"))))


def _slots(hashes: HashArray) -> IntArray:
    return (hashes >> _SLOT_SHIFT).view(np.int64)


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
    data = start.encode("utf-8", "replace")
    size = math.log1p(len(text)) / 8 - 0.5
    return (
        1.0,
        size,
        4 * size * size,
        math.log1p(data.count(b" ")) / 6 - 0.5,
        math.log1p(data.count(b"\n")) / 4,
        float(b"?" in data),
        math.log1p(len(data) - len(data.translate(None, b"0123456789"))) / 4,
        float(end == "?"),
        float(end == ":"),
        float(end == "."),
        float(b"```" in data),
        min(1.0, (len(data) - len(data.translate(None, b"{}();=<>[]"))) * 10 / num_chars),
        (len(data) / num_chars - 1) / 2 if data else 0.0,
        float(b"\n\n" in data),
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
