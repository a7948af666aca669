"""
A lite ranker that starts from another one's weights and learns the words of new traffic.

What it knew stays where it is: known words keep their ids and vectors, and so do the ids that
unknown words share. A new word starts with the vector that it had as an unknown one, and a feature
that rankers of an earlier format do not read with no weight, so that before the first step the new
ranker scores as the old one does.

Unless it is to forget a part: a network that is sure of itself learns new traffic worse than a new
one (experiments/own_traffic.py), and better than either where its weights are drawn towards a new
network's: "shrink and perturb" (Ash, Adams 2020, arXiv 1910.08475).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pars.errors import RankerError
from pars.learn.data.tables import first_line
from pars.learn.training.lite_graph import read_lite_graph
from pars.learn.training.models import LiteModel
from pars.learn.training.networks import LiteRanker
from pars.ranking.ranker import MODEL_FILE, TOKENIZER_FILE, Ranker
from pars.ranking.ranker_info import RankerInfo
from pars.request.conversation import message_of
from pars.request.words import MARKS, NUM_FEATURES, WordTokenizer

MOST_WORDS = 48_000  # twice a new ranker's: 6 MB of vectors, however often a ranker learns
LARGEST_DISAGREEMENT = 1e-3  # in score, between the folder and the weights read from it


def warm_start(folder: Path, prompts: Sequence[str], *, kept_share: float = 1.0) -> LiteModel:
    """
    The lite ranker in `folder` as a model to train, with the words of `prompts` added.

    Args:
        kept_share: of each weight; the rest is a new network's.

    Raises:
        RankerError: the folder holds no lite ranker, or one that another pars made.
    """
    if RankerInfo.read(folder).kind != "lite":
        raise RankerError(f"{folder}: only a lite ranker can be learned on from its folder")
    tokenizer = WordTokenizer.from_file(folder / TOKENIZER_FILE)
    try:
        network = read_lite_graph((folder / MODEL_FILE).read_bytes())
    except Exception as error:  # onnx raises whatever protobuf raises
        raise RankerError(
            f"{folder / MODEL_FILE}: its weights cannot be read: {first_line(error)}"
        ) from error
    model = LiteModel(network, tokenizer)
    _compare(model, folder, list(map(message_of, prompts[:20])))
    model = with_words_of(model, prompts)
    _draw_towards_new(model, kept_share)
    return model


def with_words_of(model: LiteModel, prompts: Sequence[str]) -> LiteModel:
    """The model with the words that stand in at least two places of `prompts`, too."""
    known = model.tokenizer
    found = WordTokenizer.learn(
        prompts,
        max_words=MOST_WORDS,
        min_count=2,
        num_hash_buckets=known.num_hash_buckets,
        max_length=known.max_length,
        num_last=known.num_last,
    )
    old = {*known.vocabulary, *MARKS}
    room = max(0, MOST_WORDS - len(known.vocabulary))
    added = [word for word in found.vocabulary if word not in old][:room]
    tokenizer = WordTokenizer(
        [*known.vocabulary, *added],
        num_hash_buckets=known.num_hash_buckets,
        max_length=known.max_length,
        num_last=known.num_last,
        num_features=NUM_FEATURES,
    )
    sources = [*range(known.num_ids), *map(known.id_of, added)]
    return LiteModel(_with_rows(model.network, sources), tokenizer)


def _with_rows(network: LiteRanker, sources: Sequence[int]) -> LiteRanker:
    """The same network over all features and other ids: id i has what id sources[i] had."""
    wider = LiteRanker(
        len(sources),
        num_features=NUM_FEATURES,
        width=network.embedding.weight.shape[1],
        num_pair_buckets=network.num_pair_buckets,
    )
    state = network.state_dict()
    for table in ("embedding.weight", "word_weight.weight"):
        state[table] = state[table][torch.tensor(sources)]
    for layer in ("head.1.weight", "direct.weight"):  # the features are their last columns
        num_added = NUM_FEATURES - network.num_features
        state[layer] = nn.functional.pad(state[layer], (0, num_added))
    wider.load_state_dict(state)
    return wider


def _draw_towards_new(model: LiteModel, kept_share: float) -> None:
    new = LiteModel.over(model.tokenizer).network
    with torch.no_grad():
        for weights, new_weights in zip(model.network.parameters(), new.parameters(), strict=True):
            weights.lerp_(new_weights, 1 - kept_share)


def _compare(model: LiteModel, folder: Path, prompts: list[str]) -> None:
    """Whether the weights are the folder's: they give its scores."""
    model.network.eval()
    with torch.no_grad():
        inputs = model.collate(model.encode(prompts), torch.device("cpu"))
        ours = model.network(**inputs).numpy()
    disagreement = float(np.abs(ours - Ranker.load(folder).score(prompts)).max())
    if not disagreement <= LARGEST_DISAGREEMENT:
        raise RankerError(
            f"{folder / MODEL_FILE}: its weights give other scores than it, by {disagreement:.1e}: "
            "another pars made it"
        )
