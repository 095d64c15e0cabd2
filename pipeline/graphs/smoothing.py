"""SmoothQuant (Xiao et al. 2023, arXiv 2211.10438): moves activation outliers into weights.

Linear layers' input channels are divided by factors, and their rows of weights multiplied. The value projection
divides what attention returns. Other divisions are fp32 nodes, since residual connections read the undivided tensor.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

from kdc.pipeline.graphs.nodes import activations, float_matrices, linear_layers, moved, readers, replace_nodes
from kdc.pipeline.graphs.onnx_graph import save_graph
from kdc.pipeline.graphs.parity import Feeds
from kdc.pipeline.graphs.ranges import Ranges, collect_ranges, watch

# The paper's alpha. Mean squared error of six MiniLM students' logits: 0.0038 at 0.9, 0.0049 at 0.8, 0.015 without.
_STRENGTH = 0.9
_LEAST = 1e-5


@dataclass(frozen=True)
class Source:
    file: Path
    ranges: Ranges


def make_source(fp32_file: Path, batches: Sequence[Feeds], *, smoothed_file: Path | None = None) -> Source:
    if smoothed_file is not None:
        smooth(fp32_file, smoothed_file, largest_by_channel(fp32_file, batches))
    file = smoothed_file or fp32_file
    return Source(file, collect_ranges(file, activations(file), batches))


def largest_by_channel(onnx_path: Path, batches: Iterable[Feeds]) -> dict[str, np.ndarray]:
    """Largest absolute values, (channels,), by tensor that linear layers read."""
    largest: dict[str, np.ndarray] = {}
    for values in watch(onnx_path, list(_groups(onnx.load(onnx_path).graph)), batches):
        for name, value in values.items():
            in_batch = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest.get(name, 0), in_batch)
    return largest


def smooth(onnx_in: Path, onnx_out: Path, largest: Mapping[str, np.ndarray]) -> int:
    """Write the smoothed graph. Returns the number of smoothed tensors."""
    model = onnx.load(onnx_in)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stored = set(constants)
    divisions: dict[str, NodeProto] = {}  # by the first reader's name

    def scale(node: NodeProto, index: int, factors: np.ndarray) -> None:
        values = constants[node.input[index]] * factors
        node.input[index] = f"{node.name}_smoothed_{'weight' if values.ndim == 2 else 'bias'}"
        constants[node.input[index]] = values

    groups = _groups(graph)
    projections = {tensor: _value_projection(graph, tensor) for tensor in groups}
    # Values first: what they read scales their weights again.
    for tensor in sorted(groups, key=lambda name: not projections[name]):
        nodes = groups[tensor]
        factors = _factors(largest[tensor], [constants[node.input[1]] for node in nodes])
        smoothed = tensor
        for node, index in projections[tensor]:
            scale(node, index, 1 / factors)
        if not projections[tensor]:
            smoothed = f"{tensor}_smoothed"
            constants[f"{smoothed}_by"] = 1 / factors
            divisions[nodes[0].name] = helper.make_node("Mul", [tensor, f"{smoothed}_by"], [smoothed], name=smoothed)
        for node in nodes:
            scale(node, 1, factors[:, None])
            node.input[0] = smoothed
    new = {name: values.astype(np.float32) for name, values in constants.items() if name not in stored}
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in new.items())
    nodes_in_order: list[NodeProto] = []
    for node in graph.node:
        nodes_in_order += [divisions[node.name], node] if node.name in divisions else [node]
    replace_nodes(graph, nodes_in_order)
    save_graph(model, onnx_out)
    return len(groups)


def _value_projection(graph: GraphProto, tensor: str) -> list[tuple[NodeProto, int]]:
    """Where bias and weights of attention's values enter, if attention returns `tensor` and alone reads the values."""
    makers = {name: node for node in graph.node for name in node.output}
    counts = Counter(name for node in graph.node for name in node.input)
    matrices = float_matrices(graph)
    vectors = {constant.name for constant in graph.initializer if len(constant.dims) == 1}
    projection: list[tuple[NodeProto, int]] = []
    name = tensor
    for operator in ("Reshape", "Transpose", "MatMul", "Transpose", "Reshape", "Add", "MatMul"):
        if name not in makers or makers[name].op_type != operator or (name != tensor and counts[name] != 1):
            return []
        node = makers[name]
        index = 0
        if operator == "Transpose" and list(node.attribute[0].ints) != [0, 2, 1, 3]:
            return []
        if operator == "Add":
            index = int(node.input[0] in vectors)
            projection.append((node, 1 - index))
        elif operator == "MatMul":
            index = 1
        name = node.input[index]
    projection.append((node, 1))
    return projection if name in matrices and projection[0][0].input[projection[0][1]] in vectors else []


def _groups(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """A node before the head's Gemm, or between a shallow student's lookup and its product, would slow them down."""
    tables = float_matrices(graph)
    vectors = (node.output[0] for node in graph.node if node.op_type == "Gather" and node.input[0] in tables)
    looked_up = moved(graph, vectors, ["Reshape"])
    return readers(node for node in linear_layers(graph) if node.op_type == "MatMul" and node.input[0] not in looked_up)


def _factors(activation: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Equation 4, per channel: max |X| ^ alpha / max |W| ^ (1 - alpha)."""
    weight = np.max([np.abs(matrix).max(axis=1) for matrix in weights], axis=0)
    factors = np.maximum(activation, _LEAST) ** _STRENGTH / np.maximum(weight, _LEAST) ** (1 - _STRENGTH)
    return np.maximum(factors, _LEAST).astype(np.float32)
