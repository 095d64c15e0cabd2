"""The models that are compared: which there are, what each is made of, and which of them are timed. Models are
stand-ins."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdc.common.errors import KdcError
from kdc.pipeline.evaluation import entries
from kdc.pipeline.evaluation.entries import Entry
from kdc.pipeline.results.artifact import QuantizeResult, UncutResult
from kdc.pipeline.results.training import (
    BaselinesResult,
    ControlsResult,
    StudentResult,
    TargetsResult,
    TeacherResult,
)


def run_of(root: Path, results: dict[type, Any], **fields: Any) -> Any:
    """A run of which entries are made."""
    config = {"run": SimpleNamespace(device="auto", controls=False), "long": None} | fields.pop("config", {})
    return SimpleNamespace(
        data=lambda: SimpleNamespace(task=SimpleNamespace(metrics=("macro_f1", "accuracy"), info=lambda: None)),
        folder=lambda stage: root / stage,
        result=results.__getitem__,
        result_or_none=results.get,
        config=SimpleNamespace(**config),
        max_length=None,
        **({"device": "cpu", "student_role": "fewer"} | fields),
    )


def answering(*logits: float) -> Entry:
    """A model that gives every row these logits."""
    rows = np.array([logits], dtype=np.float32)
    return Entry(lambda split: rows, {"runtime": "torch cpu", "parameters": 1, "size_bytes": 10}, lambda texts: rows)


def test_the_table_has_torch_models_then_graphs_then_cascades_then_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a kind of model that is left out, and a baseline's answers under another name or split."""
    graph = answering(0.0)
    monkeypatch.setattr(entries, "_torch_entries", lambda run: {"teacher": answering(1.0)})
    monkeypatch.setattr(entries, "_onnx_entries", lambda run, notes: notes.append("a graph") or {"fp32": graph})
    cascade = lambda run, onnx, notes: {"cascade": onnx["fp32"]}  # noqa: E731
    monkeypatch.setattr(entries, "_cascade_entries", cascade)
    notes: list[str] = []
    assert list(entries.entries_of(run_of(tmp_path, {}), notes)) == ["teacher", "fp32", "cascade"]
    assert notes == ["a graph"]
    (tmp_path / "baselines").mkdir()
    kept = {f"{split}/{name}": np.full((1, 2), split + name) for split in ("eval", "tune") for name in ("tfidf", "svm")}
    np.savez(tmp_path / "baselines" / "logits.npz", **kept)
    results = {BaselinesResult: SimpleNamespace(tune={"tfidf": {}, "svm": {}})}
    found = entries.entries_of(run_of(tmp_path, results), [])
    assert list(found) == ["teacher", "fp32", "cascade", "tfidf", "svm"]
    assert found["svm"].predict("eval").tolist() == [["evalsvm", "evalsvm"]]
    assert found["tfidf"].predict("tune").tolist() == [["tunetfidf", "tunetfidf"]]
    assert found["svm"].answer is None


