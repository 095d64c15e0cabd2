"""`int8`, `int8_storage` and `ranges`: int8 graphs that are quantised, near to fp32 and batch-invariant."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.special import ndtr
from tiers import others_slow
from tiny_runs import base_model

from kdc.artifact.manifest import TaskInfo, TokenizerInfo
from kdc.common import machine
from kdc.common.errors import KdcError
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.graphs import int8
from kdc.pipeline.graphs.int8 import CANDIDATES, count_operators, quantise, use_fast_gelu
from kdc.pipeline.graphs.int8_storage import VectorBits, store_matrices, store_tables
from kdc.pipeline.graphs.nodes import LINEAR_OPS, activations
from kdc.pipeline.graphs.onnx_graph import export_onnx, graph_inputs
from kdc.pipeline.graphs.parity import BatchInvariance, batch_invariance, onnx_logits, parity_batches
from kdc.pipeline.graphs.ranges import Histogram, Ranges, calibration_batches, collect_ranges
from kdc.pipeline.graphs.smoothing import largest_by_channel, smooth
from kdc.pipeline.models.loading import load_model
from kdc.serving.engine.engine import Engine, activate

VECTOR_BITS: tuple[VectorBits, ...] = (8, 4)
BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}


def token_rows(count: int = 200) -> list[Mapping[str, Sequence[int]]]:
    generator = np.random.default_rng(0)
    return [
        {"input_ids": [2, *generator.integers(4, 94, size=length).tolist(), 3]}
        for length in generator.integers(2, 20, size=count)
    ]


@pytest.fixture(scope="module", params=others_slow(["deberta-v2", "distilbert"]))
def fp32(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family whose graph has branches and constant products, and a plain one."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_models.build(request.param, folder)
    export_onnx(folder, folder / "model.onnx", token_type_ids=False)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def ranges(fp32: Path) -> Ranges:
    return ranges_of(fp32)


def ranges_of(graph: Path) -> Ranges:
    return collect_ranges(graph, activations(graph), calibration_batches(token_rows(), graph_inputs(graph)))


@dataclass
class Made:
    """The candidates of one graph, each made when the first test asks for it."""

    fp32: Path
    ranges: Ranges
    folder: Path
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def candidate(self, name: str) -> tuple[Path, dict[str, int]]:
        """A candidate's file, and the counts of its layers."""
        file, candidate = self.folder / f"{name}.onnx", BY_NAME[name]
        if name not in self.counts:
            source = self.smoothed() if candidate.smooth else self.fp32
            ranges = ranges_of(source) if candidate.smooth else self.ranges
            self.counts[name] = quantise(source, file, candidate, ranges)
        return file, self.counts[name]

    def smoothed(self) -> Path:
        out = self.folder / "smoothed.onnx"
        smooth(
            self.fp32, out, largest_by_channel(self.fp32, calibration_batches(token_rows(), graph_inputs(self.fp32)))
        )
        return out


