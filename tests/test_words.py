"""How a lite ranker reads a prompt."""

import math

import pytest

from pars.errors import RankerError
from pars.words import WordTokenizer, surface_features


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


def test_a_prompt_without_words_is_one_padding_id():
    """So that every prompt has at least one column."""
    assert tokenizer().encode("") == [0]
    assert tokenizer().encode(" \t ") == [0]


@pytest.mark.parametrize("odd", ["\ud800", "\x00", "é\u0301", "😀", "a" * 1_000_000])
def test_odd_text_is_read_without_an_error(odd):
    """Lone surrogates, NULs, combining marks, emoji and a megabyte of one word all give ids."""
    assert tokenizer().encode(odd)
    assert len(surface_features(odd, 8)) == 5


def test_the_vocabulary_is_the_most_frequent_words():
    """ "a" stands three times, "b" twice, "c" once: two words with at least two places."""
    learnt = WordTokenizer.learn(
        ["a b", "b a", "a c"], max_words=5, min_count=2, num_hash_buckets=4, max_length=8
    )

    assert learnt.vocabulary == ("a", "b")


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


def test_surface_features_count_what_ids_do_not_carry():
    """Length, spaces, line breaks, a question mark and two digits of "How many?\\nIs it 42 ?"."""
    features = surface_features("How many?\nIs it 42 ?", 8)

    assert features == pytest.approx(
        [math.log(21) / 8, math.log(5) / 6, math.log(2) / 4, 1.0, math.log(3) / 4]
    )
