"""Weights stored as int8 but computed in fp32: embedding tables, and linear layers that are not quantised.

Changes a graph in place. A row of a table, or an output channel of a matrix, is int8 numbers with one scale. A table's
rows are restored after the lookup; a matrix is restored once, when ONNX Runtime folds constants while it loads the
graph. Token vectors, most of a small model's file, can be stored as numbers of 4 bits, two in a byte, with a scale for
each 32 numbers.
"""

from collections.abc import Container
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from kdc.pipeline.graphs.nodes import attribute, float_matrices, replace_nodes

VectorBits = Literal[8, 4]  # of each number of a token's vector

_LARGEST = 127
_BLOCK, _MIDDLE = 32, 8  # 4-bit numbers that share a scale, and the one of them that stands for 0
_SHRUNK = (1.0, 0.9, 0.8, 0.7)  # tried scales of a block, as shares of what reaches its largest number
_SMALLEST_NORMAL_FP16 = 6.2e-5


def store_tables(graph: GraphProto, vector_bits: VectorBits = 8) -> int:
    """Store the tables of embedding lookups (Gather of rows of a float matrix) as int8, and the table of tokens with
    `vector_bits` if its width is a multiple of 32. Returns how many lookups."""
    matrices = float_matrices(graph)
    nodes: list[NodeProto] = []
    lookups = 0
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in matrices and attribute(node, "axis", 0) == 0:
            table = matrices[node.input[0]]
            halves = vector_bits == 4 and node.input[1] == "input_ids" and table.dims[1] % _BLOCK == 0
            nodes += (_unpacked_lookup if halves else _restored_lookup)(graph, table, node)
            lookups += 1
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)
    return lookups


def store_matrices(graph: GraphProto, except_for: Container[str]) -> int:
    """Store the weights of all linear layers (MatMul, Gemm) but those named in `except_for` as int8. Returns how many
    layers."""
    matrices = float_matrices(graph)
    nodes: list[NodeProto] = []
    layers = 0
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices and node.name not in except_for:
            axis = attribute(node, "transB", 0)  # the axis that the product sums over shares a scale
            numbers, scales = _add_int8(graph, matrices[node.input[1]], axis)
            node.input[1] = f"{node.name}_weight"
            nodes += _product(numbers, scales, node.input[1], node.name)
            layers += 1
        nodes.append(node)
    replace_nodes(graph, nodes)
    return layers


