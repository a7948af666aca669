"""
Trains one ranker of the experiments and scores held-out prompts with it.

Apart from `pars train`, so that networks that lost can be kept here and not in the package; its
objectives are the package's, spelled as results.jsonl has them, and one more that lost.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from data import Record, Rows
from torch import Tensor, nn

from pars.learn.training.batches import comparable_pairs
from pars.learn.training.models import load_encoder
from pars.learn.training.networks import PAIR_FACTORS, Readout
from pars.learn.training.objectives import (
    READOUTS,
    Targets,
    class_edges,
    classes,
    listmle,
    log_t,
    pairwise_logistic,
    pairwise_margin,
    pointwise,
    quantiles,
    spread_of,
)
from pars.ranking.ranker import pad
from pars.ranking.word_vectors import word_vectors
from pars.request.conversation import with_note
from pars.request.words import (
    MARKS,
    NUM_FEATURES,
    NUM_FIRST_FEATURES,
    WordTokenizer,
    surface_features,
)

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Spec:
    """One training; every field is part of its name in the results file."""

    data: str  # a data set, or several joined by "+", as many prompts of each
    model: str = "lite"  # or "minilm"
    objective: str = "soft"
    num_train: int = 0  # 0: all
    epochs: int = 3
    learning_rate: float = 3e-3
    batch_size: int = 128
    max_length: int = 256
    seed: int = 0
    reading: Options = ()  # of `LiteInputs`
    network: Options = ()  # of `Lite`
    beyond: str = ""  # what is read beside the prompt: a name of BEYOND
    tests: tuple[str, ...] = ()  # data sets that are ordered too


def history(record: Record) -> list[float]:
    """What came before in the conversation: how much, how many turns, and whether anything."""
    turn = record.get("turn") or 0
    return [
        math.log1p(record.get("history_chars") or 0) / 10,
        math.log1p(turn) / 3,
        float(bool(record.get("first"))),
    ]


def answers(record: Record) -> list[float]:
    """The answers before in the conversation, as `pars.request.words` has them of a note."""
    return surface_features(with_note("", record.get("answers_before") or ()), 1)[-4:]


def model_name(record: Record) -> list[float]:
    """Which model answers, as one of 32 hashed places."""
    place = sum(record["model"].encode()) % 32
    return [float(i == place) for i in range(32)]


def subject(record: Record) -> list[float]:
    """The category that the caller names (MMLU-Pro's subject), as one of 32 hashed places."""
    place = sum(str(record.get("subject")).encode()) % 32
    return [float(i == place) for i in range(32)]


BEYOND: dict[str, Callable[[Record], list[float]]] = {
    "": lambda record: [],
    "history": history,
    "answers": answers,
    "model": model_name,
    "subject": subject,
}


class Lite(nn.Module):
    """`pars.learn.training.models.LiteRanker` with knobs."""

    def __init__(
        self,
        num_ids: int,
        num_outputs: int,
        num_features: int,
        *,
        width: int = 64,
        windows: tuple[int, ...] = (3, 5),
        buckets: int = 1 << 17,
        trigrams: bool = False,
        is_wide: bool = True,
        is_deep: bool = True,
        dropout: float = 0.2,
        word_dropout: float = 0.0,
        direct: bool = False,
    ) -> None:
        super().__init__()
        self.buckets, self.trigrams, self.word_dropout = buckets, trigrams, word_dropout
        self.is_wide, self.is_deep = is_wide, is_deep
        self.words = nn.Embedding(num_ids, num_outputs)
        self.pairs = nn.Embedding(buckets, num_outputs)
        nn.init.zeros_(self.words.weight)
        nn.init.zeros_(self.pairs.weight)
        self.embedding = nn.Embedding(num_ids, width, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight.normal_(std=0.1)[0] = 0.0
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, window, padding=window // 2) for window in windows
        )
        self.dropout = nn.Dropout(dropout)
        self.direct = nn.Linear(num_features, num_outputs, bias=False) if direct else None
        if self.direct:
            nn.init.zeros_(self.direct.weight)
        num_pooled = width * (1 + 2 * len(windows))
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(num_pooled + num_features, 64), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(64, num_outputs),
        )  # fmt: skip

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        if self.training and self.word_dropout:
            ids = torch.where(torch.rand(ids.shape) < self.word_dropout, (ids > 0).long(), ids)
        is_word = (ids > 0).float()
        num_words = is_word.sum(1, keepdim=True).clamp(min=1)
        outputs: Tensor | float = 0.0
        if self.is_deep:
            outputs = self._deep(ids, features, is_word.unsqueeze(1), num_words)
        if self.is_wide:
            outputs = outputs + self._wide(ids, is_word) / num_words.sqrt()
        return outputs

    def _deep(self, ids: Tensor, features: Tensor, mask: Tensor, num_words: Tensor) -> Tensor:
        words = self.dropout(self.embedding(ids)).transpose(1, 2) * mask
        pooled = [words.sum(2) / num_words]
        for convolution in self.convolutions:
            windows = torch.relu(convolution(words)) * mask
            pooled += [windows.sum(2) / num_words, windows.amax(2)]
        deep = self.head(torch.cat([*pooled, features], 1))
        return deep + self.direct(features) if self.direct else deep

    def _wide(self, ids: Tensor, is_word: Tensor) -> Tensor:
        total = (self.words(ids) * is_word.unsqueeze(2)).sum(1)
        pairs = (ids[:, :-1] * PAIR_FACTORS[0] + ids[:, 1:] * PAIR_FACTORS[1]) % self.buckets
        total = total + (self.pairs(pairs) * is_word[:, 1:].unsqueeze(2)).sum(1)
        if self.trigrams and ids.shape[1] > 2:
            threes = ids[:, :-2] * 7_368_787 + ids[:, 1:-1] * 1_000_003 + ids[:, 2:] * 7_919
            total = total + (self.pairs(threes % self.buckets) * is_word[:, 2:].unsqueeze(2)).sum(1)
        return total


