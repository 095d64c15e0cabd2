"""What compression cost, in examples: the rows where student and teacher answer differently."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config.tasks import Task
from kdc.pipeline.quality import metrics
from kdc.serving.engine.engine import activate

_MOST_CHARACTERS = 1000  # of a text that is quoted


def disagreements(
    rows: Any,
    teacher: NDArray[np.float32],
    student: NDArray[np.float32],
    labels: NDArray[np.generic],
    task: Task,
    *,
    temperature: float,
    most: int,
) -> dict[str, Any]:
    """The rows whose answers differ, those first of which the student is most confident.

    Args:
        rows: the evaluation split, with `text` and `text_pair`.
        teacher, student: logits (rows, outputs).
        labels: the truth.
        task: names the labels.
        temperature: the student's, for its confidence.
        most: rows that are quoted at most.

    Returns:
        count (None for regression, where answers always differ), teacher_right and student_right among them, rows
        (text, text_pair, label, teacher, student, confidence). Regression: the rows with the largest differences,
        confidence None.
    """
    if task.kind == "regression":
        gap = np.abs(teacher[:, 0] - student[:, 0])
        order = np.argsort(-gap, kind="stable")[:most]
        scaled = [(task.center + task.spread * logits[:, 0]) for logits in (teacher, student)]
        quoted = [
            _quote(rows[int(row)], float(labels[row]), float(scaled[0][row]), float(scaled[1][row]), None)
            for row in order
        ]
        return {"count": None, "rows": quoted}
    answers = [metrics.predictions(logits, task.kind) for logits in (teacher, student)]
    confidence = _confidence(activate(student, task.kind, temperature), answers, task)
    differ = np.flatnonzero((answers[0] != answers[1]).reshape(len(labels), -1).any(axis=1))
    order = differ[np.argsort(-confidence[differ], kind="stable")][:most]
    right = [(answer == labels).reshape(len(labels), -1).all(axis=1)[differ] for answer in answers]
    quoted = []
    for row in order:
        label, first, second = (_names(values[row], task) for values in (labels, *answers))
        quoted.append(_quote(rows[int(row)], label, first, second, float(confidence[row])))
    return {
        "count": len(differ),
        "teacher_right": int(right[0].sum()),
        "student_right": int(right[1].sum()),
        "rows": quoted,
    }


def _confidence(
    probabilities: NDArray[np.float32], answers: list[NDArray[np.generic]], task: Task
) -> NDArray[np.float32]:
    """The student's confidence in its answer; for multi-label in the surest of the outputs that differ."""
    if task.kind == "classification":
        return probabilities.max(axis=1)
    surer = np.maximum(probabilities, 1 - probabilities)
    return np.where(answers[0] != answers[1], surer, 0).max(axis=1)


def _names(answer: Any, task: Task) -> str:
    if task.kind == "multilabel":
        return ", ".join(name for name, on in zip(task.labels, answer, strict=True) if on) or "(none)"
    return task.labels[int(answer)]


def _quote(row: dict[str, Any], label: Any, teacher: Any, student: Any, confidence: float | None) -> dict[str, Any]:
    def short(text: str | None) -> str | None:
        return text if text is None or len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …"

    return {
        "text": short(row["text"]),
        "text_pair": short(row.get("text_pair")),
        "label": label,
        "teacher": teacher,
        "student": student,
        "confidence": confidence,
    }
