"""The two networks in torch: from token ids to one score a prompt."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pars.request.words import NUM_FEATURES

PAIR_FACTORS = (1_000_003, 7_919)  # two primes that spread a pair of ids over the buckets


@dataclass(frozen=True, slots=True)
class Readout:
    """
    How a network's outputs [num_prompts, num_outputs] become its scores.

    The score is the output in `column`; None: the outputs are classes, and it is the expected one.
    """

    num_outputs: int = 1
    column: int | None = 0

    def score(self, outputs: Tensor) -> Tensor:
        """Scores [num_prompts], higher for a longer answer."""
        if self.column is not None:
            return outputs[:, self.column]
        places = torch.arange(self.num_outputs, dtype=outputs.dtype, device=outputs.device)
        return outputs.softmax(1) @ places


class EncoderRanker(nn.Module):  # type: ignore[misc]  # torch is not checked against
    """
    A Hugging Face encoder and one linear layer: PARS's predictor (arXiv 2510.03243, section 3).

    Its state dict has PARS's names: encoder.*, fc.weight, fc.bias.
    """

    def __init__(
        self, encoder: nn.Module, readout: Readout | None = None, pooling: str = "auto"
    ) -> None:
        super().__init__()
        self.encoder, self.readout, self.pooling = encoder, readout or Readout(), pooling
        self.fc = nn.Linear(encoder.config.hidden_size, self.readout.num_outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores [num_prompts] from ids and mask [num_prompts, num_tokens]."""
        return self.readout.score(self.outputs(input_ids, attention_mask))

    def outputs(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the objective is about, [num_prompts, num_outputs]."""
        told = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return self.fc(self._pooled(told, attention_mask))

    def _pooled(self, told: Any, mask: Tensor) -> Tensor:
        """One vector a prompt, [num_prompts, width]."""
        hidden: Tensor = told.last_hidden_state
        if self.pooling == "mean":
            weights = mask.unsqueeze(2).to(hidden.dtype)
            return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        if self.pooling == "last":
            last = (mask.sum(1) - 1).clamp(min=0)
            return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
        pooled = getattr(told, "pooler_output", None) if self.pooling == "auto" else None
        return hidden[:, 0] if pooled is None else pooled


class LiteRanker(nn.Module):  # type: ignore[misc]
    """
    A wide part, one weight a word and a hashed word pair, and a deep part, windows of words.

    Wide and deep (arXiv 1606.07792): the wide part remembers what single words and pairs say, as
    TF-IDF with ridge regression does; the deep part is Kim's convolutional sentence classifier
    (arXiv 1408.5882) with mean pooling beside the maximum and surface features. These also
    have a weight each of their own, since the head is slow to learn a plain "the more, the longer".
    `num_ids`, `num_features` and the padding id 0 are `pars.request.words`'.
    """

    def __init__(
        self,
        num_ids: int,
        *,
        num_features: int = NUM_FEATURES,
        width: int = 64,
        windows: tuple[int, ...] = (3, 5),
        num_pair_buckets: int = 1 << 17,
        dropout: float = 0.2,
        readout: Readout | None = None,
    ) -> None:
        super().__init__()
        self.readout = readout or Readout()
        num_outputs = self.readout.num_outputs
        self.num_pair_buckets, self.num_features = num_pair_buckets, num_features
        self.word_weight = nn.Embedding(num_ids, num_outputs)
        self.pair_weight = nn.Embedding(num_pair_buckets, num_outputs)
        nn.init.zeros_(self.word_weight.weight)
        nn.init.zeros_(self.pair_weight.weight)
        self.embedding = nn.Embedding(num_ids, width, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight.normal_(std=0.1)[0] = 0.0  # the padding, which stays zero
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, window, padding=window // 2) for window in windows
        )
        self.dropout = nn.Dropout(dropout)
        self.direct = nn.Linear(num_features, num_outputs, bias=False)
        nn.init.zeros_(self.direct.weight)
        num_pooled = width * (1 + 2 * len(windows))
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(num_pooled + num_features, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, num_outputs),
        )

    def forward(self, input_ids: Tensor, features: Tensor) -> Tensor:
        """Scores [num_prompts] from ids [num_prompts, num_words] and their surface features."""
        return self.readout.score(self.outputs(input_ids, features))

    def outputs(self, input_ids: Tensor, features: Tensor) -> Tensor:
        """What the objective is about, [num_prompts, num_outputs]."""
        is_word = (input_ids > 0).unsqueeze(1).to(features.dtype)
        num_words = is_word.sum(dim=2).clamp(min=1)
        words = self.dropout(self.embedding(input_ids).to(features.dtype)).transpose(1, 2) * is_word
        pooled = [words.sum(dim=2) / num_words]
        for convolution in self.convolutions:
            # ReLU leaves nothing below zero, so the padding's zeros never win the maximum.
            windows = torch.relu(convolution(words)) * is_word
            pooled += [windows.sum(dim=2) / num_words, windows.amax(dim=2)]
        deep = self.head(torch.cat([*pooled, features], dim=1)) + self.direct(features)
        return deep + self._wide(input_ids, is_word.squeeze(1).unsqueeze(2)) / num_words.sqrt()

    def _wide(self, input_ids: Tensor, is_word: Tensor) -> Tensor:
        """The summed weights of words and of pairs of neighbours: [num_prompts, num_outputs]."""
        pairs = (input_ids[:, :-1] * PAIR_FACTORS[0] + input_ids[:, 1:] * PAIR_FACTORS[1]) % (
            self.num_pair_buckets
        )
        words = (self.word_weight(input_ids) * is_word).sum(dim=1)
        # A pair is there where its second word is; the product also silences the padding's pairs.
        return words + (self.pair_weight(pairs) * is_word[:, 1:]).sum(dim=1)

    def round_tables(self) -> None:
        """Round the three tables to half precision, as they are stored, so that copies agree."""
        with torch.no_grad():
            for table in (self.embedding, self.word_weight, self.pair_weight):
                table.weight.copy_(table.weight.half().float())
