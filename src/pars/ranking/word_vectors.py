"""
Where the vectors of a new lite ranker start: 64 numbers for each of 21,000 English words.

They are the input embeddings of all-MiniLM-L6-v2 (Apache-2.0), their 64 main directions, in 8 bits;
`experiments/word_vectors.py` makes the file. With them a word that the training data lack stands
near words that it has, which is worth most where there are few prompts (docs/results.md).
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VECTORS_FILE = "word_vectors.npz"
SPREAD = 0.1  # standard deviation of the numbers: that of vectors drawn at random


@dataclass(frozen=True, slots=True, eq=False)
class WordVectors:
    """Words, the most frequent first, and their vectors [num_words, width]."""

    words: tuple[str, ...]
    vectors: NDArray[np.float32]

    def write(self, path: Path) -> None:
        """Write them in 8 bits, each direction on its own scale."""
        scales = np.abs(self.vectors).max(axis=0) / 127
        numbers = np.round(self.vectors / scales).astype(np.int8)
        text = np.frombuffer("\n".join(self.words).encode(), dtype=np.uint8)
        np.savez_compressed(path, words=text, numbers=numbers, scales=scales)

    @classmethod
    def read(cls, path: Path) -> "WordVectors":
        with np.load(path) as stored:
            words = stored["words"].tobytes().decode().split("\n")
            vectors = stored["numbers"].astype(np.float32) * stored["scales"].astype(np.float32)
        return cls(tuple(words), vectors)


@lru_cache(maxsize=1)
def word_vectors() -> WordVectors:
    """The ones that come with the package."""
    return WordVectors.read(Path(str(files("pars.ranking") / VECTORS_FILE)))
