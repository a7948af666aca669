"""Rows are split as `datasets` splits them, and pairs are drawn and written as PARS does."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pars.errors import DataError
from pars.learn.data.pairs import (
    Pairs,
    draw_pairs,
    split_groups,
    split_rows,
    write_data,
    write_pairs,
)
from pars.learn.data.records import Row

TEXTS = st.text(st.characters(codec=None), max_size=12)  # lone surrogates and controls, too


@pytest.mark.parametrize(
    ("num_rows", "test_size", "seed"), [(10, 0.1, 42), (11, 0.1, 42), (999, 0.25, 0), (2, 0.5, 7)]
)
def test_split_is_that_of_datasets(num_rows, test_size, seed):
    """Both splits hold the rows, in the order, that train_test_split gives them."""
    datasets = pytest.importorskip("datasets", reason="compares with the train extra's datasets")
    whole = datasets.Dataset.from_dict({"row": list(range(num_rows))})
    theirs = whole.train_test_split(test_size=test_size, seed=seed)

    train, val = split_rows(num_rows, test_size, seed)

    assert train.tolist() == list(theirs["train"]["row"])
    assert val.tolist() == list(theirs["test"]["row"])


def test_split_of_alpaca_has_the_known_sizes():
    """52,002 rows give 46,801 to train on and 5,201 to validate on."""
    assert [len(part) for part in split_rows(52_002, 0.1, 42)] == [46_801, 5_201]


@pytest.mark.parametrize("num_rows", [0, 1])
def test_too_few_rows_to_split_is_an_error(num_rows):
    """A split that leaves nothing to train on says what to change."""
    with pytest.raises(DataError, match="leave none to train on: give more rows"):
        split_rows(num_rows, 0.1, 42)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2), st.integers(0, 99))
def test_grouped_split_keeps_groups_whole(groups, seed):
    """Every row is in one split, and no group is in both."""
    if len(set(groups)) < 2:
        return
    train, val = split_groups(groups, 0.3, seed)

    assert sorted([*train, *val]) == list(range(len(groups)))
    assert not {groups[row] for row in train} & {groups[row] for row in val}
    assert len({groups[row] for row in val}) == -(-len(set(groups)) * 3 // 10)


def test_grouped_split_of_distinct_prompts_is_the_plain_split():
    """Grouping changes nothing where no prompt stands twice."""
    for ours, plain in zip(
        split_groups([str(n) for n in range(57)], 0.1, 42), split_rows(57, 0.1, 42), strict=True
    ):
        assert ours.tolist() == plain.tolist()


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(0, 5), st.floats(0, 1))
def test_drawn_pairs_keep_the_rules(lengths, num_pairs, threshold):
    """Pairs stand in row order, no more a row than wanted, far enough apart, rightly labelled."""
    pairs = draw_pairs(lengths, num_pairs, threshold, seed=3)

    a, b = pairs.index_a.tolist(), pairs.index_b.tolist()
    assert a == sorted(a)
    assert all(a.count(row) <= num_pairs for row in set(a))
    for row, other, label in zip(a, b, pairs.labels.tolist(), strict=True):
        longer = max(lengths[row], lengths[other])
        assert row != other
        assert (abs(lengths[row] - lengths[other]) / longer if longer else 0) >= threshold
        assert label == (lengths[row] > lengths[other])


def test_threshold_itself_is_enough():
    """Lengths 10 and 8 differ by 0.2 and pair; 100 and 81 differ by less and do not."""
    assert len(draw_pairs([10, 8], 10, 0.2, 0)) == 20
    assert len(draw_pairs([100, 81], 10, 0.2, 0)) == 0


def test_equal_and_empty_lengths_pair_only_at_threshold_zero():
    """Equal lengths, zero among them, differ by nothing."""
    assert len(draw_pairs([0, 0, 0], 10, 0.01, 0)) == 0
    assert len(draw_pairs([0, 0, 0], 10, 0.0, 0)) == 30


def test_every_row_gets_its_pairs_across_blocks():
    """Where most partners pass, no row is short, whatever its place in a large file."""
    lengths = np.random.default_rng(0).lognormal(4, 1, 40_000).round() + 1
    pairs = draw_pairs(lengths, 10, 0.2, 42)

    assert np.bincount(pairs.index_a).tolist() == [10] * 40_000


def test_tries_are_bounded_as_in_the_loop():
    """
    A row with one fit partner in 100 rows and 10 wanted pairs gets 100 tries: 1 pair on average.

    The number of pairs is binomial(100, 1/100), so over 99 rows and 20 seeds its mean has a
    standard deviation of 0.022 and its variance is near 0.99.
    """
    lengths = [10.0] * 99 + [20.0]
    counts = np.concatenate(
        [np.bincount(draw_pairs(lengths, 10, 0.2, seed).index_a)[:99] for seed in range(20)]
    )

    assert 0.9 < counts.mean() < 1.1
    assert 0.85 < counts.var() < 1.15


def test_partners_are_drawn_evenly():
    """Each of the 9 fit partners of a row is drawn about equally often: 4,000 of 36,000 times."""
    lengths = [2.0**power for power in range(10)]
    partners = np.bincount(draw_pairs(lengths, 36_000, 0.2, 1).index_b[:36_000], minlength=10)

    assert partners[0] == 0
    assert all(3_700 < times < 4_300 for times in partners[1:])


def test_seed_decides_the_pairs():
    """The same seed draws the same pairs, another seed others."""
    first, again, other = (draw_pairs(range(1, 99), 5, 0.2, seed) for seed in (1, 1, 2))

    assert first.index_b.tolist() == again.index_b.tolist()
    assert first.index_b.tolist() != other.index_b.tolist()


def pairs_of(triples):
    a, b, labels = zip(*triples, strict=True) if triples else ((), (), ())
    return Pairs(np.array(a, np.int32), np.array(b, np.int32), np.array(labels, np.bool_))


def has_lone_surrogate(text):
    return any(0xD800 <= ord(letter) < 0xE000 for letter in text)


@given(st.lists(TEXTS, min_size=1, max_size=5), st.data())
def test_pair_file_is_what_json_dump_writes(prompts, data):
    """The bytes are those of json.dump(indent=2, ensure_ascii=False), for any text."""
    rows = st.integers(0, len(prompts) - 1)
    triples = data.draw(st.lists(st.tuples(rows, rows, st.booleans())))
    file = io.BytesIO()
    write_pairs(file, prompts, pairs_of(triples))

    expected = [
        {"prompt_A": prompts[a], "prompt_B": prompts[b], "label": int(label)}
        for a, b, label in triples
    ]
    if any(map(has_lone_surrogate, prompts)):  # which json.dump cannot write to a UTF-8 file
        assert json.loads(file.getvalue()) == json.loads(json.dumps(expected))
    else:
        assert file.getvalue() == json.dumps(expected, indent=2, ensure_ascii=False).encode()


@pytest.mark.parametrize("num_pairs", [1_023, 1_024, 1_025, 3_000])
def test_pair_file_is_whole_at_any_size(num_pairs):
    """Files that end at, before or after a chunk's end are whole."""
    triples = [(k % 7, k % 5, k % 3 == 0) for k in range(num_pairs)]
    file = io.BytesIO()
    write_pairs(file, list("abcdefg"), pairs_of(triples))

    read = json.loads(file.getvalue())
    assert [(row["prompt_A"], row["prompt_B"], row["label"]) for row in read] == [
        ("abcdefg"[a], "abcdefg"[b], int(label)) for a, b, label in triples
    ]


