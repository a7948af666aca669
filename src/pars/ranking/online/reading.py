"""
A request's signals as numbers: ids of hashed features, and a short dense vector.

Ids are hashes under a secret (BLAKE2b of a word or fact, mixed for neighbours), so that what is
kept of a request tells neither its words nor who asked to anyone without the secret. Words are
hashed once and remembered; neighbours and callers' words are mixed from those by whole arrays.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pars.ranking.online.words import MAX_WORDS, HashArray, WordHashes
from pars.ranking.word_vectors import word_vectors
from pars.request.features import Signals

SLOT_BITS = 18
NUM_SLOTS = 1 << SLOT_BITS
NUM_CROSSED = 4  # facts that are crossed with the first words: the first, so who asks
MAX_FACTS, MAX_FACT_CHARS = 4096, 256  # whose hashes are remembered
NUM_SURFACE, NUM_BEFORE, NUM_VECTOR, NUM_STACKED = 14, 5, 32, 1  # of word vectors the main half
NUM_DENSE = NUM_SURFACE + NUM_BEFORE + NUM_VECTOR + NUM_STACKED
NUM_VECTOR_WORDS = 48  # the first ones, whose vectors are looked at
VECTOR_SCALE = 2.5  # the mean of a prompt's word vectors, in the size of the other numbers
MAX_SURFACE_CHARS = 1_000
LOG_CHARS = 6.0  # of an answer of 400 characters

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_MIX = np.uint64(0x9E3779B97F4A7C15)
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
        counts = range(NUM_VECTOR_WORDS + 1)
        self._mean_weights = [np.full(it, VECTOR_SCALE / max(it, 1), np.float32) for it in counts]
        self._is_new = np.ones(2 * MAX_WORDS + 1, bool)  # the first one always is
        self._facts: dict[str, bytes] = {}

    def read(self, signals: Signals, stacked: float = 0.0) -> Reading:
        """
        Args:
            stacked: What an offline ranker says of the request, about -3 to 3; 0: nothing.
        """
        words = self._words.with_marks(signals.text)
        facts = np.frombuffer(b"".join(map(self._fact, signals.facts)), dtype="<u8")
        dense = np.empty(NUM_DENSE)
        dense[: -NUM_VECTOR - 1] = _surface(signals.text) + _before(signals)
        dense[-NUM_VECTOR - 1 : -1] = self._mean_vector(words[1:-1, 1])
        dense[-1] = stacked
        hashes, num_text = _hashes(words[:, 0], facts)
        hashes >>= _SLOT_SHIFT
        slots = hashes.view(np.int64)
        text_slots = self._distinct(slots[:num_text])
        ids = np.concatenate([text_slots, slots[num_text:]])
        return Reading(ids, len(text_slots), len(facts), dense)

    def _mean_vector(self, rows: HashArray) -> NDArray[np.float32]:
        """Of the first words; row 0, of words that have none, is of zeros."""
        rows = rows[:NUM_VECTOR_WORDS]
        vectors = self._vectors.take(rows.view(np.int64), axis=0)
        mean: NDArray[np.float32] = self._mean_weights[len(rows)] @ vectors
        return mean

    def _distinct(self, slots: IntArray) -> IntArray:
        """As numpy.unique, which takes many times as long for some hundred."""
        slots.sort()
        is_new = self._is_new[: len(slots)]
        np.not_equal(slots[1:], slots[:-1], out=is_new[1:])
        return slots[is_new]

    def _fact(self, fact: str) -> bytes:
        known = self._facts.get(fact)
        if known is None:
            known = self._words.hashed(fact)
            if len(fact) <= MAX_FACT_CHARS:
                if len(self._facts) >= MAX_FACTS:
                    self._facts.clear()
                self._facts[fact] = known
        return known


def _hashes(words: HashArray, facts: HashArray) -> tuple[HashArray, int]:
    """
    Of the words between the marks and of neighbours, which are so many; of facts; and of the first
    words with who asks.
    """
    pairs = _mixed(words[:-1], words[1:])
    crossed = _mixed(facts[:NUM_CROSSED, None], words[:3]).ravel()
    hashes = np.concatenate([words[1:-1], pairs, facts, crossed])
    return hashes, len(hashes) - len(facts) - len(crossed)


def _mixed(a: HashArray, b: HashArray) -> HashArray:
    """A hash of each two hashes, which tells (a, b) from (b, a)."""
    mixed: HashArray = a * _MIX ^ b
    return mixed


def slots_of_facts(secret: bytes, facts: Iterable[str]) -> list[int]:
    """Where the facts' weights stand under that secret."""
    words = WordHashes(secret, {})
    told = b"".join(map(words.hashed, facts))
    slots: list[int] = (np.frombuffer(told, "<u8") >> _SLOT_SHIFT).tolist()
    return slots


def _surface(text: str) -> tuple[float, ...]:
    """How long and of what kind the text is, each number around -1 to 1: [NUM_SURFACE]."""
    start, end = text[:MAX_SURFACE_CHARS], text[-64:].rstrip()[-1:]
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
