"""Computes only the first token if the head reads no other.

The last layer needs only keys and values of other tokens.
"""

from collections.abc import Iterable, Mapping, Set

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from kdc.pipeline.graphs.nodes import attribute, names_read, replace_nodes

# Operators that act on each vector along the last axis.
_BY_VECTOR = ("Cast", "Erf", "Gelu", "Identity", "LayerNormalization", "Relu", "Sigmoid", "Softmax", "Tanh")
_BY_ELEMENT = ("Add", "Div", "Mul", "Sub")
_TOKENS = -2  # the axis of tokens in (batch, tokens, width)


def keep_first_tokens(model: ModelProto) -> int:
    """Change a graph in place, from the head backwards. Returns the number of nodes that compute less.

    A node computes one token if all readers need only one. Otherwise a Slice takes it for these readers.
    """
    graph, shapes = model.graph, _shapes(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) < 2}
    stored = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = {value.name: [NodeProto()] for value in graph.output}
    for node in graph.node:
        for name in names_read(node):
            readers.setdefault(name, []).append(node)
    axes: dict[str, dict[str, int]] = {}  # by tensor and reader of one token: axis of tokens, from the end
    nodes: list[NodeProto] = []
    less = 0
    for node in reversed(graph.node):
        name, inputs = node.output[0], None
        if wanted := axes.get(name):
            axis = min(wanted.values())
            if len(wanted) == len(readers[name]) and axis == max(wanted.values()) and len(node.output) == 1:
                inputs = _inputs_at(node, axis, shapes, constants, stored)
            less += inputs is not None
            if inputs is None:
                nodes += _cut(
                    graph, name, wanted, [reader for reader in readers[name] if not _takes_first(reader, constants)]
                )
        elif _takes_first(node, constants):
            inputs = {0: _TOKENS}
        for index, axis in (inputs or {}).items():
            axes.setdefault(node.input[index], {})[node.name] = axis
        nodes.append(node)
    graph.initializer.extend(
        numpy_helper.from_array(np.array([value]), f"first_token_{value}") for value in (0, 1, -2, -3)
    )
    replace_nodes(graph, nodes[::-1])
    return less


def _shapes(model: ModelProto) -> dict[str, list[int]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input)}
    shapes = {
        name: [axis.dim_value for axis in kind.shape.dim] for name, kind in types.items() if kind.HasField("shape")
    }
    return shapes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _takes_first(node: NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    index = constants.get(node.input[1]) if node.op_type == "Gather" else None
    return index is not None and attribute(node, "axis", 0) == 1 and not index.any()


def _inputs_at(
    node: NodeProto,
    axis: int,
    shapes: Mapping[str, list[int]],
    constants: Mapping[str, np.ndarray],
    stored: Set[str],
) -> dict[int, int] | None:
    """Inputs (with axes) of which one token suffices; None if unknown."""
    known = [shapes.get(name) for name in node.input]
    if node.op_type in _BY_VECTOR:
        over = attribute(node, "axis", -1)
        return {0: axis} if over == -1 or (known[0] is not None and over == len(known[0]) - 1) else None
    if node.op_type == "MatMul" and axis == _TOKENS:
        return {0: axis}
    if node.op_type == "Transpose":
        order = next(part.ints for part in node.attribute if part.name == "perm")
        return {0: order[axis] - len(order)}
    if node.op_type == "Reshape" and node.input[1] in constants and known[0] is not None:
        after = constants[node.input[1]].tolist()
        return {0: 1 - len(known[0])} if after[:2] == [0, 0] and axis + len(after) == 1 else None
    if node.op_type in _BY_ELEMENT:
        wide = [shape is None or (len(shape) >= -axis and shape[axis] != 1) for shape in known]
        inputs = {index: axis for index, is_wide in enumerate(wide) if is_wide}
        return inputs if None not in known and stored.isdisjoint(node.input[index] for index in inputs) else None
    return None


def _cut(graph: GraphProto, name: str, axes: Mapping[str, int], readers: Iterable[NodeProto]) -> list[NodeProto]:
    made: dict[int, NodeProto] = {}
    for reader in readers:
        if (axis := axes.get(reader.name)) is None:
            continue
        inputs = [name, "first_token_0", "first_token_1", f"first_token_{axis}"]
        cut = f"{name}_first_token{axis}"
        made[axis] = helper.make_node("Slice", inputs, [cut], name=cut)
        for index, read in enumerate(reader.input):
            reader.input[index] = cut if read == name else read
    return list(made.values())