@pytest.fixture(scope="module")
def made(fp32: Path, ranges: Ranges, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(fp32, ranges, tmp_path_factory.mktemp("int8"))


def exact_logits(file: Path) -> Callable[[Mapping[str, Any]], Any]:
    """What the file says, with products in fp32, which no CPU saturates."""
    model, options = onnx.load(file), onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    nodes = []
    for node in model.graph.node:
        if node.op_type != "MatMulIntegerToFloat":
            nodes.append(node)
            continue
        values, weights, values_scale, weights_scale, values_zero, weights_zero, bias = node.input
        product = [f"{node.name}_{part}" for part in ("values", "weights", "product")]
        nodes += [
            helper.make_node("DequantizeLinear", [values, values_scale, values_zero], product[:1]),
            helper.make_node("DequantizeLinear", [weights, weights_scale, weights_zero], product[1:2], axis=1),
            helper.make_node("MatMul", product[:2], product[2:]),
            helper.make_node("Add", [product[2], bias], node.output),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return lambda feeds: session.run(["logits"], {name: feeds[name] for name in names})[0]


@pytest.mark.parametrize("name", BY_NAME)
def test_every_candidate_is_quantised_and_near_fp32(made: Made, name: str) -> None:
    file, counts = made.candidate(name)
    assert counts["quantized"] == counts["wanted"] > 0
    right, run = onnx_logits(made.fp32, threads=1), onnx_logits(file, threads=1)
    if machine.cpu().has_int8_products is False and not BY_NAME[name].seven_bit:
        # The pipeline sees on the tuning set that this CPU saturates.
        if not BY_NAME[name].static:
            pytest.skip("this CPU saturates sums of 8-bit products, and this graph multiplies integers")
        run = exact_logits(file)
    batches = list(parity_batches(token_rows(), pad_id=0, max_length=24))
    difference = np.concatenate(
        [np.abs(activate(run(b), "classification") - activate(right(b), "classification")) for b in batches]
    )
    # Weights drawn from one wide distribution are the worst case: these layers amplify the noise. Not zero either:
    # something must have been rounded.
    assert 1e-5 < difference.mean() < 0.06


@pytest.mark.parametrize("name", [each.name for each in CANDIDATES if each.static and not each.smooth])
def test_a_static_answer_does_not_depend_on_the_batch(made: Made, name: str) -> None:
    result = invariance(made.candidate(name)[0])
    assert result.passes()
    assert result.compared_rows == 60


def test_a_dynamic_answer_depends_on_the_batch(made: Made) -> None:
    """The control of the test above, and why a dynamic candidate cannot win."""
    assert not invariance(made.candidate("dynamic")[0]).passes()


def invariance(path: Path) -> BatchInvariance:
    task = TaskInfo(name="t", kind="classification", labels=("a", "b", "c"))
    info = TokenizerInfo(max_length=48, pad_id=0, pad_token="[PAD]", token_type_ids=False)
    tokenizer_json = path.parent / "tokenizer.json"
    tiny_models.build_tokenizer().backend_tokenizer.save(str(tokenizer_json))
    engine = Engine.from_files(path, tokenizer_json, task=task, tokenizer_info=info, threads=1)
    generator = np.random.default_rng(3)
    texts = [" ".join(generator.choice(tiny_models.WORDS, size=size)) for size in generator.integers(1, 20, size=60)]
    return batch_invariance(
        lambda encodings: activate(engine.run(encodings), "classification"), engine.encode(texts), kind="classification"
    )


def test_attention_products_and_constant_products_stay_fp32(made: Made) -> None:
    """14 linear layers: 2 x (query, key, value, output, 2 feed-forward), pooler or pre-classifier, classifier."""
    _, counts = made.candidate("tensor-minmax")
    assert counts["wanted"] == 14
    assert counts["float"] >= 4


def test_quantised_products_add_their_biases_themselves(made: Made) -> None:
    # The bug to catch: the step that joins them is left out; the answers are the same, and take longer.
    graph = onnx.load(made.candidate("channel-minmax")[0]).graph
    assert [len(node.input) for node in graph.node if node.op_type == "MatMulIntegerToFloat"][:2] == [7, 7]


def test_excluding_keeps_the_noisiest_layers_in_fp32(made: Made, ranges: Ranges) -> None:
    _, plain = made.candidate("channel-minmax")
    file, fewer = made.candidate("channel-minmax-exclude")
    excluded = plain["quantized"] - fewer["quantized"]
    assert excluded in (2, 3, 4)  # a tenth of 14 rounded up; query, key and value go together
    assert fewer["stored"] - plain["stored"] == excluded
    noise = {name: histogram.noise("minmax") for name, histogram in ranges.items()}
    nodes = [node for node in onnx.load(file).graph.node if node.input]
    kept = [noise[node.input[0]] for node in nodes if node.op_type in LINEAR_OPS and node.input[0] in noise]
    rounded = [noise[node.input[0]] for node in nodes if node.op_type == "QuantizeLinear"]
    assert len(kept) == excluded
    assert min(kept) >= max(rounded)


def test_no_large_weight_stays_fp32(made: Made) -> None:
    file, _ = made.candidate("channel-minmax-exclude")
    left = [
        tensor.name
        for tensor in onnx.load(file).graph.initializer
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 256 and "rel_embeddings" not in tensor.name
    ]
    assert not left


@pytest.mark.parametrize("name", ["tensor-minmax", "channel-minmax"])
def test_no_weight_is_kept_twice(made: Made, name: str) -> None:
    """DeBERTa projects tokens and positions by the same weights: one product is quantised, the other stored."""
    graph = onnx.load(made.candidate(name)[0]).graph
    stored = {tensor.name.rpartition("_int8_")[0] for tensor in graph.initializer if "_int8_" in tensor.name}
    quantised = {tensor.name.removesuffix("_quantized") for tensor in graph.initializer}
    assert not stored & quantised


def test_a_quantised_graph_without_quantised_layers_is_an_error(
    fp32: Path, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_quantise_linear", lambda model, names, candidate, ranges: model)
    with pytest.raises(KdcError, match="no quantised linear layer"):
        quantise(fp32, tmp_path / "int8.onnx", BY_NAME["tensor-minmax"], ranges)


def test_a_failing_quantiser_is_an_error_with_its_reason(
    fp32: Path, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("unknown operator")

    monkeypatch.setattr(int8, "_quantise_linear", fail)
    with pytest.raises(KdcError, match="unknown operator"):
        quantise(fp32, tmp_path / "int8.onnx", BY_NAME["tensor-minmax"], ranges)


def test_the_fp32_graph_counts_as_not_quantised(fp32: Path) -> None:
    assert count_operators(fp32)["quantized"] == 0


def make_lookup(path: Path, table: NDArray[np.float32], weight: NDArray[np.float32]) -> None:
    """logits = table[input_ids] @ weight."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"], name="lookup"),
            helper.make_node("MatMul", ["rows", "weight"], ["logits"], name="layer"),
        ],
        "lookup",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", weight.shape[1]])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_stored_weights_lose_at_most_half_a_step_each(tmp_path: Path, scale: float) -> None:
    generator = np.random.default_rng(0)
    table = (generator.normal(size=(50, 8)) * 10.0 ** generator.uniform(-2, 2, size=(50, 1)) * scale).astype(np.float32)
    table[7] = 0
    make_lookup(tmp_path / "fp32.onnx", table, np.eye(8, dtype=np.float32))
    model = onnx.load(tmp_path / "fp32.onnx")
    assert (store_tables(model.graph), store_matrices(model.graph, except_for=())) == (1, 1)
    onnx.save(model, tmp_path / "stored.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "stored.onnx", providers=["CPUExecutionProvider"])
    (restored,) = session.run(None, {"input_ids": np.arange(50)[None]})
    allowed = np.abs(table).max(axis=1, keepdims=True) / 127 * 0.51 + np.abs(table) * 1e-3
    assert (np.abs(restored[0] - table) <= allowed).all()
    assert {tensor.data_type for tensor in model.graph.initializer} <= {
        TensorProto.INT8,
        TensorProto.FLOAT16,
        TensorProto.FLOAT,
    }
    assert not {"table", "weight"} & {tensor.name for tensor in model.graph.initializer}


def test_a_table_of_positions_is_one_slice_of_a_plain_table_after_loading(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    values = {"table": table, "first": np.array([3]), "end": np.array([9]), "axis": np.array([0])}
    graph = helper.make_graph(
        [helper.make_node("Slice", ["table", "first", "end", "axis"], ["logits"], name="slice")],
        "positions",
        [],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [6, 8])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert store_tables(model.graph) == 1
    assert "table" not in {tensor.name for tensor in model.graph.initializer}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    allowed = np.abs(table).max(axis=1, keepdims=True) / 127 * 0.51 + np.abs(table) * 1e-3
    assert (np.abs(session.run(None, {})[0] - table[3:9]) <= allowed[3:9]).all()


def test_a_residual_connection_reads_what_is_not_rounded(tmp_path: Path) -> None:
    """The product is zero, so that the sum is the vector itself, and any rounding of it would show."""
    table = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["looked_up"], name="lookup"),
        helper.make_node("Tanh", ["looked_up"], ["rows"], name="bend"),
        helper.make_node("MatMul", ["rows", "weight"], ["product"], name="product"),
        helper.make_node("Add", ["product", "rows"], ["logits"], name="residual"),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 32])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.zeros((32, 32), np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "a.onnx")
    feeds = {"input_ids": np.arange(50)[None]}
    ranges = collect_ranges(tmp_path / "a.onnx", ["rows"], [feeds])
    assert quantise(tmp_path / "a.onnx", tmp_path / "int8.onnx", BY_NAME["channel-minmax"], ranges)["quantized"] == 1
    stored = onnx.load(tmp_path / "a.onnx")
    store_tables(stored.graph)  # whose own rounding is not in question
    onnx.save(stored, tmp_path / "stored.onnx")
    expected = onnx_logits(tmp_path / "stored.onnx", threads=1)(feeds)
    np.testing.assert_allclose(onnx_logits(tmp_path / "int8.onnx", threads=1)(feeds), expected, atol=1e-6)


@pytest.mark.parametrize(("width", "packed"), [(64, True), (48, False)])
def test_token_vectors_of_four_bits_lose_at_most_half_a_step_on_the_average(
    width: int, packed: bool, tmp_path: Path
) -> None:
    """Would catch halves that are swapped, a scale of another block, and a width that the blocks do not divide."""
    table = np.random.default_rng(0).normal(size=(50, width)) * np.geomspace(0.01, 10, 50)[:, None]
    table[7] = 0
    make_lookup(tmp_path / "fp32.onnx", table.astype(np.float32), np.eye(width, dtype=np.float32))
    model = onnx.load(tmp_path / "fp32.onnx")
    assert store_tables(model.graph, vector_bits=4) == 1
    onnx.save(model, tmp_path / "stored.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "stored.onnx", providers=["CPUExecutionProvider"])
    (restored,) = session.run(None, {"input_ids": np.arange(50).reshape(5, 10)})
    block = 32 if packed else width
    error = np.square(restored.reshape(-1, block) - table.reshape(-1, block)).mean(axis=1)
    half_a_step = np.abs(table.reshape(-1, block)).max(axis=1) / (15 if packed else 254)
    assert (error <= (1.01 * half_a_step) ** 2).all()
    if packed:  # the largest number of a block decides its scale only where that is the best of those that are tried
        plain = np.rint(table.reshape(-1, 32) / np.maximum(half_a_step, 1e-9)[:, None] / 2) * half_a_step[:, None] * 2
        assert error.sum() < 0.97 * np.square(plain - table.reshape(-1, 32)).mean(axis=1).sum()
    assert (TensorProto.UINT8 in {tensor.data_type for tensor in model.graph.initializer}) is packed


def test_a_candidate_with_vectors_of_four_bits_is_smaller_and_answers_nearly_the_same(tmp_path: Path) -> None:
    base_model("bert", tmp_path, vocab_size=2000, hidden_size=32, num_hidden_layers=1)
    task = custom_task("toy", "a", None, "b", "classification", ("x", "y", "z"))
    load_model(str(tmp_path), task).model.save_pretrained(tmp_path)
    export_onnx(tmp_path, tmp_path / "fp32.onnx", token_type_ids=False)
    ranges, sizes, answers = ranges_of(tmp_path / "fp32.onnx"), {}, {}
    for bits in VECTOR_BITS:
        file = tmp_path / f"{bits}.onnx"
        quantise(tmp_path / "fp32.onnx", file, BY_NAME["channel-minmax"], ranges, vector_bits=bits)
        assert invariance(file).passes()
        sizes[bits], answers[bits] = file.stat().st_size, onnx_logits(file, threads=1)
    assert 2000 * 14 < sizes[8] - sizes[4] < 2000 * 18  # a byte for two of 32 numbers, and as many bytes of scales
    (batch, *_) = parity_batches(token_rows(), pad_id=0, max_length=24)
    difference = np.abs(answers[4](batch) - answers[8](batch)).max()
    assert 1e-6 < difference < 0.2


def test_a_quantised_graph_computes_gelu_by_tanh(tmp_path: Path) -> None:
    base_model("bert", tmp_path, num_hidden_layers=1)
    load_model(str(tmp_path), custom_task("toy", "a", None, "b", "classification", ("x", "y"))).model.save_pretrained(
        tmp_path
    )
    export_onnx(tmp_path, tmp_path / "fp32.onnx", exporter="torch", token_type_ids=False)
    quantise(tmp_path / "fp32.onnx", tmp_path / "a.onnx", BY_NAME["channel-minmax"], ranges_of(tmp_path / "fp32.onnx"))
    counts = [
        [node.op_type for node in onnx.load(tmp_path / name).graph.node if "Gelu" in node.op_type]
        for name in ("fp32.onnx", "a.onnx")
    ]
    assert counts == [["Gelu"], ["FastGelu"]]


def test_gelu_by_tanh_differs_by_less_than_a_step_of_eight_bits(tmp_path: Path) -> None:
    values = np.linspace(-6, 6, 10_001, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gelu", ["x"], ["y"], name="gelu")],
        "gelu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    use_fast_gelu(model)
    assert [node.op_type for node in model.graph.node] == ["FastGelu"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    exact = values * ndtr(values)
    assert 1e-5 < np.abs(session.run(None, {"x": values})[0] - exact).max() < 6 / 255 / 20


def test_a_stored_matrix_is_a_plain_weight_again_after_loading(tmp_path: Path) -> None:
    make_lookup(tmp_path / "fp32.onnx", np.eye(8, dtype=np.float32), np.ones((8, 3), dtype=np.float32))
    model = onnx.load(tmp_path / "fp32.onnx")
    store_matrices(model.graph, except_for=())
    onnx.save(model, tmp_path / "stored.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(tmp_path / "stored.onnx", options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node] == ["Gather", "MatMul"]


def test_a_histogram_knows_the_range_exactly() -> None:
    histogram = Histogram()
    for values in ([0.1, 0.2], [-3.0, 0.5], [700.0]):
        histogram.add(np.array(values, dtype=np.float32))
    assert histogram.range("minmax") == (-3.0, 700.0)


def test_a_range_holds_zero() -> None:
    histogram = Histogram()
    histogram.add(np.array([5.0, 6.0], dtype=np.float32))
    assert histogram.range("minmax") == (0.0, 6.0)
    assert histogram.range("percentile")[0] == 0.0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_a_histogram_gives_numpys_percentiles_in_many_batches(scale: float) -> None:
    generator = np.random.default_rng(0)
    # The range grows by a thousand from batch to batch, so that bins are widened and added on both sides.
    batches = [generator.normal(size=50_000).astype(np.float32) * scale * growth for growth in (0.001, 1.0, 2.0)]
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch.reshape(100, -1))
    low, high = histogram.range("percentile")
    expected = np.percentile(np.concatenate(batches), [0.005, 99.995])
    np.testing.assert_allclose([low, high], expected, rtol=0.02)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_noise_is_that_of_rounding_every_value(method: Any) -> None:
    values = np.random.default_rng(0).standard_t(4, size=200_000).astype(np.float32)
    histogram = Histogram()
    for part in np.split(values, 10):
        histogram.add(part)
    low, high = histogram.range(method)
    step = (high - low) / 255
    zero = round(-low / step)
    restored = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    expected = ((values - restored) ** 2).mean() / (values**2).mean()
    assert histogram.noise(method) == pytest.approx(expected, rel=0.05)


def test_the_entropy_range_cuts_a_lone_outlier_off_and_keeps_the_rest() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    whole, with_outlier = Histogram(), Histogram()
    whole.add(values)
    with_outlier.add(np.append(values, np.float32(12.0)))
    low, high = whole.range("entropy")
    assert low < -2.5
    assert high > 2.5
    low, high = with_outlier.range("entropy")
    assert low < -2.5
    assert 2.5 < high < 8


def test_a_tensor_of_zeros_has_a_range_and_no_noise() -> None:
    histogram = Histogram()
    histogram.add(np.zeros(10, dtype=np.float32))
    assert histogram.range("minmax") == (0.0, 0.0)
    assert histogram.noise("percentile") == 0.0


def test_calibration_batches_have_no_padding_and_lose_no_row() -> None:
    rows = token_rows(100)
    batches = list(calibration_batches(rows, ("input_ids", "attention_mask"), batch_size=3))
    assert all((feeds["attention_mask"] == 1).all() and len(feeds["input_ids"]) <= 3 for feeds in batches)
    seen = sorted(row.tolist() for feeds in batches for row in feeds["input_ids"])
    assert seen == sorted(list(row["input_ids"]) for row in rows)


def test_ranges_are_those_of_the_graphs_tensors(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    make_lookup(tmp_path / "fp32.onnx", table, np.eye(8, dtype=np.float32))
    assert activations(tmp_path / "fp32.onnx") == ("rows",)
    feeds = [{"input_ids": np.arange(start, start + 10)[None]} for start in (0, 20)]
    ranges = collect_ranges(tmp_path / "fp32.onnx", ["rows"], feeds)
    used = np.concatenate([table[:10], table[20:30]])
    np.testing.assert_allclose(ranges["rows"].range("minmax"), (used.min(), used.max()), rtol=1e-6)


def test_no_calibration_rows_is_an_error(fp32: Path) -> None:
    with pytest.raises(KdcError, match="no calibration rows"):
        collect_ranges(fp32, activations(fp32), [])


class CountedRows:
    """A model whose answer depends on the batch's size for some rows; the oracle of what must be found."""

    def __init__(self, change: float, first_row_only: bool = True) -> None:
        self.seen: list[int] = []
        self.change = change

    def __call__(self, rows: Sequence[Any]) -> NDArray[np.float32]:
        self.seen.append(len(rows))
        answers = np.array([[0.7, 0.3]] * len(rows), dtype=np.float32)
        if len(rows) > 1:
            for place, row in enumerate(rows):
                if row.number == 5:
                    answers[place] += [-self.change, self.change]
        return answers


@pytest.mark.parametrize(
    ("change", "flips", "passes"), [(0.0, 0, True), (9e-4, 0, True), (0.01, 0, False), (0.3, 1, False)]
)
def test_batch_invariance_finds_the_one_row_that_changes(change: float, flips: int, passes: bool) -> None:
    run = CountedRows(change)
    result = batch_invariance(run, [SimpleNamespace(number=n) for n in range(37)], kind="classification")
    assert result.max_probability_difference == pytest.approx(change, abs=1e-6)
    assert (result.label_flips, result.passes(), result.compared_rows) == (flips, passes, 37)
    assert run.seen == [1] * 37 + [16] * 3


def test_batch_invariance_of_multilabel_counts_rows_that_cross_a_half() -> None:
    result = batch_invariance(CountedRows(0.25), [SimpleNamespace(number=5)] * 4, kind="multilabel")
    assert result.label_flips == 4
