"""
`EncoderRanker.forward` as an ONNX graph, with any number of prompts and tokens.

torch.export writes the graph. What it writes for BERT and its kin is our own forward over the same
weights, in two ways cheaper and otherwise the same: the last layer computes its first token only,
the one that the score reads (a seventh of the arithmetic of six layers), and attention is spelled
out (half as many operators as the exporter makes of PyTorch's).
"""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pars.learn.training.models import EncoderModel
from pars.learn.training.networks import EncoderRanker
from pars.ranking.ranker import import_onnxruntime

NAMES = ["input_ids", "attention_mask"]
WEIGHTS_A_SCALE = 128


def encoder_graph(model: EncoderModel, examples: Sequence[str]) -> bytes:
    """The graph as bytes: ids and mask [prompts, tokens] to scores [prompts]; two `examples`."""
    example = model.collate(model.encode(examples), torch.device("cpu"))
    prompts, tokens = torch.export.Dim("prompts"), torch.export.Dim("tokens")
    network: Any = model.network
    with _quiet_exporter():
        program = torch.onnx.export(
            FirstTokenBert(network) if is_bert(network) else network,
            tuple(example[name] for name in NAMES),
            input_names=NAMES,
            output_names=["scores"],
            dynamic_shapes=({0: prompts, 1: tokens}, {0: prompts, 1: tokens}),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        return bytes(program.model_proto.SerializeToString())


def is_bert(network: EncoderRanker) -> bool:
    """Whether the encoder is BERT (arXiv 1810.04805) with plain attention, as MiniLM is."""
    config: Any = network.encoder.config
    return (
        config.model_type == "bert"
        and network.pooling == "auto"
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and getattr(network.encoder, "pooler", None) is not None
    )


class FirstTokenBert(nn.Module):  # type: ignore[misc]  # torch is not checked against
    """The scores of an `EncoderRanker` around BERT, from the first token of the last layer."""

    def __init__(self, network: EncoderRanker) -> None:
        super().__init__()
        self.embeddings, self.pooler = network.encoder.embeddings, network.encoder.pooler
        self.layers, self.fc = network.encoder.encoder.layer, network.fc
        self.readout = network.readout
        self.num_heads = network.encoder.config.num_attention_heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores [num_prompts] from ids and mask [num_prompts, num_tokens]."""
        hidden = self.embeddings(input_ids=input_ids)
        hides = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -1e4
        for number, layer in enumerate(self.layers):
            is_last = number == len(self.layers) - 1
            hidden = self._layer(layer, hidden, hidden[:, :1] if is_last else hidden, hides)
        return self.readout.score(self.fc(self.pooler(hidden)))

    def _layer(self, layer: Any, hidden: Tensor, reads: Tensor, hides: Tensor) -> Tensor:
        """The layer's output for the tokens that `reads` holds: [prompts, tokens read, width]."""
        attention = layer.attention.self
        query = self._heads(attention.query(reads))
        key, value = self._heads(attention.key(hidden)), self._heads(attention.value(hidden))
        query = query * (1 / math.sqrt(query.shape[-1]))
        weights = (query @ key.transpose(2, 3) + hides).softmax(-1)
        read = (weights @ value).transpose(1, 2).flatten(2)
        attended = layer.attention.output(read, reads)
        return layer.output(layer.intermediate(attended), attended)

    def _heads(self, columns: Tensor) -> Tensor:
        """[prompts, tokens, width] to [prompts, heads, tokens, width of a head]."""
        return columns.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def int8_graph(graph: bytes) -> bytes:
    """
    The same graph with 8-bit matrix products: a scale for 128 weights of a column and for as many
    inputs of a row, in ONNX Runtime's MatMulNBits. All else stays in float32.

    On a CPU with 8-bit dot products (VNNI) it takes two thirds of the time. Plain dynamic
    quantization, with one scale for all inputs, is faster still but ranks otherwise (Kendall tau-b
    0.97 with float32, against 0.99).
    """
    import onnx

    import_onnxruntime()
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # For each product it quantizes it logs a line.
    logging.disable(logging.WARNING)
    try:
        quantizer = MatMulNBitsQuantizer(
            onnx.load_from_string(graph),
            bits=8,
            block_size=WEIGHTS_A_SCALE,
            is_symmetric=True,
            accuracy_level=4,  # computes in 8 bits; by default it would turn weights back to float
        )
        quantizer.process()
    finally:
        logging.disable(logging.NOTSET)
    return bytes(quantizer.model.model.SerializeToString())


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter reports its own steps and torchvision's absence; nobody can act on either."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
