"""What compression cost, in examples: the rows on which student and teacher answer differently."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config import metrics
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.report.facts import Answer, Disagreements, QuotedRow
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
) -> Disagreements:
    """Find the rows whose answers differ, and quote those first of which the student is most confident.

    Args:
        rows: the evaluation split, with `text` and `text_pair`.
        teacher, student: logits, (rows, outputs).
        labels: the truth: (rows,), or (rows, outputs) in {0, 1} for multi-label.
        task: names the labels.
        temperature: by which the student's logits are divided for its confidence.
        most: rows that are quoted at most.
    """
    answers: list[NDArray[Any]]
    confidence = None
    counts: dict[str, Any] = {"count": None}
    if task.kind == "regression":
        # Its answers always differ: quote the rows on which they differ most, in the labels' unit.
        answers = [task.center + task.spread * logits[:, 0] for logits in (teacher, student)]
        order = np.argsort(-np.abs(teacher[:, 0] - student[:, 0]), kind="stable")[:most]
    else:
        answers = [metrics.predictions(logits, task.kind) for logits in (teacher, student)]
        confidence = _confidence(activate(student, task.kind, temperature), answers, task)
        differ = np.flatnonzero((answers[0] != answers[1]).reshape(len(labels), -1).any(axis=1))
        order = differ[np.argsort(-confidence[differ], kind="stable")][:most]
        right = [(answer == labels).reshape(len(labels), -1).all(axis=1)[differ].sum() for answer in answers]
        counts = {"count": len(differ), "teacher_right": int(right[0]), "student_right": int(right[1])}
    quoted = []
    for place in order:
        row = rows[int(place)]
        pair = row.get("text_pair")
        label, by_teacher, by_student = (_in_words(values[place], task) for values in (labels, *answers))
        quoted.append(
            QuotedRow(
                text=_shortened(row["text"]),
                text_pair=None if pair is None else _shortened(pair),
                label=label,
                teacher=by_teacher,
                student=by_student,
                confidence=None if confidence is None else float(confidence[place]),
            )
        )
    return Disagreements(**counts, rows=tuple(quoted))


def _confidence(
    probabilities: NDArray[np.float32], answers: list[NDArray[np.generic]], task: Task
) -> NDArray[np.float32]:
    """The student's confidence in its answers, (rows,); for multi-label the highest among the outputs that differ."""
    if task.kind == "classification":
        return probabilities.max(axis=1)
    surer = np.maximum(probabilities, 1 - probabilities)
    return np.where(answers[0] != answers[1], surer, 0).max(axis=1)


def _in_words(answer: Any, task: Task) -> Answer:
    """The name of a label, or of all labels that are on; a number for regression."""
    if task.kind == "regression":
        return float(answer)
    if task.kind == "multilabel":
        return ", ".join(name for name, on in zip(task.labels, answer, strict=True) if on) or "(none)"
    return task.labels[int(answer)]


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …"
