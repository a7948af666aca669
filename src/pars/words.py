"""
The lite ranker's reading of a prompt: word ids and five surface features, standard library only.

A regular expression and one dictionary look-up a word cost far less than a word-piece tokenizer,
which would take most of the time of a ranker of this size.
"""

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pars.errors import RankerError

WORD_PATTERN = r"\w+|[^\w\s]|\n"
DIGIT = re.compile(r"\d")
CHARS_PER_WORD = 12  # a prompt is cut to this many characters for each word that may be read
NUM_FEATURES = 5


class WordTokenizer:
    """
    Words to ids: 0 pads, 1..num_hash_buckets are words outside the vocabulary, the rest are known.

    Args:
        vocabulary: the known words, most frequent first.
        num_hash_buckets: unknown words share these ids by CRC-32, the same on every machine.
        max_length: words read from the start of a prompt.
    """

    def __init__(
        self, vocabulary: Sequence[str], *, num_hash_buckets: int, max_length: int
    ) -> None:
        self.vocabulary = tuple(vocabulary)
        self.num_hash_buckets = num_hash_buckets
        self.max_length = max_length
        self._word = re.compile(WORD_PATTERN)
        first_id = 1 + num_hash_buckets
        self._ids = {word: first_id + position for position, word in enumerate(self.vocabulary)}

    @property
    def num_ids(self) -> int:
        """One more than the largest id."""
        return 1 + self.num_hash_buckets + len(self.vocabulary)

    def encode(self, prompt: str) -> list[int]:
        """The ids of the prompt's first `max_length` words; [0] for a prompt without words."""
        ids, buckets = self._ids, self.num_hash_buckets
        text = prompt[: self.max_length * CHARS_PER_WORD].lower()
        return [
            ids.get(word) or 1 + zlib.crc32(word.encode("utf-8", "surrogatepass")) % buckets
            for word in self._word.findall(text)[: self.max_length]
        ] or [0]

    @classmethod
    def learn(
        cls,
        prompts: Iterable[str],
        *,
        max_words: int,
        min_count: int,
        num_hash_buckets: int,
        max_length: int,
    ) -> "WordTokenizer":
        """The words that stand in at least `min_count` places, the most frequent `max_words`."""
        word = re.compile(WORD_PATTERN)
        counts: Counter[str] = Counter()
        for prompt in prompts:
            counts.update(word.findall(prompt[: max_length * CHARS_PER_WORD].lower())[:max_length])
        # Sorted by count and then by the word itself, so that equal data gives equal ids.
        by_frequency = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        known = [word for word, count in by_frequency[:max_words] if count >= min_count]
        return cls(known, num_hash_buckets=num_hash_buckets, max_length=max_length)

    def to_json(self) -> str:
        """The tokenizer file of a lite ranker folder."""
        return json.dumps(
            {
                "kind": "words",
                "pattern": WORD_PATTERN,
                "num_hash_buckets": self.num_hash_buckets,
                "max_length": self.max_length,
                "vocabulary": self.vocabulary,
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_file(cls, path: Path) -> "WordTokenizer":
        """
        Read what `to_json` wrote.

        Raises:
            RankerError: the file is missing, damaged, or made for another way of splitting words.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["pattern"] != WORD_PATTERN:
                raise RankerError(
                    f"{path}: splits words by {fields['pattern']!r}, which this pars does not know"
                )
            return cls(
                fields["vocabulary"],
                num_hash_buckets=int(fields["num_hash_buckets"]),
                max_length=int(fields["max_length"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RankerError(f"{path}: not a word tokenizer written by pars: {error!r}") from error


def surface_features(prompt: str, max_length: int) -> list[float]:
    """
    Five numbers that word ids do not carry, each about 0..1: [NUM_FEATURES].

    How long the prompt is, how many words, line breaks and digits (as logarithms), and whether it
    asks a question. Counts look only at the characters that the tokenizer reads.
    """
    text = prompt[: max_length * CHARS_PER_WORD]
    return [
        math.log1p(len(prompt)) / 8,
        math.log1p(text.count(" ")) / 6,
        math.log1p(text.count("\n")) / 4,
        float("?" in text),
        math.log1p(len(DIGIT.findall(text))) / 4,
    ]
