"""ONNX nodes, constants and linear layers."""

from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, TensorProto

LINEAR_OPS = ("MatMul", "Gemm")


def nested_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for part in node.attribute:
            if part.type == onnx.AttributeProto.GRAPH:
                yield from nested_graphs(part.g)


def names_read(node: NodeProto) -> set[str]:
    """Names that a node reads, in its branches too."""
    branches = [part.g for part in node.attribute if part.type == onnx.AttributeProto.GRAPH]
    return set(node.input).union(*(names_read(inner) for branch in branches for inner in branch.node))


def float_matrices(graph: GraphProto) -> dict[str, TensorProto]:
    return {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
    }


def attribute(node: NodeProto, name: str, default: int) -> int:
    return next((part.i for part in node.attribute if part.name == name), default)


def replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Replace a graph's nodes, and drop unread constants."""
    # Clearing the graph empties its nodes.
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    read = {value.name for value in graph.output}.union(*map(names_read, graph.node))
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def activations(onnx_path: Path) -> tuple[str, ...]:
    """Tensors to calibrate."""
    return tuple(sorted(readers(linear_layers(onnx.load(onnx_path).graph))))


def linear_layers(graph: GraphProto) -> list[NodeProto]:
    """Products of input-dependent values with a weight matrix."""
    weights, varying = float_matrices(graph), _varying(graph)
    return [
        node
        for node in graph.node
        if node.op_type in LINEAR_OPS and node.input[1] in weights and node.input[0] in varying
    ]


def readers(linear: Iterable[NodeProto]) -> dict[str, list[NodeProto]]:
    """Linear layers by the tensor they read."""
    groups: dict[str, list[NodeProto]] = {}
    for node in linear:
        groups.setdefault(node.input[0], []).append(node)
    return groups


def moved(graph: GraphProto, sources: Iterable[str], operators: Container[str]) -> set[str]:
    """`sources`, and what these operators make of them."""
    names = set(sources)
    for node in graph.node:
        if node.op_type in operators and not names.isdisjoint(node.input):
            names.update(node.output)
    return names


def _varying(graph: GraphProto) -> set[str]:
    """Names of input-dependent tensors. ONNX Runtime folds others at load, unless they are quantised."""
    varying = {value.name for value in graph.input}
    for node in graph.node:
        # A node's inputs leave out what its branches read.
        has_branch = any(attribute.HasField("g") for attribute in node.attribute)
        if has_branch or any(name in varying for name in node.input):
            varying.update(node.output)
    return varying