@pytest.mark.parametrize("teachers", [1, 2])
def test_several_teachers_weigh_as_their_scores_by_the_deciding_metric(
    teachers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch weights by another metric, and one teacher that is not taken as it is."""
    made = {"model": answering(4.0, 0.0), "model-2": answering(0.0, 8.0)}
    monkeypatch.setattr(entries, "_torch_entry", lambda data, folder, role, **_: made.get(folder.name, answering(0.0)))
    monkeypatch.setattr(entries, "load_student", lambda folder: None)
    tuned = [{"macro_f1": 75.0, "accuracy": 10.0}, {"macro_f1": 25.0, "accuracy": 90.0}]
    results = {
        TeacherResult: SimpleNamespace(scores=lambda metric: [each[metric] for each in tuned[:teachers]]),
        TargetsResult: SimpleNamespace(temperatures=(1.0, 2.0) if teachers > 1 else None),
    }
    settings = {
        "teacher": SimpleNamespace(scores=None, sources=["one", "two"][:teachers]),
        "targets": SimpleNamespace(weights="score"),
    }
    teacher = entries._torch_entries(run_of(tmp_path, results, config=settings))["teacher"]
    if teachers == 1:
        assert teacher is made["model"]
        return
    assert teacher.answer is not None
    for logits in (teacher.predict("eval"), teacher.answer(["a text"])):
        assert logits.tolist() == [[3.0, 1.0]]  # three quarters of 4, and a quarter of 8 divided by two
    assert teacher.row == {"runtime": "torch cpu", "parameters": 2, "size_bytes": 20}


def test_controls_take_the_tokens_of_the_model_that_they_stand_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = {}

    def torch_entry(data: Any, folder: Path, role: str, **_: Any) -> Entry:
        roles[folder.relative_to(tmp_path).as_posix()] = role
        return answering(0.0)

    monkeypatch.setattr(entries, "_torch_entry", torch_entry)
    monkeypatch.setattr(entries, "load_student", lambda folder: None)
    names = {"student_without_kd": {}, "teacher_lora": {}}
    results = {
        TeacherResult: SimpleNamespace(scores=lambda metric: [90.0]),
        TargetsResult: SimpleNamespace(temperatures=None),
        ControlsResult: SimpleNamespace(to_json=lambda: names),
    }
    settings = {
        "run": SimpleNamespace(controls=True),
        "teacher": SimpleNamespace(scores=None, sources=["one"]),
        "targets": SimpleNamespace(weights="score"),
    }
    found = entries._torch_entries(run_of(tmp_path, results, config=settings))
    assert list(found) == ["teacher", "student", "merged", *names]
    assert roles == {
        "teacher/model": "teacher",
        "student/base": "fewer",
        "merge/model": "fewer",
        "controls/student_without_kd": "fewer",
        "controls/teacher_lora": "teacher",
    }
    assert found["student"].answer is None
    assert found["merged"].answer is not None


@pytest.fixture
def graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory with the ONNX files of a student and its teacher, whose entries are the arguments."""
    for file in (
        *(f"export/{name}.onnx" for name in ("model", "model.fp16")),
        *(f"uncut/{name}.onnx" for name in ("model", "model.int8")),
        "quantize/model.int8.onnx",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()

    def onnx_entry(files: Path, data: Any, *, device: str = "cpu", parameters: Any = None, **_: Any) -> Entry:
        row = {"file": files.relative_to(tmp_path).as_posix(), "device": device, "parameters": parameters}
        return Entry(lambda split: np.zeros(0), row, lambda texts: np.zeros(0), memory=row)  # type: ignore[arg-type]

    monkeypatch.setattr(entries, "_onnx_entry", onnx_entry)
    monkeypatch.setattr(entries, "_files_of", lambda graph, exported, task: graph)
    return tmp_path


RESULTS = {StudentResult: SimpleNamespace(parameters=1), TeacherResult: SimpleNamespace(parameters=2)}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu_all_graphs_but_those_of_8_bits_are_measured_there_too(graphs: Path, device: str) -> None:
    notes: list[str] = []
    results = RESULTS | {UncutResult: SimpleNamespace(note="a word on the teacher")}
    found = entries._onnx_entries(run_of(graphs, results, device=device), notes)
    expected = {
        "teacher_fp32": ("uncut/model.onnx", 2),
        "teacher_int8": ("uncut/model.int8.onnx", 2),
        "fp32": ("export/model.onnx", 1),
        "int8": ("quantize/model.int8.onnx", 1),
        "fp16": ("export/model.fp16.onnx", 1),
    }
    names = [name for name in expected for _ in range(1 if "int8" in name or device == "cpu" else 2)]
    assert [name.removesuffix(" (cuda)") for name in found] == names
    for name, entry in found.items():
        file, parameters = expected[name.removesuffix(" (cuda)")]
        on = "cuda" if name.endswith(" (cuda)") else "cpu"
        assert entry.row == {"file": file, "device": on, "parameters": parameters}
    assert notes == ["a word on the teacher"]


def test_a_teachers_graph_of_an_earlier_start_is_no_entry(graphs: Path) -> None:
    notes: list[str] = []
    assert list(entries._onnx_entries(run_of(graphs, RESULTS), notes)) == ["fp32", "int8", "fp16"]
    assert notes == []


def test_the_cascade_for_a_gpu_is_timed_there_alone(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the times of a cascade on the processor that it is not for, and a second model that is measured twice
    or under another name."""
    pairs = {"cascade": SimpleNamespace(second="int8"), "cascade_fp32": SimpleNamespace(second="fp32")}
    second = SimpleNamespace(
        entry="second",
        folder=graphs / "uncut",
        files={"int8": graphs / "uncut" / "model.int8.onnx", "fp32": graphs / "uncut" / "model.onnx"},
    )
    variants = SimpleNamespace(second=second, pairs=pairs, task=None, files=lambda name: graphs / name)
    monkeypatch.setattr(entries, "variants_of", lambda run: variants)
    run = run_of(graphs, {QuantizeResult: SimpleNamespace(temperature=1.5)}, device="cuda")
    found = entries._cascade_entries(run, {"second_fp32": answering(0.0)}, [])
    assert list(found) == ["second_int8", "cascade", "cascade_fp32", "cascade_fp32 (cuda)"]
    assert found["second_int8"].row["file"] == "uncut/model.int8.onnx"
    timed = {name for name, entry in found.items() if entry.answer is not None and entry.memory is not None}
    assert timed == {"second_int8", "cascade", "cascade_fp32 (cuda)"}
    assert found["cascade_fp32 (cuda)"].row["device"] == "cuda"


def test_what_does_not_start_on_a_gpu_ends_the_run_only_if_it_was_asked_for() -> None:
    def fails(**_: Any) -> Entry:
        raise KdcError("no kernel", given="this card")

    notes: list[str] = []
    assert entries._cuda_entry("fp16", fails, notes, is_asked=False) == {}
    assert notes == ["fp16 was not measured on CUDA: no kernel (this card)"]
    with pytest.raises(KdcError, match="no kernel"):
        entries._cuda_entry("fp16", fails, notes, is_asked=True)