@given(
    st.lists(
        st.builds(
            Row,
            task_id=st.integers(0, 9) | TEXTS,
            prompt=TEXTS,
            answer_length=st.integers(0, 9) | st.floats(0, 9),
            answer_content=TEXTS,
            category=st.none() | TEXTS,
            model=st.none() | TEXTS,
        ),
        max_size=4,
    )
)
def test_data_file_is_what_json_dump_writes(rows):
    """The bytes are those of json.dump(indent=2, ensure_ascii=False), without absent fields."""
    file = io.BytesIO()
    write_data(file, rows)

    names = ("task_id", "prompt", "answer_content", "answer_length", "category", "model")
    expected = [
        {name: getattr(row, name) for name in names if getattr(row, name) is not None}
        for row in rows
    ]
    dumped = json.dumps(expected, indent=2, ensure_ascii=False)
    if has_lone_surrogate(dumped):
        assert json.loads(file.getvalue()) == json.loads(json.dumps(expected))
    else:
        assert file.getvalue() == dumped.encode()


def test_data_file_is_whole_across_chunks():
    """A file of many chunks holds every row in order."""
    file = io.BytesIO()
    write_data(file, [Row(number, str(number), 1) for number in range(600)])

    assert [row["task_id"] for row in json.loads(file.getvalue())] == list(range(600))
