"""Small pieces of work on ONNX graphs that several files here need. `replace_nodes` changes its graph in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import GraphProto, NodeProto, TensorProto


def nested_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and, recursively, the branches inside its nodes."""
    yield graph
    for node in graph.node:
        for each in node.attribute:
            if each.type == onnx.AttributeProto.GRAPH:
                yield from nested_graphs(each.g)


def float_matrices(graph: GraphProto) -> dict[str, TensorProto]:
    """The graph's fp32 constants with two axes, by name."""
    return {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
    }


def attribute(node: NodeProto, name: str, default: int) -> int:
    """A whole number among a node's attributes."""
    return next((each.i for each in node.attribute if each.name == name), default)


def replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Give the graph these nodes, and drop the constants that none of them reads."""
    # Copies, because clearing the graph empties the nodes that it owns.
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    read = {name for part in nested_graphs(graph) for node in part.node for name in node.input}
    read |= {value.name for value in graph.output}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]
