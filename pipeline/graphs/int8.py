"""Makes int8 candidates from the fp32 graph (docs/explanation/int8.md).

Static candidates compute linear layers with fixed scales: uint8 activations, int8 weights, fp32 results.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common.errors import KdcError
from kdc.common.machine import cpu
from kdc.pipeline.graphs.int8_storage import VectorBits, share_with_quantised, store_matrices, store_tables, unit_ranges
from kdc.pipeline.graphs.nodes import LINEAR_OPS, attribute, linear_layers, nested_graphs, readers, replace_nodes
from kdc.pipeline.graphs.onnx_graph import quiet, save_graph
from kdc.pipeline.graphs.ranges import RangeMethod, Ranges

_PRODUCTS = {
    "quantized": (
        "MatMulIntegerToFloat",
        "QLinearMatMul",
        "QGemm",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "QAttention",
    ),
    "float": ("MatMul", "Gemm", "FusedMatMul", "FusedGemm"),
}
_MICROSOFT = "com.microsoft"  # ONNX Runtime's domain
_REMEDY = "the fp32 variant serves instead"


@dataclass(frozen=True)
class Candidate:
    """One way to quantise; dynamic without `ranges`."""

    name: str
    per_channel: bool  # weight scales per output channel
    ranges: RangeMethod | None  # set activation scales
    exclude: float = 0.0  # at least this share of layers stays fp32, noisiest first
    seven_bit: bool = False  # for CPUs whose 8-bit products saturate (x86 without VNNI)
    smooth: bool = False  # see `smoothing.py`
    keep: frozenset[str] = frozenset()  # further fp32 nodes

    @property
    def static(self) -> bool:
        return self.ranges is not None

    @property
    def graph(self) -> str:
        """Equal for candidates that take equal time."""
        if not self.static:
            return "dynamic"
        parts = ["per-channel" if self.per_channel else "per-tensor", f"{self.exclude:.0%} in fp32"]
        parts += ["smoothed"] if self.smooth else []
        parts += [f"{len(self.keep)} layers kept"] if self.keep else []
        return ", ".join(parts)


CANDIDATES = (
    Candidate("tensor-minmax", per_channel=False, ranges="minmax"),
    Candidate("tensor-percentile", per_channel=False, ranges="percentile"),
    Candidate("channel-minmax", per_channel=True, ranges="minmax"),
    Candidate("channel-percentile", per_channel=True, ranges="percentile"),
    Candidate("channel-smooth", per_channel=True, ranges="minmax", smooth=True),
    Candidate("channel-minmax-exclude", per_channel=True, ranges="minmax", exclude=0.1),
    Candidate("channel-percentile-exclude", per_channel=True, ranges="percentile", exclude=0.1),
    Candidate("channel-minmax-7bit", per_channel=True, ranges="minmax", seven_bit=True),
    Candidate("dynamic", per_channel=False, ranges=None),
)


def worth_trying(names: Iterable[str] | None = None) -> list[Candidate]:
    exact = cpu().has_int8_products is True
    named = [candidate for candidate in CANDIDATES if names is None or candidate.name in names]
    return [candidate for candidate in named if not (candidate.seven_bit and exact)]


def quantise(
    onnx_in: Path, onnx_out: Path, candidate: Candidate, ranges: Ranges, *, vector_bits: VectorBits = 8
) -> dict[str, int]:
    """Write the int8 variant of a graph, with `ranges` of `activations(onnx_in)`.

    Returns:
        Counts: "wanted" linear layers; "quantized" and "float" products at run time; lookups in stored "tables";
            "stored" layers, computed in fp32.

    Raises:
        KdcError: the quantiser failed or quantised nothing.
    """
    model = onnx.load(onnx_in)
    linear = linear_layers(model.graph)
    in_fp32 = _noisiest(linear, candidate, ranges) | candidate.keep
    # The dynamic quantiser lacks Gemm.
    possible = [node for node in linear if candidate.static or node.op_type == "MatMul"]
    to_quantise = [node.name for node in possible if node.name not in in_fp32]
    _declare_float(model.graph, {name for node in linear for name in (node.input[0], node.output[0])})
    counts = {"wanted": len(to_quantise), "tables": store_tables(model.graph, vector_bits)}
    counts["stored"] = store_matrices(model.graph, except_for=to_quantise)
    try:
        with quiet():
            quantised = _quantise_linear(model, to_quantise, candidate, ranges)
            read_unrounded(quantised.graph)
            use_fast_gelu(quantised)
            join_biases(quantised)
        share_with_quantised(quantised.graph)
    except Exception as error:  # the quantiser raises any kind
        raise KdcError(
            f"ONNX Runtime's quantiser failed on candidate {candidate.name}",
            given=f"{type(error).__name__}: {error}",
            remedy=_REMEDY,
        ) from error
    save_graph(quantised, onnx_out)
    counts |= count_operators(onnx_out)
    if not counts["quantized"]:
        raise KdcError(
            "the graph that should be quantised has no quantised linear layer",
            given=f"candidate {candidate.name}: {counts}",
            remedy=_REMEDY,
        )
    return counts


def count_operators(onnx_path: Path) -> dict[str, int]:
    """Count products in the optimised graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as scratch:
        options.optimized_model_filepath = str(Path(scratch) / "optimised.onnx")
        try:
            onnxruntime.InferenceSession(str(onnx_path), options, providers=[CPU_PROVIDER])
        except Exception as error:  # no narrower base
            raise KdcError("ONNX Runtime refuses the quantised graph", given=str(error)[:300]) from error
        operators = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    return {kind: sum(operators[name] for name in names) for kind, names in _PRODUCTS.items()}


