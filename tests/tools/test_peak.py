"""The operations of a graph's matrix products, and the machine's own peak."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from kdc.tools.bench.peak import FORMATS, operations, product

ROWS, TOKENS, WIDTH, HIDDEN, OUTPUTS = 2, 5, 8, 12, 3
# By hand: two for each weight and token; two for each pair of tokens and column; two for each weight and row.
BY_HAND = 2 * ROWS * (TOKENS * WIDTH * HIDDEN + TOKENS * TOKENS * HIDDEN + HIDDEN * OUTPUTS)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A product with weights, one of tokens with tokens, and one of rows, as a classifier has them."""
    random = np.random.default_rng(0)
    weights = {"first": (WIDTH, HIDDEN), "last": (OUTPUTS, HIDDEN)}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["tokens"]),
        helper.make_node("Transpose", ["tokens"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "turned"], ["attention"]),
        helper.make_node("ReduceMean", ["tokens"], ["rows"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["rows", "last"], ["y"], transB=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y", "attention")]
    values = [numpy_helper.from_array(random.random(shape, np.float32), name) for name, shape in weights.items()]
    ends[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "tokens", WIDTH])
    model = helper.make_model(
        helper.make_graph(nodes, "graph", ends[:1], ends[1:], values),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_operations_are_two_for_each_weight_and_token(graph: Path) -> None:
    # The bugs to catch: batch or tokens counted once, the longer side of a turned weight, attention forgotten.
    assert operations(graph, {"x": np.ones((ROWS, TOKENS, WIDTH), np.float32)}) == BY_HAND
    assert not list(graph.parent.glob("*.json"))  # nothing of the profile stays


def test_the_same_graph_in_int8_has_the_same_operations(graph: Path) -> None:
    int8 = graph.with_name("int8.onnx")
    quantize_dynamic(graph, int8, weight_type=QuantType.QInt8)
    assert any("Integer" in node.op_type for node in onnx.load(int8).graph.node)
    assert operations(int8, {"x": np.ones((ROWS, TOKENS, WIDTH), np.float32)}) == BY_HAND


@pytest.mark.parametrize("number_format", FORMATS)
def test_a_machine_does_more_than_a_million_operations_a_second(number_format: str) -> None:
    # The bug to catch: seconds in the place of a rate. Every machine reaches a thousand times that.
    assert product(number_format, threads=1)() > 1e9
