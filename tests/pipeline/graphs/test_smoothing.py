"""Smoothing, and sensitivity of layers: equal graphs that lose less by 8 bits, and the layers that lose most."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models
from onnx import TensorProto, helper, numpy_helper

from kdc.pipeline.graphs.int8 import Candidate, quantise
from kdc.pipeline.graphs.int8_trials import layers_by_worth
from kdc.pipeline.graphs.nodes import activations
from kdc.pipeline.graphs.onnx_graph import export_onnx, save_graph
from kdc.pipeline.graphs.parity import Feeds, onnx_logits
from kdc.pipeline.graphs.ranges import collect_ranges
from kdc.pipeline.graphs.simplify import simplify
from kdc.pipeline.graphs.smoothing import largest_by_channel, smooth

WIDTH = 64
CANDIDATE = Candidate("a", per_channel=True, ranges="minmax")


@pytest.fixture
def outliers(tmp_path: Path) -> Path:
    """Ids to vectors of which one channel is a hundred times the others, through two linear layers to logits."""
    random = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "table": random.normal(size=(100, WIDTH)).astype(np.float32),
        "sizes": np.where(np.arange(WIDTH) == 5, 100, 1).astype(np.float32),
        "first": (random.normal(size=(WIDTH, WIDTH)) / 8).astype(np.float32),
        "second": (random.normal(size=(3, WIDTH)) / 8).astype(np.float32),
        "bias": np.zeros(3, dtype=np.float32),
        "axis": np.array([1], dtype=np.int64),
    }
    constants["first"][5] /= 100  # what is large is not what matters
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"], name="lookup"),
        helper.make_node("Mul", ["vectors", "sizes"], ["rows"], name="size"),
        helper.make_node("MatMul", ["rows", "first"], ["hidden"], name="first"),
        helper.make_node("Tanh", ["hidden"], ["bent"], name="bend"),
        helper.make_node("ReduceMean", ["bent", "axis"], ["pooled"], name="pool", keepdims=0),
        helper.make_node("Gemm", ["pooled", "second", "bias"], ["logits"], name="second", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "outliers",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "fp32.onnx")
    return tmp_path / "fp32.onnx"


@pytest.fixture
def batches() -> list[Feeds]:
    ids = np.random.default_rng(1).integers(0, 100, size=(32, 8))
    return [{"input_ids": part} for part in np.split(ids, 4)]


def error_of(int8: Path, fp32: Path, batches: list[Feeds]) -> float:
    run, right = onnx_logits(int8, threads=1), onnx_logits(fp32, threads=1)
    return float(np.mean([(run(feeds) - right(feeds)) ** 2 for feeds in batches]))


def quantised(source: Path, out: Path, batches: list[Feeds], candidate: Candidate = CANDIDATE) -> Path:
    quantise(source, out, candidate, collect_ranges(source, activations(source), batches))
    return out


def test_the_largest_values_are_those_of_the_channels(outliers: Path, batches: list[Feeds]) -> None:
    constants = {each.name: numpy_helper.to_array(each) for each in onnx.load(outliers).graph.initializer}
    ids = np.concatenate([feeds["input_ids"] for feeds in batches])
    expected = np.abs(constants["table"][ids] * constants["sizes"]).max(axis=(0, 1))
    np.testing.assert_array_equal(largest_by_channel(outliers, batches)["rows"], expected)


def test_a_smoothed_graph_gives_the_same_answers(outliers: Path, batches: list[Feeds], tmp_path: Path) -> None:
    assert smooth(outliers, tmp_path / "smooth.onnx", largest_by_channel(outliers, batches)) == 1
    right, run = onnx_logits(outliers, threads=1), onnx_logits(tmp_path / "smooth.onnx", threads=1)
    for feeds in batches:
        np.testing.assert_allclose(run(feeds), right(feeds), atol=1e-5)


@pytest.mark.parametrize("read_elsewhere", [False, True])
def test_attentions_values_are_divided_by_their_own_weights(read_elsewhere: bool, tmp_path: Path) -> None:
    """If nothing else reads them: then a layer has a division less."""
    tiny_models.build("bert", tmp_path)
    export_onnx(tmp_path, tmp_path / "model.onnx", exporter="torch")
    random = np.random.default_rng(0)
    feeds = [
        {
            "input_ids": random.integers(4, 90, (rows, tokens)),
            "attention_mask": np.ones((rows, tokens), np.int64),
            "token_type_ids": np.zeros((rows, tokens), np.int64),
        }
        for rows, tokens in ((2, 5), (3, 7), (5, 12))
    ]
    model, simple, smoothed = (
        simplify(tmp_path / "model.onnx", pad_id=0, max_length=12),
        tmp_path / "simple.onnx",
        tmp_path / "s.onnx",
    )
    makers = {name: node for node in model.graph.node for name in node.output}
    products = [makers[node.input[0]] for node in model.graph.node if node.op_type == "Transpose"]
    values = [node for node in products if node.op_type == "MatMul"]  # attention's second product of each layer
    if read_elsewhere:
        more = [
            helper.make_node("Tanh", [node.input[1]], [f"{node.name}_read"], name=f"{node.name}_read")
            for node in values
        ]
        model.graph.node.extend(more)
    save_graph(model, simple)
    groups = smooth(simple, smoothed, largest_by_channel(simple, feeds))
    divisions = [node for node in onnx.load(smoothed).graph.node if node.name.endswith("_smoothed")]
    assert values
    assert len(divisions) == groups - (0 if read_elsewhere else len(values))
    right, run = onnx_logits(tmp_path / "model.onnx", threads=1), onnx_logits(smoothed, threads=1)
    for batch in feeds:
        np.testing.assert_allclose(run(batch), right(batch), atol=1e-5)


def test_the_factors_are_those_of_the_paper(outliers: Path, batches: list[Feeds], tmp_path: Path) -> None:
    largest = largest_by_channel(outliers, batches)
    smooth(outliers, tmp_path / "smooth.onnx", largest)
    before = {each.name: numpy_helper.to_array(each) for each in onnx.load(outliers).graph.initializer}
    after = {each.name: numpy_helper.to_array(each) for each in onnx.load(tmp_path / "smooth.onnx").graph.initializer}
    factors = largest["rows"] ** 0.9 / np.abs(before["first"]).max(axis=1) ** 0.1
    np.testing.assert_allclose(after["first_smoothed_weight"], before["first"] * factors[:, None], rtol=1e-5)
    np.testing.assert_array_equal(after["second"], before["second"])  # the head stays


def test_smoothing_takes_most_of_the_error_of_an_outlier_away(
    outliers: Path, batches: list[Feeds], tmp_path: Path
) -> None:
    plain = quantised(outliers, tmp_path / "plain.onnx", batches)
    smooth(outliers, tmp_path / "smooth.onnx", largest_by_channel(outliers, batches))
    smoothed = quantised(tmp_path / "smooth.onnx", tmp_path / "int8.onnx", batches)
    assert error_of(smoothed, outliers, batches) < 0.1 * error_of(plain, outliers, batches)


def test_the_layer_that_reads_an_outlier_is_found_and_worth_most(outliers: Path, batches: list[Feeds]) -> None:
    ranges = collect_ranges(outliers, activations(outliers), batches)
    assert layers_by_worth(outliers, CANDIDATE, ranges, batches)[0] == {"first"}


def test_a_layer_that_is_kept_is_not_quantised(outliers: Path, batches: list[Feeds], tmp_path: Path) -> None:
    candidate = Candidate("k", per_channel=True, ranges="minmax", keep=frozenset({"first"}))
    kept = quantised(outliers, tmp_path / "kept.onnx", batches, candidate)
    plain = quantised(outliers, tmp_path / "plain.onnx", batches)
    assert candidate.graph == "per-channel, 0% in fp32, 1 layers kept"
    assert error_of(kept, outliers, batches) < 0.1 * error_of(plain, outliers, batches)
