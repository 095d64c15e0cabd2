"""Shallow classifiers: what they compute, what they begin with, and that they can be saved, folded and exported."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_runs
import torch
from tiers import others_slow
from tiny_models import ARCHITECTURES

from kdc.common.errors import InputError
from kdc.pipeline.config.student_kinds import KINDS
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.graphs.int8 import CANDIDATES, quantise
from kdc.pipeline.graphs.int8_storage import store_tables
from kdc.pipeline.graphs.onnx_graph import export_onnx
from kdc.pipeline.graphs.smoothing import make_source
from kdc.pipeline.models import loading
from kdc.pipeline.models.shallow import SHAPES, ShallowClassifier, check_shape, parse_shape, shallow_over

TASK = custom_task("toy", "first", "second", "label", "classification", ("a", "b", "c"))
CONV, STATIC = "conv:width=8,channels=12,hidden=16", "static:width=8,hidden=16"
LINEAR = "linear:width=8,pairs=32"
IDS = torch.tensor([[2, 10, 11, 3], [2, 12, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def shallow(spec: str, folder: Path, architecture: str = "bert", **sizes: int) -> Any:
    """A shallow classifier over a tiny teacher, whose weights are large enough for its logits to differ."""
    tiny_runs.base_model(architecture, folder, **sizes)
    model, _ = shallow_over(loading.load_model(str(folder), TASK).model, parse_shape(spec))
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if not name.startswith("vectors"):
            torch.nn.init.normal_(weight, std=0.5)
    model.vectors.weight.data.abs_()[0] = 1  # [PAD], which no answer may depend on
    model.projection.weight.data[0] = -1  # a column without a positive number, whose largest padding may exceed
    return model.eval()


def logits_of(model: Any, ids: torch.Tensor = IDS, mask: torch.Tensor = MASK) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def by_hand(model: ShallowClassifier, ids: list[int]) -> np.ndarray:
    """The logits of one row, in numpy, by the formulas; a convolution as torch's own."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    states = weights["vectors.weight"][ids] @ weights["projection.weight"].T
    for place in range(len(model.convolutions)):
        kernel = weights[f"convolutions.{place}.weight"].reshape(-1, model.window, states.shape[1]).transpose(0, 2, 1)
        convolved = torch.nn.functional.conv1d(
            torch.from_numpy(states.T[None]), torch.from_numpy(kernel.copy()), padding=model.window // 2
        )
        states = np.maximum(convolved[0].numpy().T + weights[f"convolutions.{place}.bias"], 0)
    if model.hidden is None:
        buckets = [(first * 1_000_003 + second) % len(weights["pairs.weight"]) for first, second in pairwise(ids)]
        pooled = states.mean(0) + weights["pairs.weight"][buckets].mean(0)
        return weights["classifier.weight"] @ pooled + weights["classifier.bias"]
    scores = np.exp(states @ weights["share.weight"].T)
    pooled = np.concatenate([(states * scores / scores.sum()).sum(0), states.max(0)])
    hidden = np.maximum(weights["hidden.weight"] @ pooled + weights["hidden.bias"], 0)
    return weights["classifier.weight"] @ hidden + weights["classifier.bias"]


@pytest.mark.parametrize("spec", [CONV, STATIC, LINEAR, "conv:width=8,channels=12,hidden=16,depth=2,window=5"])
def test_logits_are_those_of_the_formulas_whatever_the_padding(spec: str, tmp_path: Path) -> None:
    """Would catch a window that is shifted, or that reads what lies under the padding."""
    model = shallow(spec, tmp_path)
    expected = [by_hand(model, row[: int(mask.sum())].tolist()) for row, mask in zip(IDS, MASK, strict=True)]
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    assert np.allclose(logits_of(model).numpy(), expected, atol=1e-4)


def test_a_bag_has_no_order_and_a_convolution_has(tmp_path: Path) -> None:
    turned = IDS[:1][:, [0, 2, 1, 3]]
    for spec, differs in ((STATIC, False), (CONV, True), (LINEAR, True)):
        model = shallow(spec, tmp_path / spec.partition(":")[0])
        same = torch.allclose(logits_of(model, IDS[:1], MASK[:1]), logits_of(model, turned, MASK[:1]), atol=1e-5)
        assert same is not differs


@pytest.mark.parametrize("spec", [CONV, STATIC, LINEAR])
def test_folded_it_answers_the_same_with_a_narrower_table(spec: str, tmp_path: Path) -> None:
    model = shallow(spec, tmp_path)
    folded = model.folded()
    assert folded.vectors.weight.shape == (101, 8)  # the last for padding
    assert torch.allclose(logits_of(folded), logits_of(model), atol=1e-4)
    assert folded.folded() is folded


@pytest.mark.parametrize("spec", [CONV, STATIC, LINEAR])
def test_the_table_of_its_int8_graph_is_rounded_and_needs_no_scales(spec: str, tmp_path: Path) -> None:
    """Would catch scales by row or by column, and padding that adds to a sum or wins a maximum."""
    folded = shallow(spec, tmp_path / "teacher").folded()
    table = folded.vectors.weight.detach().numpy()
    assert np.allclose(np.abs(table[:-1]).max(axis=0), 127, rtol=1e-6)
    folded.save_pretrained(tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "model.onnx", token_type_ids=False)
    graph = onnx.load(tmp_path / "model.onnx")
    store_tables(graph.graph)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    assert any("scale" in name for name in stored) is (spec is LINEAR)  # for its pairs
    folded.vectors.weight.data = torch.from_numpy(np.rint(table))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input_ids": IDS.numpy(), "attention_mask": MASK.numpy()})
    assert np.allclose(logits, logits_of(folded).numpy(), atol=0.02 if spec is LINEAR else 1e-4)


