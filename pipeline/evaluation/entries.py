"""The models that stage `evaluate` compares. ONNX variants run in the serving engine."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import Device, Scalar, TaskInfo
from kdc.common.errors import KdcError
from kdc.pipeline.config.data_settings import LongSettings
from kdc.pipeline.data.prepared import PreparedData, texts_of
from kdc.pipeline.data.tokens import tokenizer_info
from kdc.pipeline.evaluation.variants import CASCADE_FP32, variants_of
from kdc.pipeline.graphs.files import FP16_ONNX, FP32_ONNX, INT8_ONNX, TOKENIZER_JSON, read_tokenizer_info
from kdc.pipeline.models import loading
from kdc.pipeline.models.opening import as_served
from kdc.pipeline.quality.peak_memory import ModelFiles
from kdc.pipeline.results.artifact import QuantizeResult, UncutResult
from kdc.pipeline.results.training import BaselinesResult, ControlsResult, StudentResult, TargetsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import BASELINE_LOGITS, CONTROLS, SCORES
from kdc.pipeline.training import ensemble
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.joining import join_of
from kdc.pipeline.training.predict import answer_texts, predict
from kdc.pipeline.training.students import load_student
from kdc.serving.engine.tokenizing import RowTokenizer, Text

Answer = Callable[[list[Text]], NDArray[np.float32]]
Logits = dict[str, NDArray[np.float32]]  # (rows, outputs) by split or model


@dataclass
class Entry:
    predict: Callable[[str], NDArray[np.float32]]  # a split's name to its logits
    row: dict[str, Scalar]  # first columns of the table
    answer: Answer | None = None  # with tokenising; None: not timed
    memory: ModelFiles | None = None  # None: not measured
    logits: Logits = field(default_factory=dict)


def entries_of(run: Run, notes: list[str]) -> dict[str, Entry]:
    """In the table's order. `notes` gets what is missing."""
    onnx = _onnx_entries(run, notes)
    baselines = run.result_or_none(BaselinesResult)
    return (
        _torch_entries(run)
        | onnx
        | _cascade_entries(run, onnx, notes)
        | ({} if baselines is None else _baseline_entries(run.folder("baselines") / BASELINE_LOGITS, baselines.tune))
    )


def _torch_entries(run: Run) -> dict[str, Entry]:
    data, merged, student, role = run.data(), run.folder("merge") / "model", run.folder("student"), run.student_role
    torch_entry = partial(_torch_entry, data, device=run.device, max_length=run.max_length, long=run.config.long)
    teacher, folder = run.config.teacher, run.folder("teacher")
    if teacher.scores is not None:
        scores = np.load(folder / SCORES)  # (rows, outputs) by row id
        of_teacher = Entry(lambda split: scores[np.asarray(data.rows(split)["row"][:])], {"runtime": "a black box"})
    else:
        numbers = range(len(teacher.sources))
        teachers = [torch_entry(folder / ensemble.folder(number), ensemble.role(number)) for number in numbers]
        tuned = run.result(TeacherResult).scores(data.task.metrics[0])
        shares = ensemble.weights(tuned, run.config.targets.weights)
        temperatures = run.result(TargetsResult).temperatures
        of_teacher = teachers[0] if len(teachers) == 1 else _as_one(teachers, shares, temperatures)
    entries = {
        "teacher": of_teacher,
        "student": torch_entry(student / "base", role, model=load_student(student), weights=merged),
        "merged": torch_entry(merged, role),
    }
    entries["student"].answer = None  # not timed: the merged model serves
    if run.config.run.controls:
        made = run.result(ControlsResult).to_json()
        for name, whose in CONTROLS.items():
            if name in made:
                entries[name] = torch_entry(run.folder("controls") / name, role if whose == "student" else whose)
    return entries


def _as_one(teachers: Sequence[Entry], shares: NDArray[np.float64], temperatures: Sequence[float] | None) -> Entry:
    average = partial(ensemble.average, shares=shares, temperatures=temperatures or (1.0,) * len(teachers))
    answers = [teacher.answer for teacher in teachers if teacher.answer is not None]  # each has one
    sums: dict[str, Any] = {key: sum(teacher.row[key] for teacher in teachers) for key in ("parameters", "size_bytes")}
    return Entry(
        predict=lambda split: average([teacher.predict(split) for teacher in teachers]),
        row={"runtime": teachers[0].row["runtime"]} | sums,
        answer=lambda texts: average([answer(texts) for answer in answers]),
    )


