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
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pars.learn.models import EncoderModel, EncoderRanker

NAMES = ["input_ids", "attention_mask"]


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
        self.num_heads = network.encoder.config.num_attention_heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores [num_prompts] from ids and mask [num_prompts, num_tokens]."""
        hidden = self.embeddings(input_ids=input_ids)
        hides = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -1e4
        for number, layer in enumerate(self.layers):
            is_last = number == len(self.layers) - 1
            hidden = self._layer(layer, hidden, hidden[:, :1] if is_last else hidden, hides)
        return self.fc(self.pooler(hidden)).squeeze(-1)

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
    The same graph with 8-bit matrix products (dynamic quantization, a scale a column of weights).

    On a CPU with 8-bit dot products (VNNI, AMX, Arm's dotprod) it takes less than half the time of
    float32; on one without, more. Embeddings, attention and sums stay in float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        logging.disable(logging.WARNING)  # it advises a preparation that has nothing to prepare
        try:
            quantize_dynamic(
                onnx.load_from_string(graph),
                path,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        finally:
            logging.disable(logging.NOTSET)
        return path.read_bytes()


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
