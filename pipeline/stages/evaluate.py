"""Stage `evaluate`: teacher, student, merged model and ONNX variants side by side, on the evaluation split.

Reads everything before it; reads the evaluation split for the first and only time. ONNX variants run through
the serving engine, so that what is measured is what will serve. Writes `table.json`, `evaluation.npz` (for the
artifact) and `logits.npz` (of all models on all evaluation splits, for the report).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdc.artifact.manifest import Device
from kdc.common.errors import KdcError
from kdc.pipeline.data.served import digest, task_info, texts_of, tokenizer_info
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.latency import compare_speeds
from kdc.pipeline.quality.peak_memory import ModelFiles, peak_memory_bytes
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.served import ALL_LOGITS, open_engine
from kdc.pipeline.stages.controls import CONTROLS
from kdc.pipeline.stages.merge import load_student
from kdc.pipeline.stages.targets import teacher_shares
from kdc.pipeline.stages.teacher import SCORES
from kdc.pipeline.training import ensemble, models
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.predict import predict
from kdc.serving.engine.tokenizing import RowTokenizer, Text, pad

_NEEDED = ("teacher", "student", "merged", "fp32")  # without these there is nothing to compare
Answer = Callable[[list[Text]], NDArray[np.float32]]


@dataclass
class Entry:
    """One model under evaluation.

    Attributes:
        answer: texts to logits, tokenising included.
        logits: split to logits on the whole split.
        row: its line of the table.
        memory: what a process of its own loads to measure its memory, or None where it is not measured.
        timed: whether its latency says anything here (fp16 on a CPU does not).
    """

    answer: Answer
    logits: Callable[[str], NDArray[np.float32]]
    row: dict[str, Any]
    memory: ModelFiles | None = None
    timed: bool = True
    results: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make the table in `out`."""
    settings = run.config.evaluate
    data = run.data()
    notes: list[str] = []
    entries = _torch_entries(run) | _onnx_entries(run, notes)
    for place, name in enumerate(list(entries)):
        entry = entries[name]
        try:
            entry.results = {split: entry.logits(split) for split in data.eval_splits}
        except KdcError as error:
            if name in _NEEDED:
                raise
            notes.append(f"{name} is left out: {error.what} ({error.given})")
            del entries[name]
            continue
        for split in data.eval_splits:
            labels = np.asarray(data.rows(split)["label"][:])
            scores = metrics.compute(entry.results[split], labels, data.task.kind, data.task.metrics)
            suffix = split.removeprefix("eval")
            entry.row |= {name + suffix: value for name, value in scores.items()}
        run.progress(place + 1, len(entries))
    check_served(entries["merged"].results, entries["fp32"].results)
    _measure(entries, texts_of(data.rows(data.eval_splits[0])), **settings.model_dump())
    table = {name: entry.row for name, entry in entries.items()}
    (out / "table.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    _save_logits(out / "evaluation.npz", data.rows(data.eval_splits[0]), entries, data.eval_splits[0])
    answers: dict[str, Any] = {
        f"{split}/{name}": entry.results[split] for name, entry in entries.items() for split in data.eval_splits
    }
    np.savez_compressed(out / ALL_LOGITS, **answers)
    first = data.task.metrics[0]
    return {
        "table": table,
        "notes": notes,
        "rows": {split: len(data.rows(split)) for split in data.eval_splits},
        "headline": f"{first}: " + ", ".join(f"{name} {row[first]:.1f}" for name, row in table.items()),
    }


def check_served(
    merged: dict[str, NDArray[np.float32]], served: dict[str, NDArray[np.float32]], tolerance: float = 1e-3
) -> None:
    """From raw text to logits, tokenizer and all, the engine answers as the merged model does.

    Args:
        merged: split to (rows, outputs) of the torch model on the pipeline's tokens.
        served: the same of the fp32 ONNX model on texts.
        tolerance: largest difference, times the largest |logit| where that exceeds 1.

    Raises:
        KdcError: it does not.
    """
    for split, expected in merged.items():
        difference = float(np.abs(expected - served[split]).max())
        if not difference <= tolerance * max(1.0, float(np.abs(expected).max())):
            raise KdcError(
                "the engine does not answer as the merged model does",
                given=f"largest logit difference {difference:.2e} on {split}",
                remedy="run again with --from export; if it stays, report the model's tokenizer",
            )


def _torch_entries(run: Run) -> dict[str, Entry]:
    task = run.data().task
    merged = run.folder("merge") / "model"
    entries = {"teacher": _teacher_entry(run)}
    student = load_student(run.folder("student"))
    role = run.student_role
    entries["student"] = _torch_entry(run, student, run.folder("student") / "base", role, size_of=merged)
    entries["merged"] = _torch_entry(run, models.load_model(str(merged), task).model, merged, role)
    if run.config.run.controls:
        for name, whose in CONTROLS.items():
            folder = run.folder("controls") / name
            model = models.load_model(str(folder), task).model
            entries[name] = _torch_entry(run, model, folder, role if whose == "student" else whose)
    return entries


def _torch_entry(run: Run, model: Any, folder: Path, role: str, size_of: Path | None = None) -> Entry:
    tokenizer = models.load_tokenizer(str(folder))
    max_length = run.metrics("data")["max_length"][role]
    model = model.to(run.device).eval()
    typed = "token_type_ids" in tokenizer.model_input_names
    info = tokenizer_info(tokenizer, max_length=max_length, token_type_ids=typed)
    rows = RowTokenizer.read(folder / "tokenizer.json", info)

    def answer(texts: list[Text]) -> NDArray[np.float32]:
        feeds = pad(rows.encode(texts), info)
        batch = {name: torch.from_numpy(values).to(run.device) for name, values in feeds.items()}
        with torch.inference_mode():
            return model(**batch).logits.float().cpu().numpy()

    def logits(split: str) -> NDArray[np.float32]:
        return predict(model, Rows([run.data().tokens(role, split)]), pad_id=tokenizer.pad_token_id)

    weights = sum(file.stat().st_size for file in (size_of or folder).glob("*.safetensors"))
    size = weights + (folder / "tokenizer.json").stat().st_size
    row = {"runtime": f"torch {run.device}", "parameters": models.count_parameters(model), "size_bytes": size}
    whole = size_of is None and run.device == "cpu"
    files = ModelFiles(
        model=folder.resolve(),
        tokenizer_json=(folder / "tokenizer.json").resolve(),
        tokenizer=info,
        task=task_info(run.data().task),
    )
    return Entry(answer, logits, row, memory=files if whole else None)


def _teacher_entry(run: Run) -> Entry:
    """The teacher, several as one, or a black box, of which there are only answers."""
    data, settings = run.data(), run.config.teacher
    if settings.scores is not None:
        scores = np.load(run.folder("teacher") / SCORES)
        row: dict[str, Any] = {"runtime": "a black box"}
        return Entry(
            answer=lambda texts: np.zeros(0, dtype=np.float32),  # nobody to ask: never called, since it is not timed
            logits=lambda split: scores[np.asarray(data.rows(split)["row"][:])],
            row=row,
            timed=False,
        )
    teachers = []
    for place in range(len(settings.sources)):
        folder = run.folder("teacher") / ensemble.folder(place)
        model = models.load_model(str(folder), data.task).model
        teachers.append(_torch_entry(run, model, folder, ensemble.role(place)))
    return teachers[0] if len(teachers) == 1 else _as_one(teachers, teacher_shares(run))


def _as_one(teachers: list[Entry], shares: NDArray[np.float64]) -> Entry:
    """Several teachers as the student learned from them: one after another, their logits averaged."""
    row = {"runtime": teachers[0].row["runtime"]}
    row |= {key: sum(teacher.row[key] for teacher in teachers) for key in ("parameters", "size_bytes")}
    return Entry(
        answer=lambda texts: ensemble.average([teacher.answer(texts) for teacher in teachers], shares),
        logits=lambda split: ensemble.average([teacher.logits(split) for teacher in teachers], shares),
        row=row,
    )


def _onnx_entries(run: Run, notes: list[str]) -> dict[str, Entry]:
    chosen = run.metrics("quantize")
    parameters = run.metrics("student")["parameters"]
    files = {"fp32": run.folder("export") / "model.onnx"}
    if chosen["int8"]:
        files["int8"] = run.folder("quantize") / "model.int8.onnx"
    if (run.folder("export") / "model.fp16.onnx").exists():
        files["fp16"] = run.folder("export") / "model.fp16.onnx"
    entries = {}
    for name, file in files.items():
        entries[name] = _onnx_entry(run, file, parameters, "cpu", timed=name != "fp16")
        if run.device == "cuda" and name != "int8":
            try:
                entries[f"{name} (cuda)"] = _onnx_entry(run, file, parameters, "cuda", timed=True)
            except KdcError as error:
                if run.config.run.device == "cuda":
                    raise
                notes.append(f"{name} was not measured on CUDA: {error.what} ({error.given})")
    return entries


def _onnx_entry(run: Run, file: Path, parameters: int, device: Device, *, timed: bool) -> Entry:
    engine = open_engine(run, file, device=device)
    tokenizer = run.folder("export") / "tokenizer.json"
    row = {
        "runtime": f"onnxruntime {device}",
        "parameters": parameters,
        "size_bytes": file.stat().st_size + tokenizer.stat().st_size,
    }
    memory = ModelFiles(model=file, tokenizer_json=tokenizer, tokenizer=engine.tokenizer_info, task=engine.task)
    return Entry(
        answer=engine.logits,
        logits=lambda split: engine.logits(texts_of(run.data().rows(split))),
        row=row,
        memory=memory if device == "cpu" and timed else None,
        timed=timed,
    )


def _measure(
    entries: dict[str, Entry], texts: list[Text], *, memory: bool, latency_rows: int, throughput_rows: int, rounds: int
) -> None:
    """Latency and throughput in turns over all models, then each model's memory in a process of its own."""
    timed = {name: entry.answer for name, entry in entries.items() if entry.timed}
    timings = compare_speeds(timed, texts, latency_rows=latency_rows, throughput_rows=throughput_rows, rounds=rounds)
    for name, entry in entries.items():
        entry.row |= timings[name].model_dump() if name in timings else {}
        if memory and entry.memory is not None:
            entry.row["peak_memory_bytes"] = peak_memory_bytes(entry.memory, texts[:64])


def _save_logits(path: Path, rows: Any, entries: dict[str, Entry], split: str) -> None:
    """For each evaluation row: SHA-256 of its text, label, logits of each model. No text."""
    digests = [digest(text) for text in texts_of(rows)]
    arrays: dict[str, Any] = {
        "text_sha256": np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32),
        "label": np.asarray(rows["label"][:]),
        "teacher_logits": entries["teacher"].results[split],
        "student_logits": entries["fp32"].results[split],
    }
    if "int8" in entries:
        arrays["student_int8_logits"] = entries["int8"].results[split]
    np.savez_compressed(path, **arrays)
