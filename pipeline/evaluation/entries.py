"""The models of a run that stage `evaluate` compares, each as something that answers: teacher, student, controls and
baselines as they are, and the ONNX variants in the serving engine, so that what is measured is what will serve."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdc.artifact.manifest import Device, Scalar, Second
from kdc.common.errors import KdcError
from kdc.pipeline.data.prepared import PreparedData, texts_of
from kdc.pipeline.data.tokens import tokenizer_info
from kdc.pipeline.evaluation.second_model import (
    CASCADE_FP32,
    open_variant,
    pairs_of,
    second_model,
    second_of,
    student_files,
)
from kdc.pipeline.models import loading
from kdc.pipeline.models.shallow import as_served
from kdc.pipeline.quality.peak_memory import ModelFiles
from kdc.pipeline.results.artifact import Pair, QuantizeResult, UncutResult
from kdc.pipeline.results.training import BaselinesResult, ControlsResult, StudentResult, TargetsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import (
    BASELINE_LOGITS,
    CONTROLS,
    FP16_ONNX,
    FP32_ONNX,
    INT8_ONNX,
    SCORES,
    TOKENIZER_JSON,
)
from kdc.pipeline.training import ensemble
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.joining import logits_of
from kdc.pipeline.training.predict import predict
from kdc.pipeline.training.students import load_student
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.long_texts import spread
from kdc.serving.engine.tokenizing import RowTokenizer, Text, pad

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
    return _torch_entries(run) | onnx | _cascade_entries(run, onnx, notes) | _baseline_entries(run)


def _torch_entries(run: Run) -> dict[str, Entry]:
    """Teacher, student with adapters, merged student, and the controls that there are."""
    torch_entry = partial(_torch_entry, run, run.data())
    merged, student, role = run.folder("merge") / "model", run.folder("student"), run.student_role
    entries = {
        "teacher": _teacher_entry(run, torch_entry),
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
    run: Run,
    data: PreparedData,
    folder: Path,
    role: str,
    *,
    model: Any = None,
    weights: Path | None = None,
) -> Entry:
    """A torch model. Its folder holds tokenizer and weights; or it is given, and `weights` is the folder of a model of
    its size. The role is whose tokens it takes, by which the longest rows are known too."""
    if model is None:
        model = loading.load_model(str(folder), data.task).model
    device = run.device
    model = model.to(device).eval()
    tokenizer = loading.load_tokenizer(str(folder))
    typed = "token_type_ids" in tokenizer.model_input_names
    max_length = run.max_length(role)
    long = run.long(max_length, model.config)
    info = tokenizer_info(tokenizer, max_length=max_length, token_type_ids=typed, long=long)
    rows = RowTokenizer.read(folder / TOKENIZER_JSON, info)

    def answer(texts: list[Text]) -> NDArray[np.float32]:
        encodings = rows.encode(texts)
        batch = {name: torch.from_numpy(values) for name, values in pad(encodings, info).items()}
        if long is not None:
            batch["windows"] = torch.tensor(spread(encodings)[1])
        with torch.inference_mode():
            return logits_of(model, batch).cpu().numpy()

    size = sum(file.stat().st_size for file in (weights or folder).glob("*.safetensors"))
    files = ModelFiles(
        model=folder.resolve(),
        tokenizer_json=(folder / TOKENIZER_JSON).resolve(),
        tokenizer=info,
        task=data.task.info(),
    )
    return Entry(
        answer=answer,
        predict=lambda split: predict(model, Rows([data.tokens(role, split)]), pad_id=tokenizer.pad_token_id),
        row={
            "runtime": f"torch {device}",
            "parameters": loading.count_parameters(as_served(model)),
            "size_bytes": size + (folder / TOKENIZER_JSON).stat().st_size,
        },
        memory=files if weights is None and device == "cpu" else None,
    )


def _teacher_entry(run: Run, torch_entry: Callable[[Path, str], Entry]) -> Entry:
    """The teacher, several as one, or a black box, of which there are only answers."""
    data, settings = run.data(), run.config.teacher
    if settings.scores is not None:
        scores = np.load(run.folder("teacher") / SCORES)
        return Entry(
            answer=_never,
            predict=lambda split: scores[np.asarray(data.rows(split)["row"][:])],
            row={"runtime": "a black box"},
            timed=False,
        )
    folder = run.folder("teacher")
    places = range(len(settings.sources))
    teachers = [torch_entry(folder / ensemble.folder(place), ensemble.role(place)) for place in places]
    if len(teachers) == 1:
        return teachers[0]
    scores = run.result(TeacherResult).scores(data.task.metrics[0])
    temperatures = run.result(TargetsResult).temperatures or (1.0,) * len(teachers)
    return _as_one(teachers, ensemble.weights(scores, run.config.targets.weights), temperatures)


def _as_one(teachers: Sequence[Entry], shares: NDArray[np.float64], temperatures: Sequence[float]) -> Entry:
    """Several teachers as the student learned from them: one after another, their logits averaged."""
    sums: dict[str, Any] = {key: sum(teacher.row[key] for teacher in teachers) for key in ("parameters", "size_bytes")}
    return Entry(
        answer=lambda texts: ensemble.average([teacher.answer(texts) for teacher in teachers], shares, temperatures),
        predict=lambda split: ensemble.average([teacher.predict(split) for teacher in teachers], shares, temperatures),
        row={"runtime": teachers[0].row["runtime"]} | sums,
    )


def _baseline_entries(run: Run) -> dict[str, Entry]:
    """What is cheap to beat. Its answers are there; what it costs is not measured, since nobody would serve it so."""
    if not run.config.baselines.enabled:
        return {}
    with np.load(run.folder("baselines") / BASELINE_LOGITS) as file:
        answers = {name: file[name] for name in file.files}
    return {
        name: Entry(
            answer=_never,
            predict=partial(_kept, answers, name),
            row={"runtime": "a baseline"},
            timed=False,
        )
        for name in run.result(BaselinesResult).tune
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

    if "uncut" not in run.fingerprints:  # the folder may be there from a start before this one
        del files["teacher_fp32"], files["teacher_int8"]
    elif run.result(UncutResult).note:
        notes.append(run.result(UncutResult).note)
    entries = {}
    for name, (file, exported) in files.items():
        if not file.exists():
            continue
        entries[name] = entry(file, exported, "cpu")
        if run.device == "cuda" and file.name != INT8_ONNX:
            entries |= _cuda_entry(run, name, partial(entry, file, exported), notes)
    return entries


def _cuda_entry(run: Run, name: str, entry: Callable[[Device], Entry], notes: list[str]) -> dict[str, Entry]:
    """An entry on CUDA under its name; none, with a note why, where it does not start and nobody asked for it."""
    try:
        return {f"{name} (cuda)": entry("cuda")}
    except KdcError as error:
        if run.config.run.device == "cuda":
            raise
        notes.append(f"{name} was not measured on CUDA: {error.what} ({error.given})")
        return {}


def _cascade_entries(run: Run, entries: Mapping[str, Entry], notes: list[str]) -> dict[str, Entry]:
    """The cascades of the artifact, and their second model where that is another run's, beside the other entries."""
    second, found, data = second_model(run), dict[str, Entry](), run.data()
    tokenizer, temperature = run.folder("export") / TOKENIZER_JSON, run.result(QuantizeResult).temperature

    def entry(name: str, pair: Pair, device: Device) -> Entry:
        engine = open_variant(run, name, temperature=temperature, device=device)
        first, file = student_files(run)[pair.first], second.files[pair.second]
        pair_of_files = second_of(run, pair, file.name), file
        return _onnx_entry(engine, first, tokenizer, data, device, None, second=pair_of_files)

    for name, pair in pairs_of(run).items():
        alone, file = f"{second.entry}_{pair.second}", second.files[pair.second]
        if alone not in entries:
            engine = run.open_engine(file, exported=second.folder)
            found[alone] = _onnx_entry(engine, file, second.folder / TOKENIZER_JSON, data, "cpu", None)
        found[name] = entry(name, pair, "cpu")
        if name == CASCADE_FP32:  # which is for a GPU
            found[name].timed, found[name].memory = False, None
            found |= _cuda_entry(run, name, partial(entry, name, pair), notes)
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
