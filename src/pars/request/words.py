"""
The lite ranker's reading of a prompt: word ids and surface features, standard library only.

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
from pars.request.conversation import message_of, split_note

WORD_PATTERN = r"\w+|[^\w\s]|\n"
WORD = re.compile(WORD_PATTERN)
DIGIT = re.compile(r"\d")
# "500 words", "a list of 10 items", "3 short paragraphs": how much is asked for, and of what.
AMOUNT = re.compile(
    r"\b(\d{1,5})[ -](?:\w+ )?(word|character|sentence|line|paragraph|page|item|example|way|tip"
    r"|idea|step|reason|question|point|bullet)"
)
CHARS_PER_WORD = 12  # a prompt is cut to this many characters for each word that may be read
NUM_FEATURES = 20
LOG_CHARS = 6.0  # of an answer of 400 characters, which is about the median
NUM_FIRST_FEATURES = 5  # what rankers of format 1 were trained with
# No word is split like these, so none is mistaken for one.
START, GAP, END = MARKS = ("<start>", "<gap>", "<end>")


class WordTokenizer:
    """
    Words to ids: 0 pads, 1..num_hash_buckets are words outside the vocabulary, the rest are known.

    Where the vocabulary begins with MARKS, a prompt is read between START and END, so that pairs
    and windows of words know how it begins and ends; GAP stands for what is left out.

    Args:
        vocabulary: the known words, most frequent first.
        num_hash_buckets: unknown words share these ids by CRC-32, the same on every machine.
        max_length: words read of a prompt.
        num_last: as many of them are a longer prompt's last words, where it often says what to do.
        num_features: surface features of a prompt.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        num_hash_buckets: int,
        max_length: int,
        num_last: int = 0,
        num_features: int = NUM_FEATURES,
    ) -> None:
        self.vocabulary = tuple(vocabulary)
        self.num_hash_buckets = num_hash_buckets
        self.max_length = max_length
        self.num_last = num_last
        self.num_features = num_features
        self.has_marks = self.vocabulary[: len(MARKS)] == MARKS
        first_id = 1 + num_hash_buckets
        self._ids = {word: first_id + position for position, word in enumerate(self.vocabulary)}

    @property
    def num_ids(self) -> int:
        """One more than the largest id."""
        return 1 + self.num_hash_buckets + len(self.vocabulary)

    def encode(self, prompt: str) -> list[int]:
        """The ids of what is read of a prompt; [0] for one without words or marks."""
        ids, buckets = self._ids, self.num_hash_buckets
        words = words_of(message_of(prompt), self.max_length, self.num_last)
        if self.has_marks:
            words = [START, *words, END]
        return [ids.get(word) or _bucket(word, buckets) for word in words] or [0]

    def id_of(self, word: str) -> int:
        """The id of one word, as it stands in a prompt."""
        return self._ids.get(word) or _bucket(word, self.num_hash_buckets)

    def features(self, prompt: str) -> list[float]:
        """The surface features that this ranker was trained with: [num_features]."""
        return surface_features(prompt, self.max_length, self.num_last)[: self.num_features]

    @classmethod
    def learn(
        cls,
        prompts: Iterable[str],
        *,
        max_words: int,
        min_count: int,
        num_hash_buckets: int,
        max_length: int,
        num_last: int = 0,
    ) -> "WordTokenizer":
        """The words that stand in at least `min_count` places, the most frequent `max_words`."""
        counts: Counter[str] = Counter()
        for prompt in prompts:
            counts.update(words_of(message_of(prompt), max_length, num_last))
        del counts[GAP]
        # Sorted by count and then by the word itself, so that equal data gives equal ids.
        by_frequency = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        known = [word for word, count in by_frequency[:max_words] if count >= min_count]
        return cls(
            [*MARKS, *known],
            num_hash_buckets=num_hash_buckets,
            max_length=max_length,
            num_last=num_last,
        )

    def to_json(self) -> str:
        """The tokenizer file of a lite ranker folder."""
        return json.dumps(
            {
                "kind": "words",
                "pattern": WORD_PATTERN,
                "num_hash_buckets": self.num_hash_buckets,
                "max_length": self.max_length,
                "num_last": self.num_last,
                "num_features": self.num_features,
                "vocabulary": self.vocabulary,
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_file(cls, path: Path) -> "WordTokenizer":
        """
        Read what `to_json` wrote, in this version or an earlier one.

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
                num_last=int(fields.get("num_last", 0)),
                num_features=int(fields.get("num_features", NUM_FIRST_FEATURES)),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RankerError(f"{path}: not a word tokenizer written by pars: {error!r}") from error


def _bucket(word: str, num_buckets: int) -> int:
    return 1 + zlib.crc32(word.encode("utf-8", "surrogatepass")) % num_buckets


def words_of(prompt: str, max_length: int, num_last: int) -> list[str]:
    """The prompt's words; of a long one the first and the last `num_last`, with GAP between."""
    most_chars = max_length * CHARS_PER_WORD
    words = WORD.findall(prompt[:most_chars].lower())
    if num_last == 0:
        return words[:max_length]
    if len(words) <= max_length and len(prompt) <= most_chars:
        return words
    last = WORD.findall(prompt[-num_last * CHARS_PER_WORD :].lower())[-num_last:]
    return [*words[: max_length - num_last], GAP, *last]


def surface_features(prompt: str, max_length: int, num_last: int = 0) -> list[float]:
    """
    What word ids do not carry, each about 0..1: [NUM_FEATURES].

    How long the prompt is, how many words, line breaks and digits (as logarithms), and whether it
    asks a question; then how it ends, whether it holds code, blank lines, other scripts, or more
    than is read, and the amount it asks for (as a logarithm), of words, sentences or items; at last
    what its note says of the answers before it, their lengths around 0. Counts look only at the
    characters that the tokenizer reads from the start.
    """
    most_chars = max_length * CHARS_PER_WORD
    before, prompt = split_note(prompt)
    text = prompt[:most_chars]
    num_chars = len(text) or 1
    end = prompt[-CHARS_PER_WORD:].rstrip()[-1:]
    amount = AMOUNT.search(prompt[-most_chars:].lower() if num_last else text.lower())
    log_amount = math.log1p(int(amount[1])) / 8 if amount else 0.0
    unit = amount[2] if amount else ""
    return [
        math.log1p(len(prompt)) / 8,
        math.log1p(text.count(" ")) / 6,
        math.log1p(text.count("\n")) / 4,
        float("?" in text),
        math.log1p(len(DIGIT.findall(text))) / 4,
        float(end == "?"),
        float(end == ":"),
        float(end == "."),
        float("```" in text),
        min(1.0, sum(map(text.count, "{}();=<>[]")) * 10 / num_chars),
        (len(text.encode("utf-8", "surrogatepass")) - len(text)) / num_chars / 2,
        float("\n\n" in text),
        float(len(prompt) > most_chars),
        log_amount,
        log_amount * float(unit in ("word", "character")),
        log_amount * float(unit in ("sentence", "line")),
        float(before.num_answers > 0),
        math.log1p(before.num_answers) / 2,
        math.log1p(before.last_chars) - LOG_CHARS if before.num_answers > 0 else 0.0,
        math.log1p(before.second_last_chars) - LOG_CHARS if before.num_answers > 1 else 0.0,
    ]
