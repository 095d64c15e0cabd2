"""What a finished run says of itself, as one plain dictionary: `report.json`. Reads the stages' folders, runs no model.

Every figure is a stage's own, or is computed here from the logits that stage `evaluate` kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.folder import load_manifest
from kdc.artifact.inspection import in_order
from kdc.artifact.manifest import CPU_PROVIDER, Manifest
from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.feasibility import fitting_students
from kdc.pipeline.quality.intervals import difference, reliability, score_interval
from kdc.pipeline.report.disagreements import disagreements
from kdc.pipeline.results import (
    CandidatesResult,
    ControlsResult,
    DataResult,
    EvaluateResult,
    ModelResult,
    PackageResult,
    SearchResult,
    StudentResult,
    TeacherResult,
)
from kdc.pipeline.rundir.commands import read_commands
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import ALL_LOGITS, MADE_FROM, SETTINGS
from kdc.serving.engine.engine import activate

SCHEMA = 1
_COSTS = (
    "runtime",
    "parameters",
    "size_bytes",
    "latency_p50_ms",
    "latency_p95_ms",
    "rows_per_second",
    "peak_memory_bytes",
)
_MOST_CLASSES = 40  # of a confusion matrix that can still be looked at


def gather(root: Path, *, examples: int) -> dict[str, Any]:
    """All facts of a run.

    Args:
        root: the run directory.
        examples: most rows that are quoted; 0 quotes none.

    Returns:
        verdict, task, served (name of the variant that a CPU loads), models, training, confusion, calibration, lengths,
        disagreements, contract (as in the manifest), candidates (costs of those that were measured for it, and short
        trainings of some), where. Scores in points, times in seconds or milliseconds as named, sizes in bytes.

    Raises:
        InputError: not a finished run.
        KdcError: its artifact is damaged.
    """
    run = _open(root)
    manifest = load_manifest(root / run.result(PackageResult).artifact)
    task, split = run.data().task, run.data().eval_splits[0]
    logits = _logits(run, split)
    labels = np.asarray(run.data().rows(split)["label"][:])
    served = str(manifest.providers[CPU_PROVIDER])
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "task": {
            "name": task.name,
            "kind": task.kind,
            "labels": list(task.labels),
            "metric": task.metrics[0],
            "columns": [task.text] + ([task.text_pair] if task.text_pair else []),
        },
        "served": served,
        "models": _models(run, task, logits, labels),
        "training": _training(run),
        "confusion": _confusion(task, logits, labels, served),
        "calibration": _calibration(task, logits[served], labels, manifest),
        "lengths": _lengths(run),
        "disagreements": disagreements(
            run.data().rows(split),
            logits["teacher"],
            logits[served],
            labels,
            task,
            temperature=manifest.temperature,
            most=examples,
        ),
        "contract": None if manifest.contract is None else manifest.contract.model_dump(mode="json"),
        "candidates": _candidates(run),
        "where": _where(run, manifest),
    }
    return {"verdict": verdict(facts), **facts}


def verdict(facts: dict[str, Any]) -> str:
    """One sentence: what was compressed, what was kept, how much smaller and faster."""
    served, teacher = facts["models"][facts["served"]], facts["models"]["teacher"]
    metric = facts["task"]["metric"]
    low, high = served["difference_interval"]
    scores = f"{served['metrics'][metric]:.1f} of {teacher['metrics'][metric]:.1f} points"
    sentence = (
        f"On {facts['task']['name']}, the student ({facts['where']['student']}, {facts['served']}) keeps "
        f"{served['kept_percent']:.1f} % of its teacher's {metric.replace('_', ' ')} ({scores}; the difference is "
        f"{served['difference']:+.1f}, 95 % interval {low:+.1f} to {high:+.1f})"
    )
    if "size_bytes" in teacher:  # a black box has none that is known
        ratio = teacher["size_bytes"] / served["size_bytes"]
        sentence += f", is {ratio:.1f} times smaller" if ratio >= 1 else f", is {1 / ratio:.1f} times larger"
    if served.get("latency_p50_ms") and teacher.get("latency_p50_ms"):
        sentence += f" and answers one row {teacher['latency_p50_ms'] / served['latency_p50_ms']:.1f} times faster"
    return sentence + "."


def _open(root: Path) -> Run:
    if not (root / "package" / "stage.json").exists():
        raise InputError("no finished run there", given=root, remedy="name the directory of a finished `kdc compress`")
    if not ((root / "evaluate" / ALL_LOGITS).exists() and (root / "package" / MADE_FROM).exists()):
        raise InputError(
            "the run did not end, or is of an older kdc, which kept too little for a report",
            given=root,
            remedy="run its `kdc compress` again",
        )
    _check_unchanged(root)
    config = root / "package" / SETTINGS
    return Run(root=root, config=Config.model_validate_json(config.read_text(encoding="utf-8")))


def _check_unchanged(root: Path) -> None:
    """Refuse stages that a later, unfinished start has redone: old answers would stand beside new rows."""
    made_from = json.loads((root / "package" / MADE_FROM).read_text(encoding="utf-8"))
    for stage, fingerprint in made_from.items():
        record = root / stage / "stage.json"
        if stage == "labelled":  # a part of `data`, without a folder
            continue
        if not record.exists() or json.loads(record.read_text(encoding="utf-8"))["fingerprint"] != fingerprint:
            raise InputError(
                "a later start has changed the run since its artifact was made",
                given=root / stage,
                remedy="run `kdc compress` to its end; the report of before is still in the directory",
            )


def _logits(run: Run, split: str) -> dict[str, NDArray[np.float32]]:
    """By model, in the table's order."""
    with np.load(run.folder("evaluate") / ALL_LOGITS) as kept:
        found = {name.partition("/")[2]: kept[name] for name in kept.files if name.startswith(f"{split}/")}
    return {name: found[name] for name in in_order(found)}


