"""A graph's matrix products: their operations, and their time at the speed of a large product beside the whole pass."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from bag_models import INFO
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from kdc.pipeline.quality import products
from kdc.pipeline.quality.products import node_events, operations, served_pass, share_of_products, speed
from kdc.serving.engine.long_texts import Tokens, Windows

ROWS, TOKENS, WIDTH, HIDDEN, OUTPUTS = 2, 5, 8, 12, 3
# By hand: two for each weight and token; two for each pair of tokens and column; two for each weight and row.
OF_WEIGHTS = 2 * ROWS * (TOKENS * WIDTH * HIDDEN + HIDDEN * OUTPUTS)
OF_ATTENTION = 2 * ROWS * TOKENS * TOKENS * HIDDEN
FEEDS = {"x": np.ones((ROWS, TOKENS, WIDTH), np.float32)}


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
    start = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "tokens", WIDTH])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "attention")]
    values = [numpy_helper.from_array(random.random(shape, np.float32), name) for name, shape in weights.items()]
    made = helper.make_graph(nodes, "graph", [start], ends, values)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def test_operations_are_two_for_each_weight_and_token(graph: Path) -> None:
    # The bugs to catch: batch or tokens counted once, the longer side of a turned weight, attention forgotten.
    assert operations(graph, FEEDS) == {"fp32": OF_WEIGHTS + OF_ATTENTION}
    assert not list(graph.parent.glob("*.json"))  # nothing of the profile stays


def test_every_node_of_every_call_has_its_time(graph: Path) -> None:
    events = node_events(graph, FEEDS, threads=1, calls=4)
    counts = Counter(event["args"]["op_name"] for event in events)
    assert counts["ReduceMean"] == 4
    assert counts["MatMul"] + counts["FusedMatMul"] == 8
    assert all(event["dur"] >= 0 for event in events)


def test_an_int8_graph_has_the_same_operations_and_those_of_attention_are_fp32(graph: Path) -> None:
    int8 = graph.with_name("int8.onnx")
    quantize_dynamic(graph, int8, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    assert operations(int8, FEEDS) == {"int8": OF_WEIGHTS, "fp32": OF_ATTENTION}


def test_a_product_whose_scales_are_fixed_counts_as_int8(tmp_path: Path) -> None:
    matrix = np.ones((WIDTH, HIDDEN), np.int8)
    constants = {"scale": np.float32(0.1), "zero": np.uint8(9), "matrix": matrix, "zeros": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["matrix", "scale", "zeros"], ["weights"]),
        helper.make_node("MatMul", ["values", "weights"], ["y"]),
    ]
    start = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "tokens", WIDTH])
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "graph", [start], [end], values)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    assert operations(tmp_path / "a.onnx", FEEDS) == {"int8": 2 * ROWS * TOKENS * WIDTH * HIDDEN}


@pytest.mark.parametrize(("tokens", "rows"), [(8, 32), (100, 10), (600, 1), (2000, 1)])
def test_a_measured_pass_is_no_larger_than_a_served_one(tokens: int, rows: int) -> None:
    """Would catch 32 long texts in one pass, whose attention takes gigabytes."""
    given = [Tokens([1] * tokens, [0] * tokens)] * 32
    assert served_pass(given, INFO, threads=2)["input_ids"].shape == (rows, tokens)


def test_windows_of_a_text_are_rows_of_a_pass() -> None:
    windows = Windows(tuple(Tokens([1] * 300, [0] * 300) for _ in range(9)), 2000, False)
    assert served_pass([windows], INFO, threads=2)["input_ids"].shape == (3, 300)


def test_the_share_is_of_the_fastest_pass(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the sum or the mean of all calls taken for one pass, milliseconds for microseconds, and a speed of
    other threads."""
    slow, fast = [{"dur": 30.0}, {"dur": 70.0}], [{"dur": 10.0}, {"dur": 40.0}]
    monkeypatch.setattr(products, "node_events", lambda *_, calls, **__: (calls - 1) * slow + fast)
    monkeypatch.setattr(products, "operations", lambda *_: {"int8": 600, "fp32": 10})
    monkeypatch.setattr(
        products, "speed", lambda number_format, threads: {"int8": 1e8, "fp32": 1e6}[number_format] * threads
    )
    assert share_of_products(graph, FEEDS, threads=2) == pytest.approx((600 / 2e8 + 10 / 2e6) / 50e-6)


def test_the_peak_is_of_the_call_that_nothing_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch shares above 1 where another process takes time from most of the few long calls."""
    seconds = iter([9.0, 9.0, 0.5, 9.0, 9.0, 9.0])
    monkeypatch.setattr(products, "seconds_of", lambda call: next(seconds))
    assert speed("fp32", threads=1) == 2 * 768**3 / 0.5


@pytest.mark.parametrize("number_format", ["int8", "fp32"])
def test_a_machine_does_more_than_a_thousand_million_operations_a_second(number_format: str) -> None:
    # The bug to catch: seconds in the place of a rate. A core of any machine of today does ten times that.
    assert speed(number_format, threads=1) > 1e9
