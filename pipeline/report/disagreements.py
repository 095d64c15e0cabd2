"""What compression cost, in examples: the rows on which student and teacher answer differently."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config.tasks import Task
from kdc.pipeline.quality import metrics
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
    if task.kind == "regression":
        # Its answers always differ: quote the rows on which they differ most, in the labels' unit.
        order = np.argsort(-np.abs(teacher[:, 0] - student[:, 0]), kind="stable")[:most]
        scores = [task.center + task.spread * logits[:, 0] for logits in (teacher, student)]
        most_different = tuple(
            _quote(rows[int(row)], float(labels[row]), float(scores[0][row]), float(scores[1][row]), None)
            for row in order
        )
        return Disagreements(count=None, rows=most_different)
    answers = [metrics.predictions(logits, task.kind) for logits in (teacher, student)]
    confidence = _confidence(activate(student, task.kind, temperature), answers, task)
    differ = np.flatnonzero((answers[0] != answers[1]).reshape(len(labels), -1).any(axis=1))
    right = [(answer == labels).reshape(len(labels), -1).all(axis=1)[differ] for answer in answers]
    quoted = []
    for row in differ[np.argsort(-confidence[differ], kind="stable")][:most]:
        label, by_teacher, by_student = (_names(values[row], task) for values in (labels, *answers))
        quoted.append(_quote(rows[int(row)], label, by_teacher, by_student, float(confidence[row])))
    return Disagreements(
        count=len(differ),
        teacher_right=int(right[0].sum()),
        student_right=int(right[1].sum()),
        rows=tuple(quoted),
    )


def _confidence(
    probabilities: NDArray[np.float32], answers: list[NDArray[np.generic]], task: Task
) -> NDArray[np.float32]:
    """The student's confidence in its answers, (rows,); for multi-label the highest among the outputs that differ."""
    if task.kind == "classification":
        return probabilities.max(axis=1)
    surer = np.maximum(probabilities, 1 - probabilities)
    return np.where(answers[0] != answers[1], surer, 0).max(axis=1)


def _names(answer: Any, task: Task) -> str:
    """The name of a label, or of all labels that are on."""
    if task.kind == "multilabel":
        return ", ".join(name for name, on in zip(task.labels, answer, strict=True) if on) or "(none)"
    return task.labels[int(answer)]


def _quote(row: dict[str, Any], label: Answer, teacher: Answer, student: Answer, confidence: float | None) -> QuotedRow:
    texts = (row["text"], row.get("text_pair"))
    text, pair = (
        text if text is None or len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …" for text in texts
    )
    return QuotedRow(
        text=text,
        text_pair=pair,
        label=label,
        teacher=teacher,
        student=student,
        confidence=confidence,
    )