def _models(
    run: Run, task: Task, logits: dict[str, NDArray[np.float32]], labels: NDArray[np.generic]
) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = run.result(EvaluateResult).table
    trained = {name: result.training for name, result in _trained(run).items()}
    metric, seed = task.metrics[0], run.config.run.seed
    teacher_score = table["teacher"][metric]
    models = {}
    for name, answers in logits.items():
        row, training = table[name], trained.get(name)
        models[name] = {
            "metrics": {key: value for key, value in row.items() if key not in _COSTS},
            "collapsed": metrics.is_constant(answers, task.kind),
            "interval": score_interval(answers, labels, task.kind, metric, seed=seed),
            "kept_percent": 100 * row[metric] / teacher_score if teacher_score else None,
            "difference": row[metric] - teacher_score,
            "difference_interval": difference(
                answers, logits["teacher"], labels, task.kind, metric, seed=seed
            ).interval,
            "trainable_parameters": None if training is None else training.trainable_parameters,
            "training_seconds": None if training is None else training.seconds,
            **{key: row[key] for key in _COSTS if key in row},
        }
    return models


def _trained(run: Run) -> dict[str, ModelResult]:
    """What the stages that train say of their models, by model."""
    results: dict[str, ModelResult | None] = {
        "teacher": run.result(TeacherResult),
        "student": run.result(StudentResult),
    }
    if run.config.run.controls:
        controls = run.result(ControlsResult)
        results |= {"teacher_lora": controls.teacher_lora, "student_without_kd": controls.student_without_kd}
    return {name: result for name, result in results.items() if result is not None}


def _training(run: Run) -> dict[str, Any]:
    """Curves of each training; nothing of a teacher that came fine-tuned."""
    return {
        name: {**training.history.to_json(), "best_step": training.best_step, "steps": training.steps}
        for name, result in _trained(run).items()
        if (training := result.training) is not None
    }


def _confusion(
    task: Task, logits: dict[str, NDArray[np.float32]], labels: NDArray[np.generic], served: str
) -> dict[str, Any] | None:
    """Rows by true label (down) and answer (across), of the teacher and of the student that is served."""
    if task.kind != "classification" or len(task.labels) > _MOST_CLASSES:
        return None
    classes = len(task.labels)

    def counts(name: str) -> list[list[int]]:
        answers = metrics.predictions(logits[name], task.kind).astype(np.int64)
        flat = np.bincount(labels.astype(np.int64) * classes + answers, minlength=classes * classes)
        return flat.reshape(classes, classes).tolist()

    return {"teacher": counts("teacher"), "student": counts(served)}


def _calibration(
    task: Task, logits: NDArray[np.float32], labels: NDArray[np.generic], manifest: Manifest
) -> dict[str, Any] | None:
    """Confidence against accuracy of the student that is served, without and with the manifest's temperature."""
    if task.kind == "regression":
        return None
    before = reliability(activate(logits, task.kind), labels, task.kind)
    after = reliability(activate(logits, task.kind, manifest.temperature), labels, task.kind)
    return {"temperature": manifest.temperature, "before": before.plain(), "after": after.plain()}


def _lengths(run: Run) -> dict[str, Any]:
    """Tokens of the student's training rows before the cut."""
    data, role = run.result(DataResult), run.student_role
    train = data.tokens[role]["train"]
    return {**train.lengths.to_json(), "cut": data.max_length[role], "truncated": train.truncated}


def _candidates(run: Run) -> dict[str, Any] | None:
    """What was measured and tried for the contract; None without one that limits costs."""
    if not run.config.measures_first:
        return None
    students, terms = run.result(CandidatesResult).candidates, run.config.contract.terms
    assert terms is not None  # else nothing is measured
    trials, chosen = [], next(iter(students))  # without a search there is one
    if run.config.searches:
        search = run.result(SearchResult)
        trials, chosen = [trial.to_json() for trial in search.trials], search.student
    measured = {name: student.to_json() for name, student in students.items()}
    return {"measured": measured, "kept": fitting_students(students, terms), "trials": trials, "chosen": chosen}


def _where(run: Run, manifest: Manifest) -> dict[str, Any]:
    lineage = manifest.lineage
    return {
        "teacher": lineage.teacher,
        "student": lineage.student,
        "recipe": lineage.recipe,
        "seed": lineage.seed,
        "commands": read_commands(run.root),
        "rows": {name: split.rows for name, split in run.result(DataResult).tokens["student"].items()},
        "data_fingerprint": lineage.data_fingerprint,
        "cpu": lineage.cpu,
        "gpu": lineage.gpu,
        "packages": {"kdc": manifest.kdc_version, **lineage.packages},
        "created": manifest.created,
        "artifact_sha256": manifest.sha256,
        "stage_seconds": {
            folder.parent.name: json.loads(folder.read_text(encoding="utf-8"))["seconds"]
            for folder in sorted(run.root.glob("*/stage.json"), key=lambda path: path.stat().st_mtime)
        },
    }
