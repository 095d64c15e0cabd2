"""Stores embedding tables and unquantised linear layers as int8, computed in fp32.

Each table row or output channel has a scale. Rows of large tables are restored after the lookup, all else at load,
when ONNX Runtime folds constants. Graphs change in place.
"""

from collections.abc import Container
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from kdc.pipeline.graphs.nodes import attribute, float_matrices, moved, replace_nodes

VectorBits = Literal[8, 4]

_LARGEST = 127
_ZERO = 128  # the uint8 number for 0
_NARROWEST = 8  # columns of a table; below, scales take as much space
_RESTORED_AT_LOAD = 1024  # most rows of a table
_MOVES = ("Where", "Unsqueeze", "Pad", "Slice", "Concat")  # of ids, in shallow students
_BLOCK, _MIDDLE = 32, 8  # 4-bit numbers per scale, and the number for 0
_SHRUNK = (1.0, 0.9, 0.8, 0.7)  # scales to try, relative to one that clips nothing
_SMALLEST_NORMAL_FP16 = 6.2e-5


def store_tables(graph: GraphProto, vector_bits: VectorBits = 8) -> int:
    """Store embedding tables as int8; token embeddings in `vector_bits`, if 32 divides their width."""
    matrices = float_matrices(graph)
    nodes: list[NodeProto] = []
    ids = moved(graph, ["input_ids"], _MOVES)
    lookups = 0
    for node in graph.node:
        table = matrices.get(node.input[0]) if node.op_type in ("Gather", "Slice") else None
        if table is None or attribute(node, "axis", 0) != 0 or table.dims[1] < _NARROWEST:
            nodes.append(node)
            continue
        lookups += 1
        if node.input[1] not in ids and table.dims[0] <= _RESTORED_AT_LOAD:
            numbers, scales = _add_int8(graph, table, axis=1)
            node.input[0] = f"{node.name}_table"
            nodes += [*_product(numbers, scales, node.input[0], node.name), node]
        elif vector_bits == 4 and node.input[1] in ids and table.dims[1] % _BLOCK == 0:
            nodes += _unpacked_lookup(graph, table, node)
        else:
            nodes += _restored_lookup(graph, table, node)
    replace_nodes(graph, nodes)
    return lookups


def store_matrices(graph: GraphProto, except_for: Container[str]) -> int:
    matrices = float_matrices(graph)
    nodes: list[NodeProto] = []
    layers = 0
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices and node.name not in except_for:
            axis = attribute(node, "transB", 0)  # numbers along the summed axis share a scale
            numbers, scales = _add_int8(graph, matrices[node.input[1]], axis)
            node.input[1] = f"{node.name}_weight"
            nodes += _product(numbers, scales, node.input[1], node.name)
            layers += 1
        nodes.append(node)
    replace_nodes(graph, nodes)
    return layers


def share_with_quantised(graph: GraphProto) -> None:
    """Let stored matrices use the quantiser's copies: DeBERTa projects tokens and positions by the same weights."""
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


