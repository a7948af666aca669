"""
`LiteRanker.forward` as an ONNX graph, operator by operator.

Written out because torch's exporter takes longer than the whole training of a lite ranker, and
because every operator costs a microsecond a call: this graph has 60, the exporter's about 120.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pars.learn.training.models import LiteModel
from pars.learn.training.networks import PAIR_FACTORS, LiteRanker

OPSET, IR_VERSION = 18, 9  # what ONNX Runtime 1.17 reads
NUM_POOLED = 5  # vectors of a prompt: the words' mean, and mean and maximum of two sizes of window
NUM_HEAD = 4  # constants of the head: two layers' weights and biases


def lite_graph(model: LiteModel) -> bytes:
    """The graph as bytes: input_ids [prompts, words], features [prompts, n] to scores [prompts]."""
    from onnx import TensorProto, helper

    graph = _Graph()
    ids, num_features = "input_ids", model.network.num_features
    is_word = graph.cast(graph.add("Greater", ids, graph.constant(np.array(0))), TensorProto.FLOAT)
    # The padding's embedding and weight are zero, and it counts as no word.
    num_words = graph.add("Max", graph.total(is_word), graph.constant(np.float32(1)))
    deep = _deep(graph, model.network, ids, is_word, num_words)
    wide = _wide(graph, model.network, ids, is_word)
    wide_mean = graph.add("Div", wide, graph.add("Sqrt", num_words))
    outputs = graph.add("Add", deep, wide_mean)
    if _columns(model.network) == slice(None):
        places = graph.constant(np.arange(model.network.readout.num_outputs, dtype=np.float32))
        graph.add("MatMul", graph.add("Softmax", outputs, axis=1), places, output="scores")
    else:
        graph.add("Squeeze", outputs, graph.constant(np.array([1])), output="scores")
    made = helper.make_graph(
        graph.nodes,
        "lite_ranker",
        [
            helper.make_tensor_value_info(ids, TensorProto.INT64, ["prompts", "words"]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["prompts", num_features]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["prompts"])],
        graph.constants,
    )
    opset = helper.make_opsetid("", OPSET)
    return bytes(
        helper.make_model(made, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString()
    )


def read_lite_graph(graph: bytes) -> LiteRanker:
    """
    The network that `lite_graph` wrote: its constants, in the order in which they were added.

    Raises:
        ValueError: the graph holds other constants than `lite_graph` writes.
    """
    import onnx
    from onnx import numpy_helper

    constants = [numpy_helper.to_array(it) for it in onnx.load_from_string(graph).graph.initializer]
    tables = [it for it in constants if it.dtype == np.float16]
    weights = [it for it in constants if it.dtype == np.float32 and it.ndim]
    if len(tables) != 3 or len(weights) < NUM_HEAD + 1:
        raise ValueError("not the graph of a lite ranker")
    embedding, word_weight, pair_weight = tables
    if word_weight.ndim > 1:
        raise ValueError("it tells classes, and only a ranker with one output can learn on")
    *places, first, first_bias, second, second_bias = weights
    num_ids, width = embedding.shape
    num_features = first.shape[1] - width * NUM_POOLED
    network = LiteRanker(
        num_ids, num_features=num_features, width=width, num_pair_buckets=len(pair_weight)
    )
    layers = list(network.convolutions)
    reach = max(layer.padding[0] for layer in layers)
    bias = places.pop(reach + 1)  # it is added to the word in the middle
    if len(places) != 2 * reach + 1:
        raise ValueError("windows of another size")
    with torch.no_grad():
        _fill(network.embedding.weight, embedding)
        _fill(network.word_weight.weight, word_weight[:, None])
        _fill(network.pair_weight.weight, pair_weight[:, None])
        for number, layer in enumerate(layers):
            channels = slice(number * layer.out_channels, (number + 1) * layer.out_channels)
            own = places[reach - layer.padding[0] : reach + layer.padding[0] + 1]
            _fill(layer.weight, np.stack([table.T[channels] for table in own], axis=2))
            _fill(layer.bias, bias[channels])
        _fill(network.head[1].weight, _by_layer(network, first))
        _fill(network.head[1].bias, first_bias)
        _fill(network.head[4].weight, second[:, :width])
        if second.shape[1] > width:  # before format 3 the features had no weights of their own
            _fill(network.direct.weight, second[:, width:])
        _fill(network.head[4].bias, second_bias)
    return network


def _fill(parameter: Any, values: NDArray[Any]) -> None:
    if tuple(parameter.shape) != values.shape:
        raise ValueError(f"an array of {values.shape} and not {tuple(parameter.shape)}")
    parameter.copy_(torch.from_numpy(values.astype(np.float32)))


class _Graph:
    """Nodes and constants, named in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """One operator; the name of its output."""
        from onnx import helper

        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        """An array stored with the graph, of the type it has."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def cast(self, name: str, to: int) -> str:
        """The same values in another type."""
        return self.add("Cast", name, to=to)

    def total(self, name: str) -> str:
        """The sum over the last axis, which stays with length 1."""
        return self.add("ReduceSum", name, self.constant(np.array([-1])), keepdims=1)

    def look_up(self, table: str, ids: str) -> str:
        """Rows of a table that is stored in half precision."""
        from onnx import TensorProto

        return self.cast(self.add("Gather", table, ids), TensorProto.FLOAT)


def _columns(network: LiteRanker) -> slice:
    """The outputs that the score needs: one of them, or all where they are classes."""
    column = network.readout.column
    return slice(None) if column is None else slice(column, column + 1)


def _deep(graph: _Graph, network: LiteRanker, ids: str, is_word: str, num_words: str) -> str:
    """Embedding, windows, pooling and head: [prompts, outputs]."""
    words = graph.constant(_array(network.embedding.weight).astype(np.float16))
    middle, last = graph.constant(np.array([1])), graph.constant(np.array([-1]))

    def mean(columns: str) -> str:
        return graph.add("Div", graph.add("ReduceSum", columns, middle, keepdims=0), num_words)

    mask = graph.add("Unsqueeze", is_word, last)
    windows = graph.add("Relu", _windows(graph, network.convolutions, ids, words))
    windows = graph.add("Mul", windows, mask)
    pooled = [
        mean(graph.look_up(words, ids)),
        mean(windows),
        graph.add("ReduceMax", windows, middle, keepdims=0),
    ]
    hidden = graph.add("Concat", *pooled, "features", axis=1)
    head, second = network.head[1], network.head[4]
    first = (graph.constant(_by_statistic(network)), graph.constant(_array(head.bias)))
    hidden = graph.add("Relu", graph.add("Gemm", hidden, *first, transB=1))
    # The features' own weights stand beside the second layer's: one product for both.
    weights = np.concatenate([_array(second.weight), _array(network.direct.weight)], axis=1)
    rows = _columns(network)
    last_layer = (graph.constant(weights[rows]), graph.constant(_array(second.bias)[rows]))
    hidden = graph.add("Concat", hidden, "features", axis=1)
    return graph.add("Gemm", hidden, *last_layer, transB=1)


def _windows(graph: _Graph, layers: Any, ids: str, words: str) -> str:
    """
    All convolutions before their ReLU: [prompts, words, channels of all layers].

    A convolution over looked-up embeddings is a sum of look-ups: what the word at each place of the
    window adds is its embedding times that place's weights. The products are constants, which ONNX
    Runtime multiplies out when it loads the graph (8 times fewer bytes are stored than used), and
    a score needs no multiplication: a tenth of the convolutions' time.
    """
    from onnx import TensorProto

    reach = max(layer.padding[0] for layer in layers)
    floats = graph.cast(words, TensorProto.FLOAT)
    padded = graph.add("Pad", ids, graph.constant(np.array([0, reach, 0, reach])))
    num_words = graph.add("Gather", graph.add("Shape", ids), graph.constant(np.array([1])))
    added = []
    for place in range(-reach, reach + 1):
        weights = np.concatenate([_weights_at(layer, place) for layer in layers])
        table = graph.add("MatMul", floats, graph.constant(np.ascontiguousarray(weights.T)))
        if place == 0:
            bias = np.concatenate([_array(layer.bias) for layer in layers])
            table = graph.add("Add", table, graph.constant(bias))
        first = graph.constant(np.array([place + reach]))
        end = graph.add("Add", num_words, first)
        at_place = graph.add("Slice", padded, first, end, graph.constant(np.array([1])))
        added.append(graph.add("Gather", table, at_place))
    return graph.add("Sum", *added)


def _weights_at(layer: Any, place: int) -> NDArray[np.float32]:
    """What `layer` multiplies the word `place` words to the right by: [channels, width]."""
    weights, reach = _array(layer.weight), layer.padding[0]
    if abs(place) > reach:
        return np.zeros_like(weights[:, :, 0])
    at_place: NDArray[np.float32] = weights[:, :, place + reach]
    return at_place


def _by_statistic(network: LiteRanker) -> NDArray[np.float32]:
    """The head's first weights, its columns in the graph's order: both means, then both maxima."""
    weights = _array(network.head[1].weight)
    width, num_layers = network.embedding.weight.shape[1], len(network.convolutions)
    blocks = np.split(weights[:, : width * (1 + 2 * num_layers)], 1 + 2 * num_layers, axis=1)
    features = weights[:, width * (1 + 2 * num_layers) :]
    return np.concatenate([blocks[0], *blocks[1::2], *blocks[2::2], features], axis=1)


def _by_layer(network: LiteRanker, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """`_by_statistic` undone: mean and maximum of each layer beside each other."""
    num_blocks = 1 + 2 * len(network.convolutions)
    width = network.embedding.weight.shape[1]
    first, *rest = np.split(weights[:, : width * num_blocks], num_blocks, axis=1)
    means, maxima = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    by_layer = [block for pair in zip(means, maxima, strict=True) for block in pair]
    return np.concatenate([first, *by_layer, weights[:, width * num_blocks :]], axis=1)


def _wide(graph: _Graph, network: LiteRanker, ids: str, is_word: str) -> str:
    """One weight for each word and each pair of neighbours, summed: [prompts, outputs]."""
    zero, one, end = (graph.constant(np.array([i])) for i in (0, 1, np.iinfo(np.int64).max))
    last, minus_one = graph.constant(np.array([1])), graph.constant(np.array([-1]))
    left = graph.add("Slice", ids, zero, minus_one, last)
    right = graph.add("Slice", ids, one, end, last)
    factors = [graph.constant(np.array(factor)) for factor in PAIR_FACTORS]
    hashed = graph.add(
        "Add", graph.add("Mul", left, factors[0]), graph.add("Mul", right, factors[1])
    )
    buckets = graph.add("Mod", hashed, graph.constant(np.array(network.num_pair_buckets)))

    def weights(table: NDArray[np.float32], indices: str, mask: str) -> str:
        half = graph.constant(table.astype(np.float16))
        if table.ndim == 1:
            return graph.total(graph.add("Mul", graph.look_up(half, indices), mask))
        weighted = graph.add(
            "Mul", graph.look_up(half, indices), graph.add("Unsqueeze", mask, axis)
        )
        return graph.add("ReduceSum", weighted, last, keepdims=0)

    columns, axis = _columns(network), graph.constant(np.array([-1]))
    words_table, pairs_table = (
        _array(table.weight)[:, columns] for table in (network.word_weight, network.pair_weight)
    )
    if words_table.shape[1] == 1:
        words_table, pairs_table = words_table[:, 0], pairs_table[:, 0]
    words = weights(words_table, ids, is_word)
    is_pair = graph.add("Slice", is_word, one, end, last)
    pairs = weights(pairs_table, buckets, is_pair)
    return graph.add("Add", words, pairs)


def _array(tensor: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().numpy()
    return array
