"""The two networks in torch: from token ids to one score a prompt."""

import torch
from torch import Tensor, nn

from pars.request.words import NUM_FEATURES

PAIR_FACTORS = (1_000_003, 7_919)  # two primes that spread a pair of ids over the buckets


class EncoderRanker(nn.Module):  # type: ignore[misc]  # torch is not checked against
    """
    A Hugging Face encoder and one linear layer: PARS's predictor (arXiv 2510.03243, section 3).

    Its state dict has PARS's names: encoder.*, fc.weight, fc.bias.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc = nn.Linear(encoder.config.hidden_size, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores [num_prompts] from ids and mask [num_prompts, num_tokens]."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        pooled = getattr(output, "pooler_output", None)
        hidden = output.last_hidden_state[:, 0] if pooled is None else pooled
        return self.fc(hidden).squeeze(-1)


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
    ) -> None:
        super().__init__()
        self.num_pair_buckets, self.num_features = num_pair_buckets, num_features
        self.word_weight = nn.Embedding(num_ids, 1)
        self.pair_weight = nn.Embedding(num_pair_buckets, 1)
        nn.init.zeros_(self.word_weight.weight)
        nn.init.zeros_(self.pair_weight.weight)
        self.embedding = nn.Embedding(num_ids, width, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight.normal_(std=0.1)[0] = 0.0  # the padding, which stays zero
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, window, padding=window // 2) for window in windows
        )
        self.dropout = nn.Dropout(dropout)
        self.direct = nn.Linear(num_features, 1, bias=False)
        nn.init.zeros_(self.direct.weight)
        num_pooled = width * (1 + 2 * len(windows))
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(num_pooled + num_features, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, 1),
        )

    def forward(self, input_ids: Tensor, features: Tensor) -> Tensor:
        """Scores [num_prompts] from ids [num_prompts, num_words] and their surface features."""
        is_word = (input_ids > 0).unsqueeze(1).to(features.dtype)
        num_words = is_word.sum(dim=2).clamp(min=1)
        words = self.dropout(self.embedding(input_ids).to(features.dtype)).transpose(1, 2) * is_word
        pooled = [words.sum(dim=2) / num_words]
        for convolution in self.convolutions:
            # ReLU leaves nothing below zero, so the padding's zeros never win the maximum.
            windows = torch.relu(convolution(words)) * is_word
            pooled += [windows.sum(dim=2) / num_words, windows.amax(dim=2)]
        deep = self.head(torch.cat([*pooled, features], dim=1)) + self.direct(features)
        return (
            deep.squeeze(-1)
            + self._wide(input_ids, is_word.squeeze(1)) / num_words.squeeze(1).sqrt()
        )

    def _wide(self, input_ids: Tensor, is_word: Tensor) -> Tensor:
        """The summed weights of the words, and of the pairs of neighbours: [num_prompts]."""
        pairs = (input_ids[:, :-1] * PAIR_FACTORS[0] + input_ids[:, 1:] * PAIR_FACTORS[1]) % (
            self.num_pair_buckets
        )
        words = (self.word_weight(input_ids).squeeze(-1) * is_word).sum(dim=1)
        # A pair is there where its second word is; the product also silences the padding's pairs.
        return words + (self.pair_weight(pairs).squeeze(-1) * is_word[:, 1:]).sum(dim=1)

    def round_tables(self) -> None:
        """Round the three tables to half precision, as they are stored, so that copies agree."""
        with torch.no_grad():
            for table in (self.embedding, self.word_weight, self.pair_weight):
                table.weight.copy_(table.weight.half().float())
