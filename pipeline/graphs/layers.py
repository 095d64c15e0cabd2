"""The linear layers of a classifier's graph: what int8 variants quantise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto

from kdc.pipeline.graphs.nodes import float_matrices

LINEAR_OPS = ("MatMul", "Gemm")


def activations(onnx_path: Path) -> tuple[str, ...]:
    """Names of the tensors whose ranges static quantisation needs: inputs of the linear layers."""
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
    """Linear layers by the tensor that they read: query, key and value stand together. A tensor is rounded for all of
    its readers, so they are quantised together."""
    found: dict[str, list[NodeProto]] = {}
    for node in linear:
        found.setdefault(node.input[0], []).append(node)
    return found


def _varying(graph: GraphProto) -> set[str]:
    """Tensors that depend on the graph's inputs. The rest is folded into constants when the graph is loaded, such as
    DeBERTa's projections of its relative positions: quantised, they would be computed anew for each batch."""
    found = {value.name for value in graph.input}
    for node in graph.node:
        # What a branch reads from outside does not stand among its node's inputs: take it as varying.
        has_branch = any(attribute.HasField("g") for attribute in node.attribute)
        if has_branch or any(name in found for name in node.input):
            found.update(node.output)
    return found
