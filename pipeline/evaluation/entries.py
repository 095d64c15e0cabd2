"""The models of a run that stage `evaluate` compares, each as something that answers: teacher, student, controls and
baselines as they are, and the ONNX variants in the serving engine, so that what is measured is what will serve."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import Device, Scalar, Second
from kdc.common.errors import KdcError
from kdc.pipeline.config.data_settings import LongSettings
from kdc.pipeline.data.prepared import PreparedData, texts_of
from kdc.pipeline.data.tokens import tokenizer_info
from kdc.pipeline.evaluation.variants import CASCADE_FP32, variants_of
from kdc.pipeline.graphs.files import FP16_ONNX, FP32_ONNX, INT8_ONNX, TOKENIZER_JSON
from kdc.pipeline.models import loading
from kdc.pipeline.models.opening import as_served
from kdc.pipeline.quality.peak_memory import ModelFiles
from kdc.pipeline.results.artifact import Pair, QuantizeResult, UncutResult
from kdc.pipeline.results.training import BaselinesResult, ControlsResult, StudentResult, TargetsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import BASELINE_LOGITS, CONTROLS, SCORES
from kdc.pipeline.training import ensemble
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.joining import join_of
from kdc.pipeline.training.predict import answer_texts, predict
from kdc.pipeline.training.students import load_student
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import RowTokenizer, Text

Answer = Callable[[list[Text]], NDArray[np.float32]]
Logits = dict[str, NDArray[np.float32]]  # (rows, outputs) by split, or by model


@dataclass
class Entry:
    """One model under evaluation."""

    answer: Answer  # texts to logits, tokenising included
    predict: Callable[[str], NDArray[np.float32]]  # a split's name to logits of the whole split
    row: dict[str, Scalar]  # columns of the table, to which more are added
    memory: ModelFiles | None = None  # what a process of its own loads to measure its memory; None: not measured
    timed: bool = True  # whether its latency says anything here (fp16 on a CPU does not)
    logits: Logits = field(default_factory=dict)  # answers by split, once it was asked


def entries_of(run: Run, notes: list[str]) -> dict[str, Entry]:
    """All of them by name, in the order of the table; to `notes` goes what is not there, and why."""
    onnx = _onnx_entries(run, notes)
    baselines = run.result_or_none(BaselinesResult)
    return (
        _torch_entries(run)
        | onnx
        | _cascade_entries(run, onnx, notes)
        | ({} if baselines is None else _baseline_entries(run.folder("baselines") / BASELINE_LOGITS, baselines.tune))
    )


def _torch_entries(run: Run) -> dict[str, Entry]:
    """Teacher, student with adapters, merged student, and the controls that there are."""
    data, merged, student, role = run.data(), run.folder("merge") / "model", run.folder("student"), run.student_role
    torch_entry = partial(_torch_entry, data, device=run.device, max_length=run.max_length, long=run.config.long)
    teacher, folder = run.config.teacher, run.folder("teacher")
    if teacher.scores is not None:
        teacher_entry = _black_box(np.load(folder / SCORES), data)
    elif len(teacher.sources) == 1:
        teacher_entry = torch_entry(folder / ensemble.folder(0), ensemble.role(0))
    else:
        places = range(len(teacher.sources))
        teachers = [torch_entry(folder / ensemble.folder(place), ensemble.role(place)) for place in places]
        scores = run.result(TeacherResult).scores(data.task.metrics[0])
        temperatures = run.result(TargetsResult).temperatures or (1.0,) * len(teachers)
        teacher_entry = _as_one(teachers, ensemble.weights(scores, run.config.targets.weights), temperatures)
    entries = {
        "teacher": teacher_entry,
        "student": torch_entry(student / "base", role, model=load_student(student), weights=merged),
        "merged": torch_entry(merged, role),
    }
    entries["student"].timed = False  # with its adapters it is only trained; what could serve is the merged one
    if run.config.run.controls:
        made = run.result(ControlsResult).to_json()
        for name, whose in CONTROLS.items():
            if name not in made:
                continue
            entries[name] = torch_entry(run.folder("controls") / name, role if whose == "student" else whose)
    return entries


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
    """A torch model. Its folder holds tokenizer and weights; or it is given, and `weights` is the folder of a model of
    its size. The role is whose tokens it takes; by it `max_length` tells the tokens of the longest rows."""
    if model is None:
        model = loading.load_model(str(folder), data.task).model
    model = model.to(device).eval()
    tokenizer = loading.load_tokenizer(str(folder))
    typed = "token_type_ids" in tokenizer.model_input_names
    windows = long.of(max_length(role), join_of(model.config))
    info = tokenizer_info(tokenizer, max_length=max_length(role), token_type_ids=typed, long=windows)
    rows = RowTokenizer.read(folder / TOKENIZER_JSON, info)

    size = sum(file.stat().st_size for file in (weights or folder).glob("*.safetensors"))
    files = ModelFiles(
        model=folder.resolve(),
        tokenizer_json=(folder / TOKENIZER_JSON).resolve(),
        tokenizer=info,
        task=data.task.info(),
    )
    return Entry(
        answer=lambda texts: answer_texts(model, texts, rows, info),
        predict=lambda split: predict(model, Rows([data.tokens(role, split)]), pad_id=tokenizer.pad_token_id),
        row={
            "runtime": f"torch {device}",
            "parameters": as_served(model).num_parameters(),
            "size_bytes": size + (folder / TOKENIZER_JSON).stat().st_size,
        },
        memory=files if weights is None and device == "cpu" else None,
    )


def _black_box(scores: NDArray[np.float32], data: PreparedData) -> Entry:
    """A black box, of which there are only answers, (rows, outputs) by row id."""
    return Entry(
        answer=_never,
        predict=lambda split: scores[np.asarray(data.rows(split)["row"][:])],
        row={"runtime": "a black box"},
        timed=False,
    )


def _as_one(teachers: Sequence[Entry], shares: NDArray[np.float64], temperatures: Sequence[float]) -> Entry:
    """Several teachers as the student learned from them: one after another, their logits averaged."""
    sums: dict[str, Any] = {key: sum(teacher.row[key] for teacher in teachers) for key in ("parameters", "size_bytes")}
    return Entry(
        answer=lambda texts: ensemble.average([teacher.answer(texts) for teacher in teachers], shares, temperatures),
        predict=lambda split: ensemble.average([teacher.predict(split) for teacher in teachers], shares, temperatures),
        row={"runtime": teachers[0].row["runtime"]} | sums,
    )


def _baseline_entries(logits: Path, names: Iterable[str]) -> dict[str, Entry]:
    """What is cheap to beat. Its answers are there; what it costs is not measured, since nobody would serve it so."""
    with np.load(logits) as file:
        answers = {name: file[name] for name in file.files}
    return {
        name: Entry(
            answer=_never,
            predict=partial(_kept, answers, name),
            row={"runtime": "a baseline"},
            timed=False,
        )
        for name in names
    }


def _never(texts: list[Text]) -> NDArray[np.float32]:
    """For a model of which there are only answers: it is not timed."""
    raise AssertionError("its answers were made before")


def _kept(answers: Logits, model: str, split: str) -> NDArray[np.float32]:
    return answers[f"{split}/{model}"]


def _onnx_entries(run: Run, notes: list[str]) -> dict[str, Entry]:
    """The variants of student and uncut teacher that were made, each on the CPU, and where the run trains on CUDA also
    there."""
    student, teacher = run.folder("export"), run.folder("uncut")
    files = {
        "teacher_fp32": (teacher / FP32_ONNX, teacher),
        "teacher_int8": (teacher / INT8_ONNX, teacher),
        "fp32": (student / FP32_ONNX, student),
        "int8": (run.folder("quantize") / INT8_ONNX, student),
        "fp16": (student / FP16_ONNX, student),
    }
    parameters = {student: run.result(StudentResult).parameters, teacher: run.result(TeacherResult).parameters}

    def entry(file: Path, exported: Path, device: Device) -> Entry:
        engine = run.open_engine(file, exported=exported, device=device)
        return _onnx_entry(engine, file, exported / TOKENIZER_JSON, run.data(), device, parameters[exported])

    uncut = run.result_or_none(UncutResult)
    if uncut is None:  # the folder may be there from a start before this one
        del files["teacher_fp32"], files["teacher_int8"]
    elif uncut.note:
        notes.append(uncut.note)
    entries, is_asked = {}, run.config.run.device == "cuda"
    for name, (file, exported) in files.items():
        if not file.exists():
            continue
        entries[name] = entry(file, exported, "cpu")
        if run.device == "cuda" and file.name != INT8_ONNX:
            entries |= _cuda_entry(name, partial(entry, file, exported), notes, is_asked=is_asked)
    return entries


def _cuda_entry(name: str, entry: Callable[[Device], Entry], notes: list[str], *, is_asked: bool) -> dict[str, Entry]:
    """An entry on CUDA under its name; none, with a note why, if it does not start and nobody asked for it."""
    try:
        return {f"{name} (cuda)": entry("cuda")}
    except KdcError as error:
        if is_asked:
            raise
        notes.append(f"{name} was not measured on CUDA: {error.what} ({error.given})")
        return {}


def _cascade_entries(run: Run, entries: Mapping[str, Entry], notes: list[str]) -> dict[str, Entry]:
    """The cascades of the artifact, and their second model where that is another run's, beside the other entries."""
    variants, found, data = variants_of(run), dict[str, Entry](), run.data()
    second, tokenizer = variants.second, variants.exported / TOKENIZER_JSON
    temperature, is_asked = run.result(QuantizeResult).temperature, run.config.run.device == "cuda"

    def entry(name: str, pair: Pair, device: Device) -> Entry:
        engine = variants.open(name, temperature=temperature, device=device)
        first, file = variants.students[pair.first], second.files[pair.second]
        pair_of_files = variants.second_of(pair, file.name), file
        return _onnx_entry(engine, first, tokenizer, data, device, None, second=pair_of_files)

    for name, pair in variants.pairs.items():
        alone, file = f"{second.entry}_{pair.second}", second.files[pair.second]
        if alone not in entries:
            engine = run.open_engine(file, exported=second.folder)
            found[alone] = _onnx_entry(engine, file, second.folder / TOKENIZER_JSON, data, "cpu", None)
        found[name] = entry(name, pair, "cpu")
        if name == CASCADE_FP32:  # which is for a GPU
            found[name].timed, found[name].memory = False, None
            found |= _cuda_entry(name, partial(entry, name, pair), notes, is_asked=is_asked)
    return found


def _onnx_entry(
    engine: Engine,
    file: Path,
    tokenizer: Path,
    data: PreparedData,
    device: Device,
    parameters: int | None,
    second: tuple[Second, Path] | None = None,
) -> Entry:
    """An ONNX file, or the two of a cascade, in the engine that serves, which is open on the device. fp16 is not timed
    on a CPU."""
    timed = device == "cuda" or file.name != FP16_ONNX
    files = ModelFiles(
        model=file,
        tokenizer_json=tokenizer,
        tokenizer=engine.tokenizer_info,
        task=engine.task,
        second=second,
    )
    size = sum(each.stat().st_size for each in (file, tokenizer, *([] if second is None else [second[1]])))
    return Entry(
        answer=engine.logits,
        predict=lambda split: engine.logits(texts_of(data.rows(split))),
        row={
            "runtime": f"onnxruntime {device}",
            "parameters": parameters,
            "size_bytes": size,
        },
        memory=files if device == "cpu" and timed else None,
        timed=timed,
    )