class LiteInputs:
    """
    Prompts as the network's arguments.

    Args:
        marks: the prompt's start and end are ids of their own.
        last: of a long prompt, the last quarter of the words read is from its end.
        features: all surface features, and not the first five.
        vectors: words start with the package's vectors, and not with random ones.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        max_length: int,
        beyond: Callable[[Record], list[float]],
        *,
        marks: bool = True,
        last: bool = True,
        features: bool = True,
        vectors: bool = True,
    ) -> None:
        size = {"num_hash_buckets": 1_000, "max_length": max_length}
        num_last = max_length // 4 if last else 0
        found = WordTokenizer.learn(
            prompts, max_words=24_000, min_count=2, num_last=num_last, **size
        )
        self.tokenizer = WordTokenizer(
            found.vocabulary[0 if marks else len(MARKS) :],
            num_last=num_last,
            num_features=NUM_FEATURES if features else NUM_FIRST_FEATURES,
            **size,
        )
        self.beyond, self.vectors = beyond, vectors

    def network(self, num_outputs: int, options: dict[str, Any], num_features: int) -> Lite:
        network = Lite(self.tokenizer.num_ids, num_outputs, num_features, **options)
        width = network.embedding.weight.shape[1]
        if self.vectors and width <= word_vectors().vectors.shape[1]:
            with torch.no_grad():
                known = set(self.tokenizer.vocabulary)
                for word, vector in zip(word_vectors().words, word_vectors().vectors, strict=True):
                    if word in known:
                        row = self.tokenizer.id_of(word)
                        network.embedding.weight[row] = torch.from_numpy(vector[:width])
        return network

    def encode(self, rows: Rows) -> list[tuple[list[int], list[float]]]:
        read = self.tokenizer
        return [
            (read.encode(prompt), read.features(prompt) + self.beyond(record))
            for prompt, record in zip(rows.prompts, rows.records, strict=True)
        ]

    @staticmethod
    def collate(encoded: Sequence[tuple[list[int], list[float]]]) -> tuple[Tensor, Tensor]:
        ids, features = zip(*encoded, strict=True)
        return torch.from_numpy(pad(ids)), torch.tensor(features)


@dataclass(frozen=True)
class Trained:
    """Scores [num_rows] of each set of rows asked for, and what they cost in CPU time."""

    scores: list[np.ndarray]
    train_cpu_s: float
    score_cpu_us: float  # a prompt of the first set, read and scored in batches


@dataclass(frozen=True)
class Objective:
    """What is asked of the network: a loss of its outputs and the batch's log lengths."""

    readout: Readout
    loss_of: Callable[[Tensor, Targets], Tensor]
    threshold: float = 0.0
    temperature: float = 0.0

    def loss(self, outputs: Tensor, logs: Tensor) -> Tensor:
        pairs = comparable_pairs(np.exp(logs.double().numpy()), self.threshold)
        longer, shorter = (torch.from_numpy(places) for places in pairs)
        certainty = torch.ones(len(longer))
        if self.temperature:
            certainty = torch.sigmoid((logs[longer] - logs[shorter]) / self.temperature)
        is_censored = torch.zeros(len(logs), dtype=torch.bool)
        return self.loss_of(outputs, Targets(longer, shorter, certainty, logs, is_censored))


def log_normal(outputs: Tensor, targets: Targets) -> Tensor:
    """A normal distribution of the log length, by mean and spread; the score is the mean."""
    spread = spread_of(outputs)
    return (0.5 * ((targets.logs - outputs[:, 0]) / spread) ** 2 + spread.log()).mean()