def _noisiest(linear: Sequence[NodeProto], candidate: Candidate, ranges: Ranges) -> set[str]:
    """By the input noise in 8 bits, which ranks layers like their effect on MiniLM's logits."""
    names: set[str] = set()
    method, count = candidate.ranges, math.ceil(candidate.exclude * len(linear))
    if method is None or not count:
        return names
    groups = readers(linear)
    for tensor in sorted(groups, key=lambda name: ranges[name].noise(method), reverse=True):
        if len(names) < count:
            names.update(node.name for node in groups[tensor])
    return names


def _quantise_linear(model: ModelProto, names: list[str], candidate: Candidate, ranges: Ranges) -> ModelProto:
    if candidate.ranges is None:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "dynamic.onnx"
            quantize_dynamic(
                model,
                out,
                op_types_to_quantize=list(LINEAR_OPS),
                per_channel=candidate.per_channel,
                reduce_range=candidate.seven_bit,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=names,
            )
            return onnx.load(out)
    tensors = {
        name: tuple(np.float32(end) for end in histogram.range(candidate.ranges)) for name, histogram in ranges.items()
    }
    tensors |= unit_ranges(model.graph)
    quantizer = QDQQuantizer(
        model,
        per_channel=candidate.per_channel,
        reduce_range=candidate.seven_bit,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, tensors),
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=list(LINEAR_OPS),
        # fp32 results are more accurate, and ONNX Runtime fuses the scaling.
        extra_options={"OpTypesToExcludeOutputQuantization": list(LINEAR_OPS), "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    return quantizer.model.model


def read_unrounded(graph: GraphProto) -> None:
    """Let only quantised products read rounded tensors."""
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            restored = makers.get(name)
            rounded = makers.get(restored.input[0]) if restored is not None and _is_scaled(restored) else None
            if rounded is not None and rounded.op_type == "QuantizeLinear" and node.op_type not in LINEAR_OPS:
                node.input[index] = rounded.input[0]


def use_fast_gelu(model: ModelProto) -> None:
    """GELU by tanh takes two thirds of the time; rounding hides the difference."""
    for node in model.graph.node:
        if node.op_type == "Gelu":
            node.op_type, node.domain = "FastGelu", _MICROSOFT
            del node.attribute[:]
            ONNXModel(model).set_opset_import(_MICROSOFT, 1)


def _declare_float(graph: GraphProto, tensors: set[str]) -> None:
    """The quantiser skips unknown types, and shape inference fails on DeBERTa."""
    known = {value.name for value in (*graph.value_info, *graph.input, *graph.output)}
    graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(tensors - known)
    )


def join_biases(model: ModelProto) -> int:
    """Fuse each quantised MatMul with its bias Add, which ONNX Runtime leaves apart. Returns how many."""
    graph, wrapped = model.graph, ONNXModel(model)
    makers, readers_of = wrapped.output_name_to_node(), wrapped.input_name_to_nodes()
    constants = {tensor.name: tensor for tensor in graph.initializer}
    _, *branches = nested_graphs(graph)
    outputs = {value.name for value in graph.output}
    outputs.update(name for branch in branches for node in branch.node for name in node.input)
    joined: dict[str, NodeProto] = {}  # by the Add's output
    products: set[str] = set()  # outputs without readers
    for product in graph.node:
        factors = [makers[name] for name in product.input if _is_scaled(makers.get(name))]
        if product.op_type != "MatMul" or len(factors) != 2:
            continue
        name, (values, weights) = product.output[0], factors
        sums = readers_of.get(name, [])
        if name in outputs or len(sums) != 1 or sums[0].op_type != "Add":
            continue
        bias = next((other for other in sums[0].input if other != name), "")
        if not _fit(constants, weights, bias):
            continue
        inputs = [name for both in zip(values.input, weights.input, strict=True) for name in both]
        joined[sums[0].output[0]] = helper.make_node(
            "MatMulIntegerToFloat", [*inputs, bias], sums[0].output, name=f"{product.name}_biased", domain=_MICROSOFT
        )
        products.add(name)
    if joined:
        nodes = [joined.get(node.output[0], node) for node in graph.node if node.output[0] not in products]
        read = outputs.union(*(node.input for node in nodes))
        replace_nodes(graph, [node for node in nodes if not read.isdisjoint(node.output)])
        wrapped.set_opset_import(_MICROSOFT, 1)
    return len(joined)


def _is_scaled(node: NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear" and len(node.input) == 3


def _fit(constants: dict[str, TensorProto], weights: NodeProto, bias: str) -> bool:
    matrix, scale, numbers = (constants.get(name) for name in (weights.input[0], weights.input[1], bias))
    if matrix is None or scale is None or numbers is None or len(matrix.dims) != 2:
        return False
    by_column = int(np.prod(scale.dims)) == 1 or attribute(weights, "axis", 1) in (1, -1)
    return by_column and list(numbers.dims) == [matrix.dims[1]]
