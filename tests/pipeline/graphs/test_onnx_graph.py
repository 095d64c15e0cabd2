"""`onnx_graph`, `parity` and `fp16`: an exported graph computes what the torch model does, on every family.

The oracle is the model object itself, never loaded by the code under test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiers import installed

from kdc.artifact.manifest import TaskInfo, TokenizerInfo
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.graphs import onnx_graph
from kdc.pipeline.graphs.fp16 import to_fp16
from kdc.pipeline.graphs.onnx_graph import check_axes, choose_exporter, export_onnx, graph_inputs
from kdc.pipeline.graphs.parity import Feeds, check_parity, onnx_logits, parity_batches, torch_logits
from kdc.serving.engine.engine import Engine

TYPED = ("bert", "electra", "deberta-v2")  # whose tokenizers make token types
READS_TYPES = ("bert", "electra")
ARCHITECTURES = tuple(tiny_models.ARCHITECTURES)


HAS_OPTIMUM, HAS_ONNXSCRIPT = installed("optimum.exporters.onnx"), installed("onnxscript")
# Where Optimum exports, one plain and one difficult family show that torch does too: each takes seconds.
TORCH_ARCHITECTURES = ("bert", "deberta-v2") if HAS_OPTIMUM else ARCHITECTURES
needs_optimum = pytest.mark.skipif(not HAS_OPTIMUM, reason="optimum-onnx is not installed (it needs transformers 4)")
needs_onnxscript = pytest.mark.skipif(not HAS_ONNXSCRIPT, reason="onnxscript is not installed")
CASES = [pytest.param(("optimum", name), id=f"optimum-{name}", marks=needs_optimum) for name in ARCHITECTURES] + [
    pytest.param(
        ("torch", name),
        id=f"torch-{name}",
        marks=[needs_onnxscript, pytest.mark.slow] if name != "bert" else [needs_onnxscript],
    )
    for name in TORCH_ARCHITECTURES
]


@dataclass(frozen=True)
class Exported:
    exporter: str
    architecture: str
    folder: Path
    model: torch.nn.Module
    pad_id: int

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    def reference(self, feeds: Feeds) -> NDArray[np.float32]:
        with torch.no_grad():
            names = [name for name in feeds if name != "token_type_ids" or self.architecture in READS_TYPES]
            return self.model(**{name: torch.from_numpy(feeds[name]) for name in names}).logits.numpy()


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    exporter, architecture = request.param
    folder = tmp_path_factory.mktemp(architecture)
    model, _ = tiny_models.build(architecture, folder)
    used = export_onnx(folder, folder / "model.onnx", exporter=exporter, token_type_ids=architecture in TYPED)
    assert used == exporter
    return Exported(exporter, architecture, folder, model, tiny_models.ARCHITECTURES[architecture][2])


def token_rows(typed: bool, count: int = 40, seed: int = 0) -> list[Mapping[str, Sequence[int]]]:
    generator = np.random.default_rng(seed)
    rows: list[Mapping[str, Sequence[int]]] = []
    for length in generator.integers(3, 30, size=count):
        row = {"input_ids": [2, *generator.integers(4, 94, size=length - 2).tolist(), 3]}
        rows.append(row | ({"token_type_ids": (np.arange(length) > length // 2).astype(int).tolist()} if typed else {}))
    return rows


def batches(case: Exported) -> list[Feeds]:
    rows = token_rows(case.architecture in TYPED)
    return list(parity_batches(rows, pad_id=case.pad_id, max_length=tiny_models.MAX_LENGTH))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_the_graph_computes_what_the_model_does(exported: Exported) -> None:
    run = onnx_logits(exported.onnx, threads=1)
    for feeds in batches(exported):
        expected = exported.reference(feeds)
        np.testing.assert_allclose(run(feeds), expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_the_comparison_means_something(exported: Exported) -> None:
    logits = np.concatenate([exported.reference(feeds) for feeds in batches(exported)])
    assert np.abs(logits).max() > 1
    assert logits.std(axis=0).min() > 0.1


def test_token_types_are_an_input_only_where_the_model_reads_them(exported: Exported) -> None:
    expected = ("input_ids", "attention_mask", "token_type_ids")[: 3 if exported.architecture in READS_TYPES else 2]
    assert graph_inputs(exported.onnx) == expected


def test_it_is_one_file_without_traces_of_this_machine(exported: Exported) -> None:
    assert not list(exported.folder.glob("*.data"))
    content = exported.onnx.read_bytes()
    for trace in (b"site-packages", str(Path(onnx_graph.__file__).parent).encode(), str(exported.folder).encode()):
        assert trace not in content


def test_nothing_is_left_beside_it(exported: Exported) -> None:
    assert not [path for path in exported.folder.iterdir() if path.is_dir()]


@pytest.mark.parametrize("pair", [False, True])
def test_the_engine_gives_the_models_answer_from_text(exported: Exported, pair: bool) -> None:
    tokenizer = tiny_models.build_tokenizer(exported.pad_id, typed=exported.architecture in TYPED)
    generator = np.random.default_rng(1)
    texts = [" ".join(generator.choice(tiny_models.WORDS, size=size)) for size in (1, 4, 9, 60, 3)]
    rows = list(zip(texts, reversed(texts), strict=True)) if pair else texts
    task = TaskInfo(name="t", kind="classification", labels=("a", "b", "c"), text_pair="second" if pair else None)
    info = TokenizerInfo(
        max_length=tiny_models.MAX_LENGTH,
        pad_id=exported.pad_id,
        pad_token="[PAD]",
        token_type_ids=exported.architecture in READS_TYPES,
    )
    engine = Engine.from_files(
        exported.onnx, exported.folder / "tokenizer.json", task=task, tokenizer_info=info, threads=1
    )
    columns = zip(*rows, strict=True) if pair else [rows]
    feeds = tokenizer(
        *map(list, columns),
        padding=True,
        truncation="longest_first",
        max_length=tiny_models.MAX_LENGTH,
        return_tensors="np",
    )
    expected = softmax(exported.reference({name: value.astype(np.int64) for name, value in feeds.items()}))
    np.testing.assert_allclose(engine.predict(rows), expected, atol=1e-4)


def test_fp16_is_as_near_as_torch_in_half_precision(exported: Exported, tmp_path: Path) -> None:
    to_fp16(exported.onnx, tmp_path / "half.onnx")
    run = onnx_logits(tmp_path / "half.onnx", threads=1)
    difference, torch_difference = 0.0, 0.0
    expected = [softmax(exported.reference(feeds)) for feeds in batches(exported)]
    exported.model.half()
    try:
        halves = [softmax(exported.reference(feeds).astype(np.float32)) for feeds in batches(exported)]
    finally:
        exported.model.float()
        exported.model.load_state_dict(torch_state(exported))
    for feeds, right, half in zip(batches(exported), expected, halves, strict=True):
        logits = run(feeds)
        assert logits.dtype == np.float32
        difference = max(difference, float(np.abs(softmax(logits) - right).max()))
        torch_difference = max(torch_difference, float(np.abs(half - right).max()))
    assert difference <= max(2 * torch_difference, 5e-3)


def torch_state(case: Exported) -> dict[str, torch.Tensor]:
    """The weights before `half` rounded them."""
    from safetensors.torch import load_file

    return load_file(case.folder / "model.safetensors")


def test_fp16_holds_half_the_bytes(exported: Exported, tmp_path: Path) -> None:
    to_fp16(exported.onnx, tmp_path / "half.onnx")
    weights = dict.fromkeys((TensorProto.FLOAT, TensorProto.FLOAT16), 0)
    for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer:
        if tensor.data_type in weights:
            weights[tensor.data_type] += int(np.prod(tensor.dims))
    assert weights[TensorProto.FLOAT16] > 20 * weights[TensorProto.FLOAT]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_models.build("bert", folder)
    return folder


@pytest.mark.slow
def test_a_model_trained_without_token_types_ignores_them(saved: Path, tmp_path: Path) -> None:
    assert export_onnx(saved, tmp_path / "model.onnx", token_type_ids=False) == "torch"
    assert graph_inputs(tmp_path / "model.onnx") == ("input_ids", "attention_mask")
    feeds = next(parity_batches(token_rows(False), pad_id=0, max_length=20))
    np.testing.assert_allclose(onnx_logits(tmp_path / "model.onnx")(feeds), torch_logits(saved)(feeds), atol=1e-4)


def test_auto_takes_torch_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_exporter("auto") == "torch"
    monkeypatch.setattr(onnx_graph, "_is_installed", lambda module: module != "onnxscript")
    monkeypatch.setattr("kdc.pipeline.graphs.onnx_graph.transformers.__version__", "4.57.6")
    assert choose_exporter("auto") == "optimum"


def test_optimum_beside_transformers_5_is_refused_before_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "_is_installed", lambda module: True)
    monkeypatch.setattr("kdc.pipeline.graphs.onnx_graph.transformers.__version__", "5.24.0")
    with pytest.raises(InputError, match="needs transformers 4"):
        choose_exporter("optimum")


def test_an_exporter_that_is_not_installed_is_wrong_input(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "_is_installed", lambda module: False)
    for exporter in ("auto", "optimum", "torch"):
        with pytest.raises(InputError, match="not installed"):
            export_onnx(saved, tmp_path / "model.onnx", exporter=exporter)


def test_a_failing_exporter_is_named_with_the_other_one(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("unsupported operator")

    monkeypatch.setattr(onnx_graph, "_export_with_optimum", fail)
    monkeypatch.setattr(onnx_graph, "_export_with_torch", fail)
    with pytest.raises(KdcError, match="unsupported operator"):
        export_onnx(saved, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_parity_batches_cover_sizes_lengths_and_padding() -> None:
    feeds_of_all = list(parity_batches(token_rows(True), pad_id=7, max_length=33))
    assert {feeds["input_ids"].shape[0] for feeds in feeds_of_all} == {1, 2, 7, 32}
    lengths = {int(length) for feeds in feeds_of_all for length in feeds["attention_mask"].sum(axis=1)}
    assert (min(lengths), max(lengths)) == (3, 33)
    padded = [feeds for feeds in feeds_of_all if (feeds["attention_mask"] == 0).any()]
    assert padded
    for feeds in padded:
        assert (feeds["input_ids"][feeds["attention_mask"] == 0] == 7).all()


def constant(value: float) -> NDArray[np.float32]:
    return np.full((2, 3), value, dtype=np.float32)


FEEDS = [{"input_ids": np.ones((2, 4), np.int64)}]


@pytest.mark.parametrize(("reference", "actual"), [(0.5, 0.5002), (20.0, 20.003), (0.5, float("nan"))])
def test_a_difference_above_the_tolerance_is_an_error(reference: float, actual: float) -> None:
    with pytest.raises(KdcError, match="outputs differ"):
        check_parity(lambda _: constant(actual), lambda _: constant(reference), FEEDS)


@pytest.mark.parametrize(("reference", "actual"), [(0.5, 0.50005), (20.0, 20.001)])
def test_a_difference_within_the_tolerance_is_returned(reference: float, actual: float) -> None:
    difference = check_parity(lambda _: constant(actual), lambda _: constant(reference), FEEDS)
    assert difference == pytest.approx(actual - reference, rel=0.05)


def test_parity_on_nothing_or_on_another_shape_is_an_error() -> None:
    with pytest.raises(KdcError, match="no batch"):
        check_parity(lambda _: constant(0), lambda _: constant(0), [])
    with pytest.raises(KdcError, match="another shape"):
        check_parity(lambda _: constant(0)[:1], lambda _: constant(0), FEEDS)


@pytest.mark.parametrize(
    ("shape", "name", "element", "problem"),
    [
        ([2, "sequence"], "input_ids", TensorProto.INT64, "axis 0 of input_ids is not dynamic"),
        (["batch", 16], "input_ids", TensorProto.INT64, "axis 1 of input_ids is not dynamic"),
        (["batch", "sequence"], "input_ids", TensorProto.INT32, "input_ids is INT32"),
        (["batch", "sequence"], "pixels", TensorProto.INT64, "unknown input pixels"),
    ],
)
def test_a_graph_of_another_form_is_refused(
    tmp_path: Path, shape: list[int | str], name: str, element: int, problem: str
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["weight"], ["logits"])],
        "bad",
        [helper.make_tensor_value_info(name, element, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.zeros((1, 3), np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "bad.onnx")
    with pytest.raises(KdcError, match=problem):
        check_axes(tmp_path / "bad.onnx")
