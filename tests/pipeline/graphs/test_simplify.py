"""Simplified graphs: the same answers from fewer nodes, and only the first token where the head reads no other.

The oracles are the torch model, and hand-made graphs as they were before.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from tiers import installed

from kdc.pipeline.graphs.first_token import keep_first_tokens
from kdc.pipeline.graphs.onnx_graph import Exporter, export_onnx
from kdc.pipeline.graphs.parity import Feeds
from kdc.pipeline.graphs.simplify import simplify

WIDTH, LONGEST = 4, 12
needs_optimum = pytest.mark.skipif(not installed("optimum.exporters.onnx"), reason="optimum-onnx is not installed")


def feeds_of(rows: int, tokens: int, pad_id: int = 0) -> Feeds:
    ids = np.random.default_rng(rows).integers(4, 90, (rows, tokens))
    mask = np.ones_like(ids)
    mask[1:, tokens // 2 :] = 0
    return {"input_ids": np.where(mask == 1, ids, pad_id), "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def answer(model: ModelProto, feeds: Feeds, output: str = "logits") -> np.ndarray:
    if output != "logits":
        model = ModelProto.FromString(model.SerializeToString())
        model.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([output], {value.name: feeds[value.name] for value in session.get_inputs()})[0]


@pytest.mark.parametrize("exporter", ["torch", pytest.param("optimum", marks=needs_optimum)])
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=() if name == "bert" else pytest.mark.slow) for name in tiny_models.ARCHITECTURES],
)
def test_a_model_with_a_head_on_the_first_token_does_less_and_answers_the_same(
    architecture: str, exporter: Exporter, tmp_path: Path
) -> None:
    """Would catch a mask that hides too much, shapes of one batch, and tokens that keys and values still need."""
    model, _ = tiny_models.build(architecture, tmp_path)
    pad_id = tiny_models.ARCHITECTURES[architecture][2]
    export_onnx(tmp_path, tmp_path / "model.onnx", exporter=exporter, token_type_ids=False)
    longest = tiny_models.MAX_LENGTH
    after = simplify(tmp_path / "model.onnx", pad_id=pad_id, max_length=longest)
    for rows, tokens in ((1, 3), (2, 9), (7, longest)):
        feeds = feeds_of(rows, tokens, pad_id)
        with torch.no_grad():
            inputs = {name: torch.from_numpy(feeds[name]) for name in ("input_ids", "attention_mask")}
            expected = model(**inputs).logits.numpy()
        np.testing.assert_allclose(answer(after, feeds), expected, rtol=0, atol=1e-4)
    cuts = [node for node in after.graph.node if node.op_type == "Slice" and "_first_token" in node.name]
    assert cuts  # all these heads read the first token


def test_the_mask_the_shapes_and_the_positions_of_bert_take_eight_nodes(tmp_path: Path) -> None:
    tiny_models.build("bert", tmp_path)
    export_onnx(tmp_path, tmp_path / "model.onnx", exporter="torch")
    after = simplify(tmp_path / "model.onnx", pad_id=0, max_length=tiny_models.MAX_LENGTH)
    counts = Counter(node.op_type for node in after.graph.node)
    assert not {"Range", "Expand", "GatherND", "Where", "And", "Concat", "Squeeze"} & set(counts)
    assert (counts["Shape"], counts["Cast"], counts["Sub"], counts["Unsqueeze"]) == (1, 1, 1, 1)
    gelu = next(node.output[0] for node in reversed(after.graph.node) if node.op_type == "Gelu")
    assert answer(after, feeds_of(3, 7), gelu).shape[:2] == (3, 1)  # the last layer's, of one token


def graph_of(nodes: list[NodeProto], **constants: object) -> ModelProto:
    """`hidden` (batch, sequence, WIDTH) looked up from ids, and what a test adds, to `logits`."""
    table = np.random.default_rng(0).normal(size=(100, WIDTH)).astype(np.float32)
    values = {"table": table, **constants}
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["hidden"], name="lookup"), *nodes],
        "graph",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def attention(mask: list[NodeProto], **constants: object) -> ModelProto:
    """One head over `hidden`, with `mask` (batch, 1, queries, keys), summed over tokens that are no padding."""
    nodes = [
        *mask,
        helper.make_node("Unsqueeze", ["hidden", "one"], ["heads"], name="heads"),
        helper.make_node("Transpose", ["heads"], ["keys"], name="keys", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["heads", "keys"], ["scores"], name="scores"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], name="masked"),
        helper.make_node("Softmax", ["masked"], ["weights"], name="weights", axis=-1),
        helper.make_node("MatMul", ["weights", "heads"], ["read"], name="read"),
        helper.make_node("Cast", ["attention_mask"], ["kept"], name="kept", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "one_last"], ["kept_heads"], name="kept_heads"),
        helper.make_node("Mul", ["read", "kept_heads"], ["summands"], name="summands"),
        helper.make_node("ReduceSum", ["summands", "one_two"], ["logits"], name="sum", keepdims=0),
    ]
    return graph_of(nodes, one=np.array([1]), one_last=np.array([1, 3]), one_two=np.array([1, 2]), **constants)


def padding() -> list[NodeProto]:
    return [
        helper.make_node("Cast", ["attention_mask"], ["as_bool"], name="bool", to=TensorProto.BOOL),
        helper.make_node("Where", ["as_bool", "nothing", "lowest"], ["flat"], name="where"),
        helper.make_node("Unsqueeze", ["flat", "axes"], ["unspread"], name="unspread"),
        helper.make_node("Expand", ["unspread", "spread"], ["mask"], name="expand"),
    ]


MASK = {
    "nothing": np.float32(0),
    "lowest": np.float32(-3e38),
    "axes": np.array([1, 2]),
    "spread": np.array([1, 1, 1, 1]),
}


def simplified(model: ModelProto, tmp_path: Path, max_length: int = LONGEST) -> ModelProto:
    onnx.save(model, tmp_path / "model.onnx")
    return simplify(tmp_path / "model.onnx", pad_id=0, max_length=max_length)


def test_a_mask_stays_if_no_batch_of_the_longest_rows_was_seen(tmp_path: Path) -> None:
    after = simplified(attention(padding(), **MASK), tmp_path, max_length=513)
    assert "Expand" in {node.op_type for node in after.graph.node}


def test_a_mask_of_padding_becomes_short(tmp_path: Path) -> None:
    model = attention(padding(), **MASK)
    after = simplified(model, tmp_path)
    assert "Expand" not in {node.op_type for node in after.graph.node}
    for feeds in (feeds_of(1, 3), feeds_of(4, LONGEST)):
        np.testing.assert_allclose(answer(after, feeds), answer(model, feeds), rtol=1e-5)


@pytest.mark.parametrize("nearest", [0, 6])
def test_a_mask_that_hides_more_than_padding_stays(nearest: int, tmp_path: Path) -> None:
    """Causal attention, and a window of six tokens, which only the longest rows show."""
    distance = np.arange(LONGEST)[None] - np.arange(LONGEST)[:, None]
    far = np.where(np.abs(distance) > nearest if nearest else distance > 0, -3e38, 0).astype(np.float32)
    more = [
        helper.make_node("Shape", ["input_ids"], ["count"], name="count", start=1, end=2),
        helper.make_node("Concat", ["count", "count"], ["counts"], name="counts", axis=0),
        helper.make_node("Slice", ["far", "starts", "counts"], ["near"], name="near"),
        helper.make_node("Min", ["padded", "near"], ["mask"], name="min"),
    ]
    nodes = padding()
    nodes[-1].output[0] = "padded"
    model = attention([*nodes, *more], far=far, starts=np.array([0, 0]), **MASK)
    after = simplified(model, tmp_path)
    for feeds in (feeds_of(1, 3), feeds_of(4, LONGEST)):
        np.testing.assert_allclose(answer(after, feeds), answer(model, feeds), rtol=1e-5)
    assert "Min" in {node.op_type for node in after.graph.node}


FIRST = helper.make_node("Gather", ["last", "zero"], ["logits"], name="first", axis=1)


def test_all_tokens_stay_where_the_head_reads_them() -> None:
    model = graph_of([helper.make_node("ReduceMax", ["hidden", "axis"], ["logits"], keepdims=0)], axis=np.array([1]))
    assert keep_first_tokens(model) == 0


def test_what_another_node_reads_whole_stays_whole() -> None:
    """`bent` goes to the first token's sum and, whole, to a maximum over tokens."""
    nodes = [
        helper.make_node("Tanh", ["hidden"], ["bent"], name="bend"),
        helper.make_node("ReduceMax", ["bent", "axis"], ["largest"], name="largest", keepdims=1),
        helper.make_node("Relu", ["bent"], ["positive"], name="positive"),
        helper.make_node("Add", ["positive", "largest"], ["last"], name="add"),
        FIRST,
    ]
    model = graph_of(nodes, axis=np.array([1]), zero=np.int64(0))
    before = ModelProto.FromString(model.SerializeToString())
    assert keep_first_tokens(model) == 2  # the sum and what is positive
    feeds = feeds_of(3, 7)
    np.testing.assert_array_equal(answer(model, feeds), answer(before, feeds))
    assert (answer(model, feeds, "positive").shape, answer(model, feeds, "bent").shape) == (
        (3, 1, WIDTH),
        (3, 7, WIDTH),
    )