def share_with_quantised(graph: GraphProto) -> None:
    """Let stored matrices read the quantised weight of the same matrix, if the quantiser made one.

    DeBERTa projects tokens and positions by the same weights: the first product is quantised, the second is stored, and
    each would have its own copy.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shared: dict[str, str] = {}
    for name, tensor in constants.items():
        source, _, axis = name.rpartition("_int8_")
        numbers, scale = constants.get(f"{source}_quantized"), constants.get(f"{source}_scale")
        if not source or numbers is None or scale is None or numbers.data_type != TensorProto.INT8:
            continue
        by_column = axis == "0" and list(scale.dims) == [tensor.dims[1]]
        zero = constants.get(f"{source}_zero_point")
        if (not scale.dims or by_column) and (zero is None or not numpy_helper.to_array(zero).any()):
            shared |= {name: f"{source}_quantized", f"{source}_scale_{axis}": f"{source}_scale"}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = shared.get(name, name)
    replace_nodes(graph, list(graph.node))


def _restored_lookup(graph: GraphProto, table: TensorProto, node: NodeProto) -> list[NodeProto]:
    numbers, scales = _add_int8(graph, table, axis=1)
    rows, output = node.input[1], node.output[0]
    # The quantiser gives its own scale the name `{output}_scale` where a linear layer reads the lookup directly.
    scale = f"{output}_row_scale"
    return [
        helper.make_node("Gather", [numbers, rows], [f"{output}_int8"], name=f"{node.name}_int8"),
        helper.make_node("Gather", [scales, rows], [scale], name=scale),
        *_product(f"{output}_int8", scale, output, node.name),
    ]


def _unpacked_lookup(graph: GraphProto, table: TensorProto, node: NodeProto) -> list[NodeProto]:
    """A lookup (batch, sequence) of packed rows. The lower bits of a byte hold a number of the row's first half, the
    upper bits a number of its second half."""
    width, output = table.dims[1], node.output[0]
    numbers, scales = _four_bits(numpy_helper.to_array(table).tobytes(), width)
    first, second = np.split(numbers, 2, axis=1)
    constants = {
        "packed": first | second << 4,
        "block_scales": scales,
        "lower": np.uint8(15),
        "upper": np.uint8(4),
        "middle": np.float32(_MIDDLE),
        "blocks": np.array([0, 0, width // _BLOCK, _BLOCK]),  # 0 keeps what is there
        "row": np.array([0, 0, width]),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), f"{output}_{part}") for part, value in constants.items()
    )
    rows, restored = node.input[1], f"{output}_restored"

    def step(operator: str, inputs: str, result: str, **attributes: Any) -> NodeProto:
        names = [rows if part == "rows" else f"{output}_{part}" for part in inputs.split()]
        return helper.make_node(operator, names, [f"{output}_{result}"], name=f"{output}_{result}_step", **attributes)

    return [
        step("Gather", "packed rows", "bytes"),
        step("BitwiseAnd", "bytes lower", "first"),
        step("BitShift", "bytes upper", "second", direction="RIGHT"),
        step("Concat", "first second", "numbers", axis=-1),
        step("Cast", "numbers", "float", to=TensorProto.FLOAT),
        step("Sub", "float middle", "centred"),
        step("Reshape", "centred blocks", "blocked"),
        step("Gather", "block_scales rows", "block_scale"),
        *_product(f"{output}_blocked", f"{output}_block_scale", restored, node.name),
        helper.make_node("Reshape", [restored, f"{output}_row"], [output], name=f"{output}_step"),
    ]


@lru_cache(maxsize=1)  # all candidates of a graph have the same table
def _four_bits(table: bytes, width: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """A table (rows, width) of fp32 as numbers of 0 to 15 of the same shape, and scales (rows, blocks, 1). A block has
    the scale with the least squared error among `_SHRUNK`."""
    blocks = np.frombuffer(table, dtype=np.float32).reshape(-1, width // _BLOCK, _BLOCK)
    reach = np.abs(blocks).max(axis=-1, keepdims=True) / (_MIDDLE - 0.5)
    best = np.full(reach.shape, np.inf, dtype=np.float32)
    numbers, scales = np.zeros(blocks.shape, dtype=np.uint8), np.ones(reach.shape, dtype=np.float16)
    for share in _SHRUNK:
        tried = np.maximum(share * reach, _SMALLEST_NORMAL_FP16).astype(np.float16)
        rounded = np.clip(np.rint(blocks / tried.astype(np.float32)), -_MIDDLE, _MIDDLE - 1)
        error = np.square(rounded * tried - blocks).sum(axis=-1, keepdims=True)
        better = error < best
        best = np.where(better, error, best)
        scales = np.where(better, tried, scales)
        numbers = np.where(better, (rounded + _MIDDLE).astype(np.uint8), numbers)
    return numbers.reshape(-1, width), scales


def _product(numbers: str, scales: str, output: str, name: str) -> list[NodeProto]:
    """Nodes for output = float(numbers) * float(scales)."""
    return [
        helper.make_node("Cast", [numbers], [f"{output}_float"], name=f"{name}_float", to=TensorProto.FLOAT),
        helper.make_node("Cast", [scales], [f"{output}_scale_float"], name=f"{name}_scale_float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{output}_float", f"{output}_scale_float"], [output], name=f"{name}_restored"),
    ]


def _add_int8(graph: GraphProto, tensor: TensorProto, axis: int) -> tuple[str, str]:
    """Add the int8 form of a matrix to the graph, unless it is there: the numbers along an axis share a scale. Returns
    the names of the numbers and of the scales."""
    names = (f"{tensor.name}_int8_{axis}", f"{tensor.name}_scale_{axis}")
    if any(known.name == names[0] for known in graph.initializer):
        return names
    values = numpy_helper.to_array(tensor)
    largest = np.abs(values).max(axis=axis, keepdims=True)
    scales = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
    if scales.min() >= _SMALLEST_NORMAL_FP16 and scales.max() < np.finfo(np.float16).max:
        scales = scales.astype(np.float16)  # a vocabulary has many rows; the numbers below are rounded with this scale
    numbers = np.clip(np.rint(values / scales.astype(np.float32)), -_LARGEST, _LARGEST).astype(np.int8)
    graph.initializer.extend([numpy_helper.from_array(numbers, names[0]), numpy_helper.from_array(scales, names[1])])
    return names