@pytest.mark.parametrize("spec", ["conv:width=32,channels=12,hidden=16", "static:width=64,hidden=16"])
def test_token_vectors_of_four_bits_answer_nearly_the_same(spec: str, tmp_path: Path) -> None:
    """Would catch vectors of windows, which have one more axis."""
    folded = shallow(spec, tmp_path / "teacher", hidden_size=64).folded()
    folded.save_pretrained(tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "model.onnx", token_type_ids=False)
    graph = onnx.load(tmp_path / "model.onnx")
    store_tables(graph.graph, vector_bits=4)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input_ids": IDS.numpy(), "attention_mask": MASK.numpy()})
    right = logits_of(folded).numpy()
    assert 0 < np.abs(logits - right).max() < 0.2 * np.abs(right).max()


@pytest.mark.parametrize("name", ["channel-minmax", "channel-smooth"])
def test_a_quantised_convolution_reads_the_rounded_table_itself(name: str, tmp_path: Path) -> None:
    """Would catch vectors that are restored and rounded again: another error, and a sixth of the time."""
    shallow(CONV, tmp_path / "teacher").folded().save_pretrained(tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "model.onnx", token_type_ids=False)
    batches = [{"input_ids": IDS.numpy(), "attention_mask": MASK.numpy()}]
    candidate = next(each for each in CANDIDATES if each.name == name)
    source = make_source(
        tmp_path / "model.onnx", batches, smoothed_file=tmp_path / "smoothed.onnx" if candidate.smooth else None
    )
    quantise(source.file, tmp_path / "int8.onnx", candidate, source.ranges)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(tmp_path / "int8.onnx", options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    made_by = {name: node for node in nodes for name in node.output}
    convolution = next(node for node in nodes if node.op_type == "MatMulIntegerToFloat")
    windows = made_by[convolution.input[0]]
    assert [windows.op_type, made_by[windows.input[0]].op_type] == ["Reshape", "Gather"]


@pytest.mark.parametrize(("spec", "trained"), [(CONV, False), (STATIC, True)])
def test_it_begins_with_the_teachers_vectors_and_opens_as_it_was_saved(
    spec: str, trained: bool, tmp_path: Path
) -> None:
    tiny_runs.base_model("bert", tmp_path / "teacher")
    teacher = loading.load_model(str(tmp_path / "teacher"), TASK).model
    model, new_modules = shallow_over(teacher, parse_shape(spec))
    theirs, mine = teacher.get_input_embeddings().weight.detach(), model.vectors.weight.detach()
    assert torch.allclose(mine / mine[7, 0], theirs / theirs[7, 0], rtol=1e-4)
    assert float(mine.square().mean()) == pytest.approx(1, abs=1e-4)
    named = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert named - set(new_modules) == {"vectors"}
    model.save_pretrained(tmp_path / "saved")
    loaded = loading.load_model(str(tmp_path / "saved"), TASK)
    assert loaded.new_modules == ()
    assert loaded.model.vectors.weight.requires_grad is trained
    assert torch.equal(logits_of(loaded.model.eval()), logits_of(model.eval()))
    assert torch.equal(logits_of(loading.load_plain(tmp_path / "saved")), logits_of(model))


@pytest.mark.parametrize("architecture", others_slow(ARCHITECTURES))
@pytest.mark.parametrize("spec", [CONV, STATIC, LINEAR])
def test_its_graph_answers_as_it_does_whatever_the_teacher(spec: str, architecture: str, tmp_path: Path) -> None:
    model = shallow(spec, tmp_path / "teacher", architecture).folded()
    model.save_pretrained(tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "model.onnx", token_type_ids=architecture == "bert")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input_ids": IDS.numpy(), "attention_mask": MASK.numpy()})
    assert np.allclose(logits, logits_of(model).numpy(), atol=1e-4)


NO_SIZES = "conv:width conv:width=0 conv:width=x static:depht=2 static:depth=2 static:channels=8 conv:width=8,width=16"


@pytest.mark.parametrize(
    "spec", [*NO_SIZES.split(), "conv:window=99", "conv:trains_vectors=1", f"conv:width={'9' * 5000}"]
)
def test_sizes_that_cannot_be_are_refused_with_those_that_can(spec: str) -> None:
    with pytest.raises(InputError, match="width \\(1 to 1024\\)"):
        parse_shape(spec)


def test_what_this_teacher_cannot_give_is_refused_and_the_kinds_own_sizes_never_are(tmp_path: Path) -> None:
    """Would catch a named width that is narrowed in silence."""
    tiny_runs.base_model("bert", tmp_path)
    config = loading.load_config(str(tmp_path))
    assert config.hidden_size == 16
    check_shape("static:width=16", config)
    check_shape("static", config)  # 256, or what there is
    check_shape("static:width=17", None)
    with pytest.raises(InputError, match="at most as wide as they are, 16"):
        check_shape("static:width=17", config)


def test_every_kind_has_a_shape() -> None:
    assert set(SHAPES) == {kind.name for kind in KINDS.values() if not kind.has_layers}


def test_it_is_no_wider_than_the_teachers_vectors(tmp_path: Path) -> None:
    tiny_runs.base_model("bert", tmp_path)
    teacher = loading.load_model(str(tmp_path), TASK).model
    assert shallow_over(teacher, parse_shape("conv:width=100"))[0].folded().vectors.embedding_dim == 16


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_its_dropout_is_what_the_settings_say_whatever_the_teacher(architecture: str, tmp_path: Path) -> None:
    shallow(CONV, tmp_path / "teacher", architecture).save_pretrained(tmp_path / "saved")
    assert loading.load_model(str(tmp_path / "saved"), TASK, dropout=0.3).model.dropout.p == 0.3
