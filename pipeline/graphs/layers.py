"""The linear layers of a classifier's graph, which int8 variants quantise. Reads graphs; changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto

from kdc.pipeline.graphs.nodes import float_matrices

LINEAR_OPS = ("MatMul", "Gemm")


def activations(onnx_path: Path) -> tuple[str, ...]:
    """Names of the tensors whose ranges static quantisation needs: the inputs of the linear layers."""
    return tuple(sorted(readers(linear_layers(onnx.load(onnx_path).graph))))


def linear_layers(graph: GraphProto) -> list[NodeProto]:
    """MatMul and Gemm nodes that multiply something that depends on the input with a weight matrix."""
    weights = float_matrices(graph)
    varying = _varying(graph)
    return [
        node
        for node in graph.node
        if node.op_type in LINEAR_OPS and node.input[1] in weights and node.input[0] in varying
    ]


def readers(linear: Iterable[NodeProto]) -> dict[str, list[NodeProto]]:
    """Linear layers by the tensor that they read: query, key and value read the same one. A tensor is rounded for all
    layers that read it, so these are quantised together."""
    groups: dict[str, list[NodeProto]] = {}
    for node in linear:
        groups.setdefault(node.input[0], []).append(node)
    return groups


def _varying(graph: GraphProto) -> set[str]:
    """Names of the tensors that depend on the graph's inputs.

    ONNX Runtime folds all others into constants when it loads the graph, for example DeBERTa's projections of its
    relative positions. If those were quantised, they would be computed again for each batch.
    """
    varying = {value.name for value in graph.input}
    for node in graph.node:
        # The inputs of a node do not list what its branches read from outside, so such a node is taken as varying.
        has_branch = any(attribute.HasField("g") for attribute in node.attribute)
        if has_branch or any(name in varying for name in node.input):
            varying.update(node.output)
    return varying
