"""Stage `evaluate`: all models side by side on the evaluation split.

Writes `table.json`, `evaluation.npz` (for the artifact) and `logits.npz` (all models and splits).
"""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kdc.common.cores import usable_cores
from kdc.common.errors import KdcError
from kdc.pipeline.config import metrics
from kdc.pipeline.data.prepared import PreparedData, digest, texts_of
from kdc.pipeline.data.report import OVERLAP_WORTH_TELLING
from kdc.pipeline.evaluation.entries import Entry, Logits, entries_of
from kdc.pipeline.evaluation.evidence import better_baseline
from kdc.pipeline.evaluation.variants import CASCADE
from kdc.pipeline.graphs.parity import check_equal
from kdc.pipeline.quality.latency import BATCH, compare_speeds
from kdc.pipeline.quality.peak_memory import peak_memory_bytes
from kdc.pipeline.quality.products import served_pass, share_of_products
from kdc.pipeline.results.artifact import CascadeResult, EvaluateResult
from kdc.pipeline.results.training import TargetsResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import ALL_LOGITS, BASELINE_SUFFIX, EVALUATION
from kdc.pipeline.rundir.fingerprints import this_machine
from kdc.serving.engine.tokenizing import RowTokenizer, Text

_NEEDED = ("teacher", "student", "merged", "fp32")
_OF_PAIR = {"first", "second", "temperature", "answered_from"}  # that change a cascade's answers
_MEMORY_ROWS = 64
_SERVED_TOLERANCE = 1e-3  # of logits, see `check_equal`


def depends_on(run: Run) -> dict[str, Any]:
    settings: dict[str, Any] = run.config.evaluate.model_dump()
    settings |= {"device": run.config.run.device} | this_machine(run.device)
    cascade = run.result_or_none(CascadeResult)
    if cascade and cascade.variants:  # else earlier measurements hold
        pairs = {name: pair.model_dump(include=_OF_PAIR) for name, pair in cascade.variants.items()}
        settings |= {"cascade": pairs, "second": cascade.source}
    return settings | {"baselines": run.fingerprints.get("baselines")}


def run(run: Run, out: Path) -> EvaluateResult:
    data, settings = run.data(), run.config.evaluate
    notes: list[str] = []
    entries = entries_of(run, notes)
    for done, name in enumerate(list(entries), 1):
        try:
            _answer_all(entries[name], data)
        except KdcError as error:
            if name in _NEEDED:
                raise
            notes.append(f"{name} is left out: {error.what} ({error.given})")
            del entries[name]
        run.progress(done, len(entries))
    check_served(entries["merged"].logits, entries["fp32"].logits)

    first = data.eval_splits[0]
    texts = texts_of(data.rows(first))
    timed = {name: entry.answer for name, entry in entries.items() if entry.answer is not None}
    speeds = compare_speeds(
        timed,
        texts,
        latency_rows=settings.latency_rows,
        throughput_rows=settings.throughput_rows,
        rounds=settings.rounds,
    )
    for name, speed in speeds.items():
        entries[name].row |= speed.model_dump()
    _note_products(entries.values(), texts[:BATCH])
    if settings.memory:
        _note_memory(entries.values(), texts[:_MEMORY_ROWS])

    table = {name: entry.row for name, entry in entries.items()}
    (out / "table.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    kept = {name: entry.logits[first] for name, entry in entries.items()}
    baseline = better_baseline(run.result(TargetsResult).baseline_comparison)
    _save_evaluation(out / EVALUATION, data, kept, better=baseline)
    answers: dict[str, Any] = {
        f"{split}/{name}": entry.logits[split] for name, entry in entries.items() for split in data.eval_splits
    }
    np.savez_compressed(out / ALL_LOGITS, **answers)
    metric = data.task.metrics[0]
    notes += _apart_from_training(data, first, kept)
    return EvaluateResult(
        table=table,
        notes=tuple(notes),
        rows={split: len(data.rows(split)) for split in data.eval_splits},
        headline=f"{metric}: " + ", ".join(f"{name} {row[metric]:.1f}" for name, row in table.items()),
    )


def _apart_from_training(data: PreparedData, split: str, logits: Logits) -> list[str]:
    rows = data.rows(split)
    if "overlaps" not in rows.column_names:  # held out without overlap
        return []
    apart = ~np.asarray(rows["overlaps"][:])
    if not 0 < apart.sum() <= (1 - OVERLAP_WORTH_TELLING) * len(apart):
        return []
    metric, kind, labels = data.task.metrics[0], data.task.kind, np.asarray(rows["label"][:])[apart]
    scores = {name: metrics.compute(part[apart], labels, kind, (metric,))[metric] for name, part in logits.items()}
    listed = ", ".join(f"{name} {score:.1f}" for name, score in scores.items())
    return [
        f"{int((~apart).sum())} of {len(apart)} evaluation rows overlap with training rows; on the other "
        f"{int(apart.sum())} {metric}: {listed}"
    ]


def _answer_all(entry: Entry, data: PreparedData) -> None:
    entry.logits = {split: entry.predict(split) for split in data.eval_splits}
    for split, logits in entry.logits.items():
        scores = metrics.compute(logits, np.asarray(data.rows(split)["label"][:]), data.task.kind, data.task.metrics)
        suffix = split.removeprefix("eval")
        entry.row |= {name + suffix: value for name, value in scores.items()}


def _note_products(entries: Iterable[Entry], texts: list[Text]) -> None:
    for entry in entries:
        files = entry.memory
        if files is not None and files.model.suffix == ".onnx" and files.second is None:
            rows, threads = RowTokenizer.read(files.tokenizer_json, files.tokenizer).encode(texts), usable_cores()
            feeds = served_pass(rows, files.tokenizer, threads=threads)
            entry.row["share_of_products"] = round(share_of_products(files.model, feeds, threads=threads), 3)


def _note_memory(entries: Iterable[Entry], texts: list[Text]) -> None:
    """Two at a time: each is a process, and mostly imports."""

    def measure(entry: Entry) -> None:
        if entry.memory is not None:
            entry.row["peak_memory_bytes"] = peak_memory_bytes(entry.memory, texts)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(measure, entries))


def check_served(merged: Logits, served: Logits) -> None:
    """Raise KdcError unless the engine answers like the merged torch model; both are (rows, outputs) by split."""
    for split, expected in merged.items():
        check_equal(
            served[split],
            expected,
            _SERVED_TOLERANCE,
            problem="the engine's answers differ from the merged model's",
            where=split,
            remedy="run again with --from export; if it fails, report the model's tokenizer",
        )


def _save_evaluation(path: Path, data: PreparedData, logits: Logits, *, better: str | None) -> None:
    """Save each row's SHA-256 (never its text), label, group and logits."""
    rows = data.rows(data.eval_splits[0])
    arrays: dict[str, Any] = {
        "text_sha256": np.frombuffer(b"".join(map(digest, texts_of(rows))), dtype=np.uint8).reshape(-1, 32),
        "label": np.asarray(rows["label"][:]),
        "group": np.asarray(rows["group"][:]),
        "teacher_logits": logits["teacher"],
        "student_logits": logits["fp32"],
    }
    arrays |= {f"student_{name}_logits": logits[name] for name in ("int8", CASCADE) if name in logits}
    if better is not None:
        arrays[f"{better}{BASELINE_SUFFIX}"] = logits[better]
    np.savez_compressed(path, **arrays)
