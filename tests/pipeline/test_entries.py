"""The models that are compared: what each is made from, and which are timed. The models are stand-ins."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import tiny_models

from kdc.artifact.manifest import TaskInfo, TokenizerInfo
from kdc.common.errors import KdcError
from kdc.pipeline.config.data_settings import LongSettings
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.evaluation import entries
from kdc.pipeline.evaluation.entries import Entry
from kdc.pipeline.models import loading
from kdc.pipeline.results.artifact import QuantizeResult, UncutResult
from kdc.pipeline.results.training import (
    BaselinesResult,
    ControlsResult,
    StudentResult,
    TargetsResult,
    TeacherResult,
)

Results = dict[Any, Any]  # what a stage handed on, by its kind


def run_of(root: Path, results: Results, **fields: Any) -> Any:
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
    kept: dict[str, Any] = {
        f"{split}/{name}": np.full((1, 2), split + name) for split in ("eval", "tune") for name in ("tfidf", "svm")
    }
    np.savez(tmp_path / "baselines" / "logits.npz", **kept)
    results: Results = {BaselinesResult: SimpleNamespace(tune={"tfidf": {}, "svm": {}})}
    found = entries.entries_of(run_of(tmp_path, results), [])
    assert list(found) == ["teacher", "fp32", "cascade", "tfidf", "svm"]
    assert found["svm"].predict("eval").tolist() == [["evalsvm", "evalsvm"]]
    assert found["tfidf"].predict("tune").tolist() == [["tunetfidf", "tunetfidf"]]
    assert found["svm"].answer is None


@pytest.mark.parametrize(("teachers", "temperatures"), [(1, None), (2, (1.0, 2.0)), (2, None)])
def test_several_teachers_weigh_as_their_scores_by_the_deciding_metric(
    teachers: int, temperatures: tuple[float, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch weights by another metric, and one teacher that is not taken as it is."""
    made = {"model": answering(4.0, 0.0), "model-2": answering(0.0, 8.0)}
    monkeypatch.setattr(entries, "_torch_entry", lambda data, folder, role, **_: made.get(folder.name, answering(0.0)))
    monkeypatch.setattr(entries, "load_student", lambda folder: None)
    tuned = [{"macro_f1": 75.0, "accuracy": 10.0}, {"macro_f1": 25.0, "accuracy": 90.0}]
    results: Results = {
        TeacherResult: SimpleNamespace(scores=lambda metric: [each[metric] for each in tuned[:teachers]]),
        TargetsResult: SimpleNamespace(temperatures=temperatures),
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
        # Three quarters of 4, and a quarter of 8, or of 8 divided by its temperature.
        assert logits.tolist() == [[3.0, 2.0 if temperatures is None else 1.0]]
    assert teacher.row == {"runtime": "torch cpu", "parameters": 2, "size_bytes": 20}


def test_a_black_box_answers_with_the_scores_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch scores in the order of the split in place of the order of the rows' numbers."""
    monkeypatch.setattr(entries, "_torch_entry", lambda *_, **__: answering(0.0))
    monkeypatch.setattr(entries, "load_student", lambda folder: None)
    (tmp_path / "teacher").mkdir()
    np.save(tmp_path / "teacher" / "scores.npy", np.arange(10.0).reshape(5, 2))
    run = run_of(tmp_path, {}, config={"teacher": SimpleNamespace(scores=Path("scores.csv"))})
    rows, task = {"eval": {"row": [4, 1]}}, run.data().task
    run.data = lambda: SimpleNamespace(task=task, rows=rows.__getitem__)
    teacher = entries._torch_entries(run)["teacher"]
    assert teacher.predict("eval").tolist() == [[8.0, 9.0], [2.0, 3.0]]
    assert (teacher.answer, teacher.memory, teacher.row) == (None, None, {"runtime": "a black box"})


def test_a_torch_model_answers_and_has_the_size_of_the_weights_that_would_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student with adapters has the size of its merged weights. Would catch memory that is measured although adapters
    are separate or the model is on a GPU, and texts that are tokenised unlike rows."""
    folder, others = tmp_path / "model", tmp_path / "merged"
    model, _ = tiny_models.build("bert", folder)
    others.mkdir()
    (others / "model.safetensors").write_bytes(b"0" * 1000)
    tokenizer = loading.load_tokenizer(str(folder))
    tokens = datasets.Dataset.from_list([{**tokenizer("w1 w2", "w3"), "length": 6}])
    task = custom_task("mood", "text", None, "label", "classification", ("bad", "so so", "good"))
    data: Any = SimpleNamespace(task=task, tokens=lambda role, split: {("fewer", "eval"): tokens}[role, split])
    given: Any = {"max_length": lambda role: {"fewer": 16}[role], "long": LongSettings()}
    monkeypatch.setattr(type(model), "to", lambda self, device: self)
    plain = entries._torch_entry(data, folder, "fewer", device="cpu", **given)
    adapted = entries._torch_entry(data, folder, "fewer", device="cpu", model=model, weights=others, **given)
    on_gpu = entries._torch_entry(data, folder, "fewer", device="cuda", **given)
    size = (folder / "tokenizer.json").stat().st_size
    for entry, weights in ((plain, folder / "model.safetensors"), (adapted, others / "model.safetensors")):
        assert entry.row == {
            "runtime": "torch cpu",
            "parameters": sum(each.numel() for each in model.parameters()),
            "size_bytes": size + weights.stat().st_size,
        }
        assert entry.answer is not None
        expected = model(**tokenizer("w1 w2", "w3", return_tensors="pt")).logits.detach().numpy()
        np.testing.assert_allclose(entry.predict("eval"), expected, atol=1e-5)
        np.testing.assert_allclose(entry.answer([("w1 w2", "w3")]), expected, atol=1e-5)
    assert plain.memory is not None
    assert (plain.memory.model, plain.memory.tokenizer.max_length) == (folder, 16)
    assert adapted.memory is on_gpu.memory is None


def test_a_graph_has_the_tokenizer_of_the_folder_that_it_was_exported_into(tmp_path: Path) -> None:
    info = TokenizerInfo(max_length=48, pad_id=0, pad_token="[PAD]", token_type_ids=True)
    (tmp_path / "tokenizer_info.json").write_text(info.model_dump_json(), encoding="utf-8")
    task = TaskInfo(name="mood", kind="classification", labels=("bad", "good"))
    files = entries._files_of(tmp_path / "quantize" / "model.onnx", tmp_path, task)
    assert (files.model, files.tokenizer_json) == (
        tmp_path / "quantize" / "model.onnx",
        tmp_path / "tokenizer.json",
    )
    assert (files.tokenizer, files.task) == (info, task)


@pytest.mark.parametrize("file", ["model.onnx", "model.fp16.onnx", "model.int8.onnx"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_graph_in_16_bits_is_timed_on_a_gpu_alone(file: str, device: Any, tmp_path: Path) -> None:
    """And its size is of all its files."""
    for name, size in ((file, 100), ("tokenizer.json", 20), ("second.onnx", 3)):
        (tmp_path / name).write_bytes(b"0" * size)
    engine = SimpleNamespace(logits=lambda texts: np.full((len(texts), 1), 7.0))
    files: Any = SimpleNamespace(
        engine=lambda **how: engine if how == {"temperature": 1.5, "device": device} else None,
        model=tmp_path / file,
        tokenizer_json=tmp_path / "tokenizer.json",
        second=None,
    )
    entry = entries._onnx_entry(files, SimpleNamespace(), temperature=1.5, device=device)  # type: ignore[arg-type]
    is_timed = device == "cuda" or file != "model.fp16.onnx"
    assert (entry.answer is not None) is is_timed
    assert (entry.memory is not None) is (is_timed and device == "cpu")
    assert entry.row == {"runtime": f"onnxruntime {device}", "parameters": None, "size_bytes": 120}
    files.second = None, tmp_path / "second.onnx"
    of_two = entries._onnx_entry(files, SimpleNamespace(), temperature=1.5, device=device)  # type: ignore[arg-type]
    assert of_two.row["size_bytes"] == 123


def test_controls_take_the_tokens_of_the_model_that_they_stand_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = {}

    def torch_entry(data: Any, folder: Path, role: str, **_: Any) -> Entry:
        roles[folder.relative_to(tmp_path).as_posix()] = role
        return answering(0.0)

    monkeypatch.setattr(entries, "_torch_entry", torch_entry)
    monkeypatch.setattr(entries, "load_student", lambda folder: None)
    names: dict[str, Any] = {"student_without_kd": {}, "teacher_lora": {}}
    results: Results = {
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
        nothing = np.zeros(0, dtype=np.float32)
        return Entry(lambda split: nothing, row, lambda texts: nothing, memory=row)  # type: ignore[arg-type]

    monkeypatch.setattr(entries, "_onnx_entry", onnx_entry)
    monkeypatch.setattr(entries, "_files_of", lambda graph, exported, task: graph)
    return tmp_path


RESULTS: Results = {StudentResult: SimpleNamespace(parameters=1), TeacherResult: SimpleNamespace(parameters=2)}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu_all_graphs_but_those_of_8_bits_are_measured_there_too(graphs: Path, device: str) -> None:
    notes: list[str] = []
    results: Results = RESULTS | {UncutResult: SimpleNamespace(note="a word on the teacher")}
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


@pytest.mark.parametrize("asked", ["auto", "cpu", "cuda"])
def test_models_that_do_not_start_on_a_gpu_end_a_run_that_asked_for_one(
    graphs: Path, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def onnx_entry(files: Path, data: Any, *, device: str = "cpu", **_: Any) -> Entry:
        if device == "cuda":
            raise KdcError("no kernel", given="this card")
        return answering(0.0)

    monkeypatch.setattr(entries, "_onnx_entry", onnx_entry)
    second = SimpleNamespace(entry="second", folder=graphs, files={})
    pairs = {"cascade_fp32": SimpleNamespace(second="fp32")}
    variants = SimpleNamespace(second=second, pairs=pairs, task=None, files=lambda name: graphs / name)
    monkeypatch.setattr(entries, "variants_of", lambda run: variants)
    results: Results = RESULTS | {QuantizeResult: SimpleNamespace(temperature=1.5)}
    run = run_of(graphs, results, device="cuda", config={"run": SimpleNamespace(device=asked)})
    for make in (
        entries._onnx_entries,
        lambda run, notes: entries._cascade_entries(run, {"second_fp32": answering(0.0)}, notes),
    ):
        notes: list[str] = []
        if asked == "cuda":
            with pytest.raises(KdcError, match="no kernel"):
                make(run, notes)
        else:
            assert not [name for name in make(run, notes) if "cuda" in name]
            assert "was not measured on CUDA: no kernel (this card)" in notes[-1]


def test_what_does_not_start_on_a_gpu_ends_the_run_only_if_it_was_asked_for() -> None:
    def fails(**_: Any) -> Entry:
        raise KdcError("no kernel", given="this card")

    notes: list[str] = []
    assert entries._cuda_entry("fp16", fails, notes, is_asked=False) == {}
    assert notes == ["fp16 was not measured on CUDA: no kernel (this card)"]
    with pytest.raises(KdcError, match="no kernel"):
        entries._cuda_entry("fp16", fails, notes, is_asked=True)
