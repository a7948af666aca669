"""The two rankers in torch, each a network with its tokenizer; and their weights from files."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pars.errors import ParsError, RankerError
from pars.learn.data.hub import ask_hub_for
from pars.learn.data.tables import first_line
from pars.learn.training.config import TrainConfig
from pars.learn.training.networks import EncoderRanker, LiteRanker, Readout
from pars.learn.training.objectives import READOUTS
from pars.ranking.ranker import pad, tokenizable
from pars.ranking.word_vectors import word_vectors
from pars.request.words import WordTokenizer

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)*((?:encoder\.)?)(?:(?:module|_orig_mod)\.)*")
_LONGEST_REASON = 200  # torch names every parameter that is missing


class PromptModel(Protocol):
    """A network with its tokenizer: what training, export and scoring with torch need of either."""

    kind: str
    network: nn.Module
    max_length: int

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        """Each prompt as the network's numbers, not yet padded."""
        ...

    def num_tokens(self, encoded: Any) -> int:
        """How long one encoded prompt is."""
        ...

    def collate(self, encoded: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
        """The network's arguments for some encoded prompts, padded to the longest of them."""
        ...

    def tokenizer_json(self) -> str:
        """The tokenizer file of a ranker folder."""
        ...


class EncoderModel:
    """An `EncoderRanker` and its Hugging Face tokenizer."""

    kind = "encoder"

    def __init__(self, network: EncoderRanker, tokenizer: Any, max_length: int) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self.network, self.max_length = network, max_length
        self._tokenizer = tokenizer

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        batch = self._tokenizer.encode_batch_fast(tokenizable(prompts, self.max_length))
        return [encoding.ids for encoding in batch]

    def num_tokens(self, encoded: Any) -> int:
        return len(encoded)

    def collate(self, encoded: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
        lengths = torch.tensor([len(ids) for ids in encoded])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return {
            "input_ids": torch.from_numpy(pad(encoded)).to(device),
            "attention_mask": mask.to(device),
        }

    def tokenizer_json(self) -> str:
        return str(self._tokenizer.to_str())


class LiteModel:
    """A `LiteRanker` and its word tokenizer."""

    kind = "lite"

    def __init__(self, network: LiteRanker, tokenizer: WordTokenizer) -> None:
        self.network, self.max_length = network, tokenizer.max_length
        self.tokenizer = tokenizer

    @classmethod
    def untrained(
        cls, prompts: Iterable[str], max_length: int, readout: Readout | None = None
    ) -> "LiteModel":
        """A new network over the words of `prompts`."""
        tokenizer = WordTokenizer.learn(
            prompts,
            max_words=24_000,
            min_count=2,
            num_hash_buckets=1_000,
            max_length=max_length,
            num_last=max_length // 4,
        )
        return cls.over(tokenizer, readout)

    @classmethod
    def over(cls, tokenizer: WordTokenizer, readout: Readout | None = None) -> "LiteModel":
        """A new network over a tokenizer's words, whose vectors start where English has them."""
        network = LiteRanker(
            tokenizer.num_ids, num_features=tokenizer.num_features, readout=readout
        )
        start = word_vectors()
        places = {word: place for place, word in enumerate(start.words)}
        known = [word for word in tokenizer.vocabulary if word in places]
        vectors = start.vectors[[places[word] for word in known]]
        with torch.no_grad():
            ids = torch.tensor([tokenizer.id_of(word) for word in known], dtype=torch.long)
            network.embedding.weight[ids] = torch.from_numpy(vectors)
        return cls(network, tokenizer)

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        encode, features = self.tokenizer.encode, self.tokenizer.features
        return [(encode(prompt), features(prompt)) for prompt in prompts]

    def num_tokens(self, encoded: Any) -> int:
        return len(encoded[0])

    def collate(self, encoded: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
        ids, features = zip(*encoded, strict=True)
        return {
            "input_ids": torch.from_numpy(pad(ids)).to(device),
            "features": torch.tensor(features, dtype=torch.float32, device=device),
        }

    def tokenizer_json(self) -> str:
        return self.tokenizer.to_json()


def new_model(config: TrainConfig, prompts: list[str]) -> PromptModel:
    """The model that `config` asks for, untrained but for an encoder's own weights."""
    if config.num_workers:
        os.environ.setdefault("RAYON_NUM_THREADS", str(config.num_workers))  # tokenizers' threads
    readout = READOUTS.get(config.objective)
    if config.model == "lite":
        return LiteModel.untrained(prompts, config.max_length, readout)
    return load_encoder(config.model_name, config.max_length, config.pooling, readout)


def _pooling_of(config: Any, model_name: str, pooling: str) -> str:
    """
    How the tokens' vectors become one: of a decoder, which reads from left to right, by default the
    last one, since its first token has seen nothing of the rest.

    Raises:
        RankerError: the model cannot be pooled so.
    """
    from transformers.models.auto import modeling_auto as known

    kind = config.model_type
    both = known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    is_decoder = kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in both
    if getattr(config, "is_encoder_decoder", False):
        raise RankerError(
            f"--model-name {model_name}: {kind} is an encoder with a decoder; a ranker is made of"
            " an encoder, such as BERT, RoBERTa or MiniLM, or of a decoder, such as OPT or GPT-2"
        )
    if is_decoder and pooling == "cls":
        raise RankerError(
            f"--pooling cls: {model_name} is a decoder ({kind}), whose first token has seen"
            " nothing of the prompt: want last or mean"
        )
    return "last" if is_decoder and pooling == "auto" else pooling


def _with_end_token(tokenizer: Any, model_name: str) -> Any:
    """
    The fast tokenizer, which puts an end token behind every prompt if it would put nothing.

    Decoders' tokenizers often add none, and then an empty prompt has no token to take a vector of.
    """
    from tokenizers.processors import TemplateProcessing

    fast = tokenizer.backend_tokenizer
    if fast.encode("").ids:
        return fast
    token, number = tokenizer.eos_token, tokenizer.eos_token_id
    if token is None or number is None:
        raise RankerError(
            f"--model-name {model_name}: its tokenizer puts no token around a prompt, and has no"
            " end token, so an empty prompt cannot be read"
        )
    fast.post_processor = TemplateProcessing(single=f"$A {token}", special_tokens=[(token, number)])
    return fast


def _num_readable(encoder: Any) -> int | None:
    """Tokens that an encoder can read; None: it does not say."""
    num_positions: int | None = getattr(encoder.config, "max_position_embeddings", None)
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    if num_positions is None or padding is None:
        return num_positions
    return num_positions - padding - 1  # RoBERTa counts positions from behind its padding's


def load_encoder(
    model_name: str, max_length: int, pooling: str = "auto", readout: Readout | None = None
) -> EncoderModel:
    """
    A Hugging Face encoder, or decoder, under a new head, from a folder or the Hub.

    Args:
        pooling: one of POOLINGS; see `TrainConfig`.
        readout: of the head; None: one output.

    Raises:
        DataError: the Hub has no such model, or cannot be reached.
        RankerError: the model cannot be loaded or pooled so, has no fast tokenizer, or reads
            fewer than `max_length` tokens.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        is_here = Path(model_name).is_dir() or try_to_load_from_cache(model_name, "config.json")
        if not is_here and not constants.HF_HUB_OFFLINE:
            ask_hub_for("model", model_name, None, "give --model-name a local model folder")
        # Half precision, as some are stored, is for running; training needs float32.
        encoder = AutoModel.from_pretrained(model_name).float()
        tokenizer = AutoTokenizer.from_pretrained(model_name)
    except ParsError:
        raise
    except Exception as error:  # its loaders raise whatever their file formats raise
        raise RankerError(
            f"--model-name {model_name}: neither a local model folder nor a Hub model that can be "
            f"loaded: {first_line(error)}"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise RankerError(f"--model-name {model_name}: has no fast tokenizer (tokenizer.json)")
    pooling = _pooling_of(encoder.config, model_name, pooling)
    encoder.config.use_cache = False  # a decoder would return its keys and values, too
    num_positions = _num_readable(encoder) or max_length
    if max_length > num_positions:
        raise RankerError(
            f"--max-length {max_length}: {model_name} reads at most {num_positions} tokens"
        )
    network = EncoderRanker(encoder, readout, pooling)
    return EncoderModel(network, _with_end_token(tokenizer, model_name), max_length)


def _without_wrappers(state: dict[str, Any]) -> dict[str, Any]:
    """
    A state dict under the model's own names.

    DataParallel and DistributedDataParallel put `module.` before them, torch.compile `_orig_mod.`,
    around the whole model or its encoder alone; some keep it beside an optimizer's state.
    """
    for name in ("model_state_dict", "state_dict"):
        if isinstance(state.get(name), dict):
            state = state[name]
    bare = {_WRAPPERS.sub(r"\1", name): tensor for name, tensor in state.items()}
    # PARS trained under older transformers keeps a buffer that newer ones make anew.
    bare.pop("encoder.embeddings.position_ids", None)
    return bare


def load_weights(model: nn.Module, path: Path) -> None:
    """
    Load a plain state dict (`best_model.pt`, PARS's or ours), never pickled code.

    Raises:
        RankerError: the file is missing, damaged, holds more than tensors, or fits another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(_without_wrappers(state))
    except FileNotFoundError:
        raise RankerError(f"{path}: no such checkpoint") from None
    except (
        Exception
    ) as error:  # damaged zip, pickled code, other names: all mean "not this model's"
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split())
        told = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
        raise RankerError(f"{path}: not a state dict of this model: {told}") from error
