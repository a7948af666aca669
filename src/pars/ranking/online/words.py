"""
The words of a text as hashes under a secret, each with its place among the word vectors.

A text is parted at white space by str.split, and each part is looked up: of one that was seen
before the hashes of its words stand ready as bytes, so that a text's are joined in one call. Only
new parts are searched for words and hashed. What is remembered is bounded, in number and size.
"""

import hashlib
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

NUM_FIRST, NUM_LAST = 128, 48  # words that are read of a long text
MAX_WORDS = NUM_FIRST + NUM_LAST
MAX_CHARS = 6_000  # in which the first words are sought; a third of it for the last ones
MAX_PARTS = 1 << 15  # remembered; then the memory starts anew
MAX_PART_CHARS, MAX_PART_WORDS = 64, 8  # of a part to be remembered
NEW_LINE = "\ue000"  # stands for one while a text is parted; of private use, so hardly in a text
# Letters, digits, one sign. Chinese, Japanese and Thai write words without a space between, so
# there each character counts as one, and neighbours make the words.
UNSPACED = "\u0e01-\u0e2e\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
HashArray = NDArray[np.uint64]
WORD = re.compile(rf"[{UNSPACED}]|[^\W\d_{UNSPACED}]+|\d+|[^\w\s]")


class WordHashes(dict[str, bytes]):
    """
    By part of a text: of each of its words the hash and the row of its vector, 8 bytes each.

    Args:
        rows: Of the words that have a vector, from 1 on.
    """

    def __init__(self, secret: bytes, rows: Mapping[str, int]) -> None:
        self._secret, self._rows = secret[:64], rows
        self._start, self._end = self._told("\0start"), self._told("\0end")
        self._keep_marks()

    def __missing__(self, part: str) -> bytes:
        words = WORD.findall(part.lower())
        if len(words) > MAX_WORDS:
            words = words[:NUM_FIRST] + words[-NUM_LAST:]
        told = b"".join(map(self.__getitem__ if len(words) > 1 else self._told, words))
        if len(part) <= MAX_PART_CHARS and len(words) <= MAX_PART_WORDS:
            if len(self) > MAX_PARTS:
                self.clear()
                self._keep_marks()
            self[part] = told
        return told

    def of(self, text: str) -> tuple[HashArray, HashArray]:
        """
        Hashes and vector rows (0: none) of the text's first and last words, [num_words].
        """
        words = self.with_marks(text)[1:-1]
        return words[:, 0], words[:, 1]

    def with_marks(self, text: str) -> HashArray:
        """The same as columns, between marks of start and end: [num_words + 2, 2]."""
        if len(text) <= MAX_CHARS:
            parts = _spaced(text).split(None, NUM_FIRST)
            if len(parts) > NUM_FIRST:
                parts += parts.pop().rsplit(None, NUM_LAST)[-NUM_LAST:]
        else:
            parts = _spaced(text[:MAX_CHARS]).split(None, NUM_FIRST)[:NUM_FIRST]
            parts += _spaced(text[-MAX_CHARS // 3 :]).rsplit(None, NUM_LAST)[-NUM_LAST:]
        told = b"".join([self._start, *map(self.__getitem__, parts), self._end])
        read = np.frombuffer(told, dtype="<u8").reshape(-1, 2)
        if len(read) > MAX_WORDS + 2:
            read = np.concatenate([read[: NUM_FIRST + 1], read[-NUM_LAST - 1 :]])
        return read

    def hashed(self, text: str) -> bytes:
        """The text's hash as a whole, 8 bytes."""
        told = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(told, digest_size=8, key=self._secret).digest()

    def _told(self, word: str) -> bytes:
        return self.hashed(word) + self._rows.get(word, 0).to_bytes(8, "little")

    def _keep_marks(self) -> None:
        self[NEW_LINE] = self._told("\n")


def _spaced(text: str) -> str:
    return text.replace("\n", f" {NEW_LINE} ") if "\n" in text else text