def _torch_entry(
    data: PreparedData,
    folder: Path,
    role: str,
    *,
    device: str,
    max_length: Callable[[str], int],
    long: LongSettings,
    model: Any = None,
    weights: Path | None = None,
) -> Entry:
    """The model in `folder`, or `model`; the files in `weights`, if given, are its size."""
    if model is None:
        model = loading.load_model(str(folder), data.task).model
    model = model.to(device).eval()
    tokenizer = loading.load_tokenizer(str(folder))
    typed = "token_type_ids" in tokenizer.model_input_names
    windows = long.of(max_length(role), join_of(model.config))
    info = tokenizer_info(tokenizer, max_length=max_length(role), token_type_ids=typed, long=windows)
    tokenizer_json = (folder / TOKENIZER_JSON).resolve()
    rows = RowTokenizer.read(tokenizer_json, info)
    files = ModelFiles(model=folder.resolve(), tokenizer_json=tokenizer_json, tokenizer=info, task=data.task.info())
    measured = [*(weights or folder).glob("*.safetensors"), tokenizer_json]
    return Entry(
        predict=lambda split: predict(model, Rows([data.tokens(role, split)]), pad_id=tokenizer.pad_token_id),
        row={
            "runtime": f"torch {device}",
            "parameters": as_served(model).num_parameters(),
            "size_bytes": sum(file.stat().st_size for file in measured),
        },
        answer=lambda texts: answer_texts(model, texts, rows, info),
        memory=files if weights is None and device == "cpu" else None,
    )


def _baseline_entries(logits: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Without costs: nobody would serve them."""
    with np.load(logits) as file:
        answers = dict(file)
    return {name: Entry(partial(_kept, answers, name), {"runtime": "a baseline"}) for name in names}


def _kept(answers: Logits, model: str, split: str) -> NDArray[np.float32]:
    return answers[f"{split}/{model}"]


def _onnx_entries(run: Run, notes: list[str]) -> dict[str, Entry]:
    """On the CPU; all but int8 on the run's GPU too."""
    data, student, teacher = run.data(), run.folder("export"), run.folder("uncut")
    parameters = {student: run.result(StudentResult).parameters, teacher: run.result(TeacherResult).parameters}
    graphs = {
        "fp32": (student / FP32_ONNX, student),
        "int8": (run.folder("quantize") / INT8_ONNX, student),
        "fp16": (student / FP16_ONNX, student),
    }
    uncut = run.result_or_none(UncutResult)
    if uncut is not None:  # else the folder may be from an earlier start
        notes += [uncut.note] if uncut.note else []
        teachers = {"teacher_fp32": (teacher / FP32_ONNX, teacher), "teacher_int8": (teacher / INT8_ONNX, teacher)}
        graphs = teachers | graphs
    entries, is_asked = {}, run.config.run.device == "cuda"
    for name, (graph, exported) in graphs.items():
        if graph.exists():
            files = _files_of(graph, exported, data.task.info())
            make = partial(_onnx_entry, files, data, parameters=parameters[exported])
            entries[name] = make()
            if run.device == "cuda" and graph.name != INT8_ONNX:
                entries |= _cuda_entry(name, make, notes, is_asked=is_asked)
    return entries


def _cascade_entries(run: Run, others: Mapping[str, Entry], notes: list[str]) -> dict[str, Entry]:
    variants, data, entries = variants_of(run), run.data(), dict[str, Entry]()
    second, temperature = variants.second, run.result(QuantizeResult).temperature
    for name, pair in variants.pairs.items():
        alone = f"{second.entry}_{pair.second}"
        if alone not in others:
            entries[alone] = _onnx_entry(_files_of(second.files[pair.second], second.folder, variants.task), data)
        make = partial(_onnx_entry, variants.files(name), data, temperature=temperature)
        entries[name] = make()
        if name == CASCADE_FP32:  # for a GPU only
            entries[name].answer = entries[name].memory = None
            entries |= _cuda_entry(name, make, notes, is_asked=run.config.run.device == "cuda")
    return entries


def _cuda_entry(name: str, make: Callable[..., Entry], notes: list[str], *, is_asked: bool) -> dict[str, Entry]:
    try:
        return {f"{name} (cuda)": make(device="cuda")}
    except KdcError as error:
        if is_asked:
            raise
        notes.append(f"{name} was not measured on CUDA: {error.what} ({error.given})")
        return {}


def _files_of(graph: Path, exported: Path, task: TaskInfo) -> ModelFiles:
    tokenizer = read_tokenizer_info(exported)
    return ModelFiles(model=graph, tokenizer_json=exported / TOKENIZER_JSON, tokenizer=tokenizer, task=task)


def _onnx_entry(
    files: ModelFiles,
    data: PreparedData,
    *,
    parameters: int | None = None,
    temperature: float = 1.0,
    device: Device = "cpu",
) -> Entry:
    engine = files.engine(temperature=temperature, device=device)
    is_timed = device == "cuda" or files.model.name != FP16_ONNX
    measured = [files.model, files.tokenizer_json, *([] if files.second is None else [files.second[1]])]
    return Entry(
        predict=lambda split: engine.logits(texts_of(data.rows(split))),
        row={
            "runtime": f"onnxruntime {device}",
            "parameters": parameters,
            "size_bytes": sum(file.stat().st_size for file in measured),
        },
        answer=engine.logits if is_timed else None,
        memory=files if is_timed and device == "cpu" else None,
    )
