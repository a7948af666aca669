"""What a training step sees."""

import numpy as np
import pytest

from pars.learn.training.batches import LengthBatches, PairBatches, comparable_pairs


def pairs_of(batch):
    """(longer, shorter) as prompt indices."""
    return sorted(
        (int(batch.prompts[a]), int(batch.prompts[b]))
        for a, b in zip(batch.longer, batch.shorter, strict=True)
    )


def test_each_prompt_of_a_batch_of_pairs_is_encoded_once():
    """Three pairs over three prompts: three encodings, not six, and label 0 turns a pair round."""
    [batch] = PairBatches([0, 0, 1], [1, 2, 2], [1, 0, 1], batch_size=8, seed=1).epoch(0)

    assert batch.prompts.tolist() == [0, 1, 2]
    assert pairs_of(batch) == [(0, 1), (1, 2), (2, 0)]


def test_a_batch_of_lengths_holds_every_pair_that_passes():
    """Of 10, 9 and 5 words, 10 and 9 are too alike at 0.2; the other two pairs are in."""
    [batch] = LengthBatches([10, 9, 5], threshold=0.2, batch_size=8, seed=1).epoch(0)

    assert pairs_of(batch) == [(0, 2), (1, 2)]


def test_equal_lengths_never_make_a_pair():
    """Even at threshold 0: there is no order to learn from them."""
    longer, shorter = comparable_pairs(np.array([3.0, 3.0, 0.0, 0.0]), 0.0)

    assert sorted(zip(longer.tolist(), shorter.tolist(), strict=True)) == [
        (0, 2),
        (0, 3),
        (1, 2),
        (1, 3),
    ]


def test_pairs_that_differ_little_are_less_certain():
    """At temperature 1 and log1p lengths log 4 and log 2: 4 / (4 + 2); a pair file is certain."""
    [soft] = LengthBatches([3, 1], threshold=0, batch_size=8, seed=1, label_temperature=1).epoch(0)
    [hard] = PairBatches([0], [1], [1], batch_size=8, seed=1).epoch(0)

    assert soft.certainty.tolist() == pytest.approx([4 / 6])
    assert hard.certainty.tolist() == [1.0]


def test_an_epoch_sees_every_prompt_once_in_an_order_of_its_own():
    """Ten prompts in batches of four: 4, 4 and 2, and another order in the next epoch."""
    source = LengthBatches(range(10), threshold=0.2, batch_size=4, seed=1)

    first = [batch.prompts.tolist() for batch in source.epoch(0)]
    second = [batch.prompts.tolist() for batch in source.epoch(1)]

    assert [len(prompts) for prompts in first] == [4, 4, 2]
    assert len(source) == 3
    assert sorted(prompt for prompts in first for prompt in prompts) == list(range(10))
    assert first != second


def test_the_same_seed_gives_the_same_batches():
    """On every machine, so that a stopped training can go on."""
    one, other = (LengthBatches(range(50), threshold=0, batch_size=8, seed=5) for _ in range(2))

    for a, b in zip(one.epoch(3), other.epoch(3), strict=True):
        assert a.prompts.tolist() == b.prompts.tolist()


def test_an_answer_cut_short_is_only_ever_the_longer_one():
    """5 whole, 7 cut, 9 whole: 7 and 9 outlast 5, and whether 9 outlasts 7 nobody knows."""
    source = LengthBatches(
        [5, 7, 9], threshold=0, batch_size=8, seed=1, is_censored=[False, True, False]
    )
    [batch] = source.epoch(0)

    assert pairs_of(batch) == [(1, 0), (2, 0)]
