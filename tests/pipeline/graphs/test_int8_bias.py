"""Biases that quantised products add themselves: the same answers, and nothing joined that is no bias."""

from collections import Counter
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdc.pipeline.graphs.int8 import join_biases

WIDTH, HIDDEN = 6, 4


def graph(
    *more: NodeProto, bias: tuple[int, ...] = (HIDDEN,), axis: int = 1, outputs: tuple[str, ...] = ("y",)
) -> ModelProto:
    """x, rounded to 8 bits, times a matrix of 8 bits with a scale a column: `product`; and what the test adds."""
    random = np.random.default_rng(0)
    scales = random.random((WIDTH, HIDDEN)[axis], np.float32) + 0.01
    constants: dict[str, Any] = {
        "scale": np.float32(0.02),
        "zero": np.uint8(120),
        "matrix": random.integers(-127, 127, (WIDTH, HIDDEN), dtype=np.int8),
        "scales": scales,
        "zeros": np.zeros_like(scales, dtype=np.int8),
        "bias": random.standard_normal(bias).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["matrix", "scales", "zeros"], ["weights"], axis=axis),
        helper.make_node("MatMul", ["values", "weights"], ["product"]),
        *more,
    ]
    start = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "tokens", WIDTH])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "graph", [start], ends, values)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answers(model: ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).standard_normal((3, 5, WIDTH), np.float32)})


ADD = helper.make_node("Add", ["product", "bias"], ["y"])


@pytest.mark.parametrize("add", [ADD, helper.make_node("Add", ["bias", "product"], ["y"])])
def test_a_bias_is_joined_and_the_answers_are_the_same(add: NodeProto) -> None:
    # The bugs to catch: scales and zero points of values and weights mixed up, the bias lost, dead nodes that stay.
    model = graph(add)
    before = answers(model)
    assert join_biases(model) == 1
    assert Counter(node.op_type for node in model.graph.node) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    np.testing.assert_allclose(answers(model), before, rtol=1e-6, atol=1e-6)
    assert join_biases(model) == 0


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (graph(helper.make_node("Add", ["product", "product"], ["y"])), "no constant"),
        (graph(ADD, helper.make_node("Neg", ["product"], ["z"]), outputs=("y", "z")), "another reader"),
        (graph(ADD, outputs=("y", "product")), "an output"),
        (graph(ADD, bias=(5, HIDDEN)), "a number for each token"),
        (graph(ADD, bias=(1,)), "one number"),
        (graph(helper.make_node("Mul", ["product", "bias"], ["y"])), "no sum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_bias_of_its_own_stays(model: ModelProto, why: str) -> None:
    nodes, before = list(model.graph.node), answers(model)
    assert join_biases(model) == 0, why
    assert list(model.graph.node) == nodes
    np.testing.assert_array_equal(answers(model), before)


def test_weights_with_a_scale_for_each_row_stay() -> None:
    assert join_biases(graph(ADD, axis=0)) == 0  # ONNX Runtime has no such product, and runs none


def test_values_that_something_else_reads_too_are_kept() -> None:
    model = graph(ADD, helper.make_node("Neg", ["values"], ["z"]), outputs=("y", "z"))
    before = answers(model)
    assert join_biases(model) == 1
    for after, expected in zip(answers(model), before, strict=True):
        np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-6)


def test_a_product_that_a_branch_reads_stays() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["product"], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    either = helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)
    model = graph(ADD, yes, either, outputs=("y", "z"))
    before = answers(model)
    assert join_biases(model) == 0
    np.testing.assert_array_equal(answers(model)[0], before[0])
