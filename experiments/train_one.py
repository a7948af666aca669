"""
Trains one ranker of the experiments and says how well it orders held-out prompts.

Apart from `pars train`, so that objectives and networks that lost can be kept here and not in the
package; the winner is what `pars.learn` implements.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from data import Rows
from objectives import Objective, objective
from torch import Tensor, nn

from pars.learn.models import PAIR_FACTORS
from pars.ranker import pad
from pars.words import NUM_FEATURES, WordTokenizer, surface_features


@dataclass(frozen=True)
class Spec:
    """One training; every field is part of its name in the results file."""

    data: str
    model: str = "lite"
    objective: str = "soft"
    num_train: int = 0  # 0: all
    epochs: int = 3
    learning_rate: float = 3e-3
    batch_size: int = 128
    max_length: int = 256
    seed: int = 0
    network: tuple[tuple[str, Any], ...] = ()  # options of the network


class Lite(nn.Module):
    """`pars.learn.models.LiteRanker` with knobs."""

    def __init__(
        self,
        num_ids: int,
        num_outputs: int = 1,
        *,
        width: int = 64,
        channels: int = 0,
        windows: tuple[int, ...] = (3, 5),
        buckets: int = 1 << 17,
        trigrams: bool = False,
        is_wide: bool = True,
        is_deep: bool = True,
        num_features: int = NUM_FEATURES,
        attention: bool = False,
        dropout: float = 0.2,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        channels = channels or width
        self.buckets, self.is_wide, self.is_deep, self.trigrams = (
            buckets,
            is_wide,
            is_deep,
            trigrams,
        )
        self.words = nn.Embedding(num_ids, num_outputs)
        self.pairs = nn.Embedding(buckets, num_outputs)
        nn.init.zeros_(self.words.weight)
        nn.init.zeros_(self.pairs.weight)
        self.embedding = nn.Embedding(num_ids, width, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight.normal_(std=0.1)[0] = 0.0
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, channels, window, padding=window // 2) for window in windows
        )
        self.attention = nn.Linear(channels, 1) if attention else None
        self.dropout = nn.Dropout(dropout)
        pools = 3 if attention else 2
        num_pooled = width + pools * len(windows) * channels
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(num_pooled + num_features, hidden), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(hidden, num_outputs),
        )  # fmt: skip

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
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
            if self.attention is not None:
                weights = self.attention(windows.transpose(1, 2)).squeeze(2)
                weights = weights.masked_fill(mask.squeeze(1) == 0, -1e4).softmax(1)
                pooled.append((windows * weights.unsqueeze(1)).sum(2))
        return self.head(torch.cat([*pooled, features], 1))

    def _wide(self, ids: Tensor, is_word: Tensor) -> Tensor:
        total = (self.words(ids) * is_word.unsqueeze(2)).sum(1)
        pairs = (ids[:, :-1] * PAIR_FACTORS[0] + ids[:, 1:] * PAIR_FACTORS[1]) % self.buckets
        total = total + (self.pairs(pairs) * is_word[:, 1:].unsqueeze(2)).sum(1)
        if self.trigrams and ids.shape[1] > 2:
            threes = ids[:, :-2] * 7_368_787 + ids[:, 1:-1] * 1_000_003 + ids[:, 2:] * 7_919
            total = total + (self.pairs(threes % self.buckets) * is_word[:, 2:].unsqueeze(2)).sum(1)
        return total


class LiteInputs:
    """Prompts as the network's arguments."""

    def __init__(
        self, prompts: Sequence[str], max_length: int, extra: Callable[[Any], list[float]] | None
    ) -> None:
        self.tokenizer = WordTokenizer.learn(
            prompts, max_words=24_000, min_count=2, num_hash_buckets=1_000, max_length=max_length
        )
        self.extra = extra

    def encode(self, rows: Rows) -> list[tuple[list[int], list[float]]]:
        length = self.tokenizer.max_length
        more = self.extra or (lambda record: [])
        return [
            (self.tokenizer.encode(prompt), surface_features(prompt, length) + more(record))
            for prompt, record in zip(rows.prompts, rows.records, strict=True)
        ]

    @staticmethod
    def collate(encoded: Sequence[tuple[list[int], list[float]]]) -> tuple[Tensor, Tensor]:
        ids, features = zip(*encoded, strict=True)
        return torch.from_numpy(pad(ids)), torch.tensor(features)


def train_lite(
    spec: Spec,
    train: Rows,
    test: Rows,
    extra: Callable[[Any], list[float]] | None = None,
    prepare: Callable[[Lite, LiteInputs], None] | None = None,
) -> tuple[np.ndarray, float]:
    """Scores of the test rows, and training seconds."""
    torch.manual_seed(spec.seed)
    started = time.perf_counter()
    inputs = LiteInputs(train.prompts, spec.max_length, extra)
    logs = torch.tensor(np.log(train.relative_lengths()), dtype=torch.float32)
    wanted = objective(spec.objective, logs)
    encoded = inputs.encode(train)
    options = dict(spec.network) | {"num_features": len(encoded[0][1])}
    network = Lite(inputs.tokenizer.num_ids, wanted.num_outputs, **options)
    if prepare:
        prepare(network, inputs)
    fit(network, encoded, inputs.collate, logs, wanted, spec)
    seconds = time.perf_counter() - started
    return score(network, inputs.encode(test), inputs.collate, wanted), seconds


def fit(
    network: nn.Module,
    encoded: Sequence[Any],
    collate: Callable[[Sequence[Any]], tuple[Tensor, ...]],
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
            batch = sorted(batch, key=lambda row: len(encoded[row][0]))
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
    wanted: Objective,
    per_pass: int = 64,
) -> np.ndarray:
    network.eval()
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row][0]))
    scores = np.empty(len(encoded))
    for start in range(0, len(order), per_pass):
        rows = order[start : start + per_pass]
        outputs = network(*collate([encoded[row] for row in rows]))
        scores[rows] = wanted.score(outputs).double().numpy()
    return scores