def objective(name: str, logs: Tensor) -> Objective:
    """By its spelling: NAME or NAME:NUMBER; `logs` are the training log lengths."""
    kind, _, number = name.partition(":")
    match kind:
        case "margin":
            return Objective(Readout(), pairwise_margin(1.0), threshold=float(number or 0.2))
        case "logistic":
            return Objective(Readout(), pairwise_logistic, threshold=float(number or 0.0))
        case "soft":
            return Objective(Readout(), pairwise_logistic, temperature=float(number or 0.5))
        case "classes":
            return Objective(READOUTS["classes"], classes(class_edges(logs)))
    others = {
        "listmle": (Readout(), listmle), "regression": (Readout(), pointwise),
        "lognormal": (READOUTS["log-t"], log_normal), "logt": (READOUTS["log-t"], log_t),
        "quantiles": (READOUTS["quantiles"], quantiles),
    }  # fmt: skip
    if kind not in others:
        raise SystemExit(f"unknown objective {name}")
    return Objective(*others[kind])


def train_one(spec: Spec, train: Rows, tests: Sequence[Rows], minilm: str | None) -> Trained:
    """Train on some rows, score others."""
    torch.manual_seed(spec.seed)
    started = time.process_time()
    logs = torch.tensor(np.log(train.relative_lengths()), dtype=torch.float32)
    wanted = objective(spec.objective, logs)
    if spec.model == "lite":
        inputs = LiteInputs(
            train.prompts, spec.max_length, BEYOND[spec.beyond], **dict(spec.reading)
        )
        encode, collate, size = inputs.encode, inputs.collate, lambda row: len(row[0])
        encoded = encode(train)
        network = inputs.network(wanted.readout.num_outputs, dict(spec.network), len(encoded[0][1]))
    else:
        if not minilm:
            raise SystemExit("--minilm is needed: the folder of all-MiniLM-L6-v2")
        model = load_encoder(minilm, spec.max_length)
        network, size = Encoder(model.network), len

        def encode(rows: Rows) -> list[Any]:
            return model.encode(rows.prompts)

        def collate(rows: Sequence[Any]) -> tuple[Tensor, ...]:
            return tuple(model.collate(rows, torch.device("cpu")).values())

        encoded = encode(train)
    fit(network, encoded, collate, size, logs, wanted, spec)
    trained = time.process_time()
    scores = [score(network, encode(tests[0]), collate, size, wanted)]
    scored = time.process_time()
    scores += [score(network, encode(rows), collate, size, wanted) for rows in tests[1:]]
    per_prompt_us = (scored - trained) / len(tests[0]) * 1e6
    return Trained(scores, trained - started, per_prompt_us)


class Encoder(nn.Module):
    """An `EncoderRanker` with outputs [num_prompts, 1]."""

    def __init__(self, ranker: nn.Module) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.ranker(input_ids, attention_mask).float().unsqueeze(1)


def fit(
    network: nn.Module,
    encoded: Sequence[Any],
    collate: Callable[[Sequence[Any]], tuple[Tensor, ...]],
    size: Callable[[Any], int],
    logs: Tensor,
    wanted: Objective,
    spec: Spec,
    per_pass: int = 32,
) -> None:
    """AdamW, linear warm-up over a tenth of the steps and linear decay, gradients clipped at 1."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=spec.learning_rate, weight_decay=0.0, fused=True
    )
    rng = np.random.default_rng(spec.seed)
    per_epoch = math.ceil(len(encoded) / spec.batch_size)
    num_steps, step = spec.epochs * per_epoch, 0
    network.train()
    for _ in range(spec.epochs):
        for batch in np.array_split(rng.permutation(len(encoded)), per_epoch):
            warm = max(1, num_steps // 10)
            share = (step + 1) / warm if step < warm else (num_steps - step) / (num_steps - warm)
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * share
            batch = sorted(batch, key=lambda row: size(encoded[row]))
            passes = np.array_split(batch, math.ceil(len(batch) / per_pass))
            outputs = torch.cat([network(*collate([encoded[i] for i in part])) for part in passes])
            loss = wanted.loss(outputs, logs[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step += 1


@torch.no_grad()
def score(
    network: nn.Module,
    encoded: Sequence[Any],
    collate: Callable[[Sequence[Any]], tuple[Tensor, ...]],
    size: Callable[[Any], int],
    wanted: Objective,
    per_pass: int = 32,
) -> np.ndarray:
    network.eval()
    order = sorted(range(len(encoded)), key=lambda row: size(encoded[row]))
    scores = np.empty(len(encoded))
    for start in range(0, len(order), per_pass):
        rows = order[start : start + per_pass]
        outputs = network(*collate([encoded[row] for row in rows]))
        scores[rows] = wanted.readout.score(outputs).double().numpy()
    return scores
