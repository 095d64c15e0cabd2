"""SmoothQuant (Xiao et al. 2023, arXiv 2211.10438): moves activation outliers into weights.

Each input channel of a linear layer is divided by a factor, and its row of weights multiplied. The division is an fp32
node: LayerNorm cannot absorb it, since BERT's residual connection reads the same output.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

from kdc.pipeline.graphs.nodes import activations, float_matrices, linear_layers, readers, replace_nodes
from kdc.pipeline.graphs.onnx_graph import save_graph
from kdc.pipeline.graphs.parity import Feeds
from kdc.pipeline.graphs.ranges import Ranges, collect_ranges, watch

# The paper's alpha. The logits' mean squared error on six 3-layer MiniLM students with per-channel weights is 0.0038 at
# 0.9, 0.0049 at 0.8, and 0.015 without smoothing.
_STRENGTH = 0.9
_LEAST = 1e-5


@dataclass(frozen=True)
class Source:
    """A graph to quantise, with its ranges."""

    file: Path
    ranges: Ranges


def make_source(fp32_file: Path, batches: Sequence[Feeds], *, smoothed_file: Path | None = None) -> Source:
    """The exported graph or its smoothed copy, calibrated."""
    if smoothed_file is not None:
        smooth(fp32_file, smoothed_file, largest_by_channel(fp32_file, batches))
    file = smoothed_file or fp32_file
    return Source(file, collect_ranges(file, activations(file), batches))


def largest_by_channel(onnx_path: Path, batches: Iterable[Feeds]) -> dict[str, np.ndarray]:
    """Largest absolute values (channels,) over unpadded batches, for each tensor that linear layers read."""
    largest: dict[str, np.ndarray] = {}
    for values in watch(onnx_path, list(_groups(onnx.load(onnx_path).graph)), batches):
        for name, value in values.items():
            in_batch = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest.get(name, 0), in_batch)
    return largest


def smooth(onnx_in: Path, onnx_out: Path, largest: Mapping[str, np.ndarray]) -> int:
    """Write the smoothed graph, equal but for rounding; `largest` is from `largest_by_channel`."""
    model = onnx.load(onnx_in)
    matrices = {name: numpy_helper.to_array(tensor) for name, tensor in float_matrices(model.graph).items()}
    divisions: dict[str, NodeProto] = {}  # by the first reader's name
    groups = _groups(model.graph)
    for tensor, nodes in groups.items():
        weights = [matrices[node.input[1]] for node in nodes]
        factors = _factors(largest[tensor], weights)
        smoothed, inverses = f"{tensor}_smoothed", f"{tensor}_smoothed_by"
        model.graph.initializer.append(numpy_helper.from_array((1 / factors).astype(np.float32), inverses))
        divisions[nodes[0].name] = helper.make_node("Mul", [tensor, inverses], [smoothed], name=smoothed)
        for node, weight in zip(nodes, weights, strict=True):
            name = f"{node.name}_smoothed_weight"
            model.graph.initializer.append(numpy_helper.from_array(weight * factors[:, None], name))
            node.input[0], node.input[1] = smoothed, name
    nodes_in_order: list[NodeProto] = []
    for node in model.graph.node:
        nodes_in_order += [divisions[node.name], node] if node.name in divisions else [node]
    replace_nodes(model.graph, nodes_in_order)
    save_graph(model, onnx_out)
    return len(groups)


def _groups(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """MatMul layers by input. A node before the head's Gemm would keep ONNX Runtime from computing it in 8 bits."""
    return readers(node for node in linear_layers(graph) if node.op_type == "MatMul")


def _factors(activation: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """The paper's equation 4, per channel: max |X| ^ alpha / max |W| ^ (1 - alpha)."""
    weight = np.max([np.abs(matrix).max(axis=1) for matrix in weights], axis=0)
    factors = np.maximum(activation, _LEAST) ** _STRENGTH / np.maximum(weight, _LEAST) ** (1 - _STRENGTH)
    return np.maximum(factors, _LEAST).astype(np.float32)