def unit_ranges(graph: GraphProto) -> dict[str, tuple[np.float32, np.float32]]:
    """Ranges whose step is 1 leave looked up numbers as they are stored, so that products read them unrestored."""
    restored = [node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"]
    return dict.fromkeys(moved(graph, restored, ["Reshape"]), (np.float32(-_ZERO), np.float32(_ZERO - 1)))


def _restored_lookup(graph: GraphProto, table: TensorProto, node: NodeProto) -> list[NodeProto]:
    rows, output = node.input[1], node.output[0]
    if set(np.rint(np.abs(numpy_helper.to_array(table)).max(axis=0))) <= {_LARGEST, _LARGEST + 1}:
        return _rounded_lookup(graph, table, node)
    numbers, scales = _add_int8(graph, table, axis=1)
    # The quantiser may use `{output}_scale`.
    scale = f"{output}_row_scale"
    return [
        helper.make_node("Gather", [numbers, rows], [f"{output}_int8"], name=f"{node.name}_int8"),
        helper.make_node("Gather", [scales, rows], [scale], name=scale),
        *_product(f"{output}_int8", scale, output, node.name),
    ]


def _rounded_lookup(graph: GraphProto, table: TensorProto, node: NodeProto) -> list[NodeProto]:
    """For columns that reach 127 or -128, as folded shallow students have."""
    numbers = np.rint(numpy_helper.to_array(table))
    rows, output = node.input[1], node.output[0]
    parts = [f"{output}_{part}" for part in ("numbers", "step", "zero", "rows")]
    # ONNX Runtime repeats DequantizeLinear for each reader.
    if sum(output in other.input for other in graph.node) > 1:
        constants = [numbers.astype(np.int8)]
        restoring = helper.make_node("Cast", parts[3:], [output], name=f"{node.name}_float", to=TensorProto.FLOAT)
    else:
        constants = [(numbers + _ZERO).astype(np.uint8), np.array(1, np.float32), np.array(_ZERO, np.uint8)]
        restoring = helper.make_node("DequantizeLinear", [parts[3], *parts[1:3]], [output], name=f"{node.name}_float")
    graph.initializer.extend(map(numpy_helper.from_array, constants, parts))
    return [helper.make_node("Gather", [parts[0], rows], parts[3:], name=f"{node.name}_rows"), restoring]


def _unpacked_lookup(graph: GraphProto, table: TensorProto, node: NodeProto) -> list[NodeProto]:
    """A byte holds a number of a block's first half (lower bits) and one of its second.

    Windows of ids give one vector each, as a shallow student would make of them next.
    """
    output = node.output[0]
    numbers, scales = _four_bits(numpy_helper.to_array(table).tobytes(), table.dims[1])
    first, second = np.split(numbers, 2, axis=-1)
    constants = {
        "packed": first | second << 4,
        "block_scales": scales,
        "lower": np.uint8(15),
        "upper": np.uint8(4),
        "middle": np.float32(_MIDDLE),
        "row": np.array([0, 0, -1]),  # 0 keeps an axis
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
        step("Gather", "block_scales rows", "block_scale"),
        *_product(f"{output}_centred", f"{output}_block_scale", restored, node.name),
        helper.make_node("Reshape", [restored, f"{output}_row"], [output], name=f"{output}_step"),
    ]


@lru_cache(maxsize=1)  # shared by all candidates
def _four_bits(table: bytes, width: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Numbers 0 to 15 (rows, blocks, 32) and scales (rows, blocks, 1) with the least squared error among `_SHRUNK`."""
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
    return numbers, scales


def _product(numbers: str, scales: str, output: str, name: str) -> list[NodeProto]:
    return [
        helper.make_node("Cast", [numbers], [f"{output}_float"], name=f"{name}_float", to=TensorProto.FLOAT),
        helper.make_node("Cast", [scales], [f"{output}_scale_float"], name=f"{name}_scale_float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{output}_float", f"{output}_scale_float"], [output], name=f"{name}_restored"),
    ]


def _add_int8(graph: GraphProto, tensor: TensorProto, axis: int) -> tuple[str, str]:
    names = (f"{tensor.name}_int8_{axis}", f"{tensor.name}_scale_{axis}")
    if any(known.name == names[0] for known in graph.initializer):
        return names
    values = numpy_helper.to_array(tensor)
    largest = np.abs(values).max(axis=axis, keepdims=True)
    scales = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
    if scales.min() >= _SMALLEST_NORMAL_FP16 and scales.max() < np.finfo(np.float16).max:
        scales = scales.astype(np.float16)  # saves space; rounding uses the fp16 scale
    numbers = np.clip(np.rint(values / scales.astype(np.float32)), -_LARGEST, _LARGEST).astype(np.int8)
    graph.initializer.extend([numpy_helper.from_array(numbers, names[0]), numpy_helper.from_array(scales, names[1])])
    return names
