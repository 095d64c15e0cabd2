"""The temperature in the last layer: a stock softmax is calibrated, and what cannot be folded stays as it was."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import onnxruntime
import pytest
import tiny_models
import torch
from conftest import Finished
from numpy.typing import NDArray
from transformers import AutoTokenizer

import kdc
from kdc.artifact.folder import load_manifest
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.data.prepared import open_data, texts_of
from kdc.pipeline.models.loading import load_tokenizer
from kdc.pipeline.quality.calibration import calibrate, reliability
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.predict import predict
from kdc.pipeline.training.students import load_student
from kdc.pipeline.training.temperature import fold_temperature

COUNT = 600
TEXTS = [("w1 w5", "w7 w8 w9"), ("w2", "w3"), ("w1 " * 90, "w4 w5 " * 70)]  # the last one is cut


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def sharper(model: Any, kind: Any, pad_id: int, *, windows: bool) -> Any:
    """Data on which a model is a third as sure as it should be: labels drawn from three times its logits.

    The rows that are compared once more have one window.
    """
    random, outputs = np.random.default_rng(0), model.config.num_labels
    counts = np.where(np.arange(COUNT) < 64, 1, random.integers(1, 4, COUNT)) if windows else np.ones(COUNT, np.int64)
    parts = [random.integers(3, 9, size=count).tolist() for count in counts]
    columns: dict[str, Any] = {"row": list(range(COUNT)), "length": [sum(part) for part in parts]}
    columns["input_ids"] = [random.integers(5, 90, size=sum(part)).tolist() for part in parts]
    columns |= {"windows": parts} if windows else {}
    labels = [[0] * outputs] * COUNT if kind == "multilabel" else [0] * COUNT
    logits = predict(model, Rows([datasets.Dataset.from_dict(columns | {"label": labels})]), pad_id=pad_id)
    if kind == "multilabel":
        labels = (random.random(logits.shape) < sigmoid(3 * logits)).astype(int).tolist()
    else:
        labels = [int(random.choice(outputs, p=row)) for row in softmax(3 * logits)]
    rows = datasets.Dataset.from_dict(columns | {"label": labels})
    task = custom_task("toy", "text", None, "label", kind, tuple("abcdefghijklmnop"[:outputs]))
    return SimpleNamespace(
        task=task, tokens=lambda role, split: rows, rows=lambda split: rows, groups=lambda split: np.arange(COUNT)
    )


def folded(model: Any, kind: Any, *, windows: bool = False) -> tuple[float | None, NDArray[Any], NDArray[Any]]:
    """The temperature, and logits before and after."""
    model.config.problem_type = custom_task("", "", None, "", kind, ("a", "b", "c")).traits.problem_type
    pad_id = model.config.pad_token_id
    data = sharper(model, kind, pad_id, windows=windows)
    rows = Rows([data.tokens("student", "tune")])
    before = predict(model, rows, pad_id=pad_id)
    temperature = fold_temperature(model, data, "student", pad_id=pad_id, device="cpu")
    return temperature, before, predict(model, rows, pad_id=pad_id)


@pytest.mark.parametrize("architecture", [*tiny_models.ARCHITECTURES, *tiny_models.GATED])
def test_the_last_layer_is_divided_by_the_temperature(architecture: str, tmp_path: Path) -> None:
    """There are as many labels as the layers are wide. Would catch another layer, and a bias that is left as it was."""
    model, _ = tiny_models.build(architecture, tmp_path, outputs=16)
    head = [part for part in model.modules() if isinstance(part, torch.nn.Linear)][-1]
    torch.nn.init.normal_(head.bias)
    temperature, before, after = folded(model, "classification")
    assert temperature == pytest.approx(1 / 3, rel=0.15)
    np.testing.assert_allclose(after * temperature, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "join"),
    [
        ("classification", ["mean"]),
        ("classification", ["first"]),
        ("multilabel", ["max"]),
        ("multilabel", ["mean", "max", "first"]),
    ],
)
def test_rows_in_windows_are_calibrated_where_dividing_windows_divides_the_row(
    kind: Any, join: list[str], tmp_path: Path
) -> None:
    model, _ = tiny_models.build("bert", tmp_path)
    model.config.kdc_join = join
    temperature, before, after = folded(model, kind, windows=True)
    assert temperature == pytest.approx(1 / 3, rel=0.15)
    likely = sigmoid if kind == "multilabel" else softmax
    np.testing.assert_allclose(likely(after), likely(before / temperature), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "join"), [("classification", "noisy-or"), ("classification", "max"), ("multilabel", "noisy-or")]
)
def test_windows_that_do_not_divide_keep_their_logits(kind: Any, join: str, tmp_path: Path) -> None:
    """Would catch probabilities that no temperature of the windows gives."""
    model, _ = tiny_models.build("bert", tmp_path)
    model.config.kdc_join = [join]
    temperature, before, after = folded(model, kind, windows=True)
    assert temperature is None
    np.testing.assert_array_equal(after, before)


def test_a_head_that_ends_in_no_linear_layer_keeps_its_logits(tmp_path: Path) -> None:
    """Would catch a temperature that is folded before a function that it does not pass through."""
    model, _ = tiny_models.build("bert", tmp_path)
    model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Tanh())
    temperature, before, after = folded(model, "classification")
    assert temperature is None
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("variant", ["fp32", "int8", "fp16"])
def test_a_stock_softmax_gives_the_probabilities_of_kdc(finished: Finished, variant: Any) -> None:
    """By ONNX Runtime and transformers' tokenizer. Would catch a variant that is made of the unfolded head."""
    manifest = json.loads((finished.artifact / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["temperature"] == 1
    assert manifest["folded_temperature"] not in (None, 1)
    tokenizer = AutoTokenizer.from_pretrained(finished.artifact)
    feeds = tokenizer([list(row) for row in TEXTS], truncation=True, padding=True, return_tensors="np")
    file = finished.artifact / manifest["variants"][variant]["file"]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {name: feeds[name].astype(np.int64) for name in manifest["input_names"]})
    with kdc.load(finished.artifact, device="cpu", variant=variant, threads=1) as engine:
        np.testing.assert_allclose(softmax(logits), engine.predict(TEXTS), atol=1e-5)


def test_the_folded_temperature_is_that_of_the_trained_student(finished: Finished) -> None:
    """The trained student is not folded. Would catch a temperature that is fitted to other logits, or folded twice."""
    run = finished.folder / "run"
    manifest, data = load_manifest(finished.artifact), open_data(run / "data")
    rows, pad_id = data.rows("tune"), load_tokenizer(str(run / "student" / "base")).pad_token_id
    trained = predict(load_student(run / "student"), Rows([data.tokens("student", "tune")]), pad_id=pad_id)
    labels = np.asarray(rows["label"][:])
    temperature = calibrate(trained, labels, "classification", groups=data.groups("tune"))
    assert manifest.folded_temperature == pytest.approx(temperature, abs=2e-4)
    wanted = reliability(softmax(trained / temperature).astype(np.float32), labels, "classification").ece
    with kdc.load(finished.artifact, device="cpu", variant="fp32", threads=1) as engine:
        answers = engine.predict(texts_of(rows))
    assert reliability(answers, labels, "classification").ece == pytest.approx(wanted, abs=1e-4)