def test_an_operator_over_tokens_ends_what_is_cut() -> None:
    """A softmax over tokens needs them all; so does an operator that nobody knows."""
    for over_tokens in (
        helper.make_node("Softmax", ["bent"], ["over"], name="over", axis=1),
        helper.make_node("CumSum", ["bent", "axis"], ["over"], name="over"),
    ):
        nodes = [
            helper.make_node("Tanh", ["hidden"], ["bent"], name="bend"),
            over_tokens,
            helper.make_node("Relu", ["over"], ["last"], name="positive"),
            FIRST,
        ]
        model = graph_of(nodes, axis=np.int64(1), zero=np.int64(0))
        before = ModelProto.FromString(model.SerializeToString())
        assert keep_first_tokens(model) == 1
        np.testing.assert_array_equal(answer(model, feeds_of(3, 7)), answer(before, feeds_of(3, 7)))


def test_another_token_than_the_first_keeps_all() -> None:
    nodes = [helper.make_node("Tanh", ["hidden"], ["last"], name="bend"), FIRST]
    assert keep_first_tokens(graph_of(nodes, zero=np.int64(1))) == 0


@pytest.mark.parametrize(
    ("columns", "operators"), [(2, ["Gather", "ReduceMax"]), (64, ["Gather", "MatMul", "ReduceMax"])]
)
def test_a_narrow_product_of_a_looked_up_vector_is_looked_up(
    columns: int, operators: list[str], tmp_path: Path
) -> None:
    weights = np.random.default_rng(1).normal(size=(WIDTH, columns)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["hidden", "weights"], ["product"], name="product"),
        helper.make_node("ReduceMax", ["product", "axis"], ["logits"], name="largest", keepdims=0),
    ]
    model = graph_of(nodes, weights=weights, axis=np.array([1]))
    after = simplified(model, tmp_path)
    assert [node.op_type for node in after.graph.node] == operators
    np.testing.assert_allclose(answer(after, feeds_of(3, 7)), answer(model, feeds_of(3, 7)), rtol=1e-5)
