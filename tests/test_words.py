"""How a lite ranker reads a prompt."""

import json
import math

import pytest

from pars.errors import RankerError
from pars.request.words import (
    GAP,
    LOG_CHARS,
    MARKS,
    NUM_FEATURES,
    WordTokenizer,
    surface_features,
    words_of,
)


def tokenizer(**changes):
    settings = {"num_hash_buckets": 10, "max_length": 8, **changes}
    return WordTokenizer(["write", "a", "?"], **settings)


def test_known_words_follow_the_padding_and_the_buckets():
    """Id 0 pads, 1..10 are buckets, so the first known word is 11, whatever its case."""
    assert tokenizer().encode("WRITE a?") == [11, 12, 13]


def test_an_unknown_word_always_falls_into_the_same_bucket():
    """Its CRC-32 is the same in every process and on every machine, unlike Python's own hash."""
    first, second = tokenizer().encode("poem"), tokenizer().encode("poem")

    assert first == second
    assert 1 <= first[0] <= 10


def test_only_the_first_words_are_read():
    """Nine words, eight read."""
    assert tokenizer().encode("a " * 9) == [12] * 8


def test_of_a_long_prompt_the_first_and_the_last_words_are_read():
    """Six of "1 … 20": the first four, then the gap, then the last two."""
    assert words_of(" ".join(map(str, range(1, 21))), 6, 2) == ["1", "2", "3", "4", GAP, "19", "20"]
    assert words_of("1 2 3 4 5 6", 6, 2) == ["1", "2", "3", "4", "5", "6"]


def test_marks_stand_around_what_is_read():
    """With the marks known, "write" is read as start, write, end; nothing as start, end."""
    marked = WordTokenizer([*MARKS, "write"], num_hash_buckets=10, max_length=8)

    assert marked.encode("write") == [11, 14, 13]
    assert marked.encode("") == [11, 13]


def test_a_note_gives_features_and_no_words():
    """Three answers, the last of 1,024 characters, the one before of none: four features."""
    read, noted = tokenizer(), "→3 1024 0\nwrite a"

    assert read.encode(noted) == read.encode("write a")
    assert read.features(noted)[:-4] == read.features("write a")[:-4]
    assert read.features(noted)[-4:] == [
        1.0, pytest.approx(math.log(4) / 2), pytest.approx(math.log(1025) - LOG_CHARS), -LOG_CHARS,
    ]  # fmt: skip
    assert read.features("write a")[-4:] == [0.0] * 4


def test_a_prompt_without_words_is_one_padding_id():
    """So that every prompt has at least one column."""
    assert tokenizer().encode("") == [0]
    assert tokenizer().encode(" \t ") == [0]


@pytest.mark.parametrize("odd", ["\ud800", "\x00", "é\u0301", "😀", "a" * 1_000_000])
def test_odd_text_is_read_without_an_error(odd):
    """Lone surrogates, NULs, combining marks, emoji and a megabyte of one word all give ids."""
    assert tokenizer().encode(odd)
    assert len(surface_features(odd, 8, 2)) == NUM_FEATURES


def test_the_vocabulary_is_the_most_frequent_words():
    """ "a" stands three times, "b" twice, "c" once: two words with at least two places."""
    learnt = WordTokenizer.learn(
        ["a b", "b a", "a c"], max_words=5, min_count=2, num_hash_buckets=4, max_length=8
    )

    assert learnt.vocabulary == (*MARKS, "a", "b")


def test_a_tokenizer_reads_what_it_wrote(tmp_path):
    """The file gives the same ids back."""
    (tmp_path / "tokenizer.json").write_text(tokenizer().to_json())

    again = WordTokenizer.from_file(tmp_path / "tokenizer.json")

    assert again.encode("write a poem") == tokenizer().encode("write a poem")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"pattern": "x"}'])
def test_a_damaged_file_is_named(tmp_path, text):
    """The error says which file is not a word tokenizer."""
    path = tmp_path / "tokenizer.json"
    path.write_text(text)

    with pytest.raises(RankerError, match=r"tokenizer\.json"):
        WordTokenizer.from_file(path)


def test_a_file_of_the_first_format_is_read_as_it_was_trained(tmp_path):
    """Without marks and last words, and with five features, which the file did not name."""
    fields = json.loads(tokenizer().to_json())
    del fields["num_last"], fields["num_features"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))

    old = WordTokenizer.from_file(tmp_path / "tokenizer.json")

    assert old.encode("write a poem " * 9) == tokenizer().encode("write a poem " * 9)
    assert old.features("How many?") == surface_features("How many?", 8)[:5]


def test_surface_features_count_what_ids_do_not_carry():
    """Length, spaces, line breaks, a question mark and two digits of "How many?\\nIs it 42 ?"."""
    features = surface_features("How many?\nIs it 42 ?", 8)

    assert features[:5] == pytest.approx(
        [math.log(21) / 8, math.log(5) / 6, math.log(2) / 4, 1.0, math.log(3) / 4]
    )
    assert features[5:8] == [1.0, 0.0, 0.0]  # it ends in a question mark


def test_surface_features_see_code_scripts_and_blank_lines():
    """A fence, two of ten characters of code (times ten, at most 1), a blank line; é is one byte
    more in ten characters, halved."""
    assert surface_features("```a=b;\n\n", 8)[8:12] == [1.0, 1.0, 0.0, 1.0]
    assert surface_features("caféteria!", 8)[10] == pytest.approx(1 / 20)


@pytest.mark.parametrize(
    ("prompt", "amounts"),
    [
        ("Write a 500-word essay", (500, 500, 0)),
        ("in 3 short sentences", (3, 0, 3)),
        ("List 10 ideas", (10, 0, 0)),
        ("In 1984 we met", (0, 0, 0)),
    ],
)
def test_surface_features_say_how_much_is_asked_for(prompt, amounts):
    """The amount of anything, of words and of sentences, as logarithms."""
    features = surface_features(prompt, 8)

    assert features[13:16] == pytest.approx([math.log1p(amount) / 8 for amount in amounts])
