"""The rows on which student and teacher differ."""

from typing import Any

import numpy as np
import regex

from kdc.pipeline.config import metrics
from kdc.pipeline.config.metrics import Labels, Outputs
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.report.facts import Answer, Disagreements, QuotedRow
from kdc.serving.engine.engine import activate

_MOST_CHARACTERS = 1000


def disagreements(
    rows: Any, teacher: Outputs, student: Outputs, labels: Labels, task: Task, *, temperature: float, most: int
) -> Disagreements:
    """`temperature` divides the student's logits."""
    by_teacher: Labels
    by_student: Labels
    counts: dict[str, Any] = {"count": None}
    confidence = None
    if not task.traits.has_labels:
        # Largest differences, in the labels' unit.
        by_teacher, by_student = (task.center + task.spread * logits[:, 0] for logits in (teacher, student))
        order = np.argsort(-np.abs(teacher[:, 0] - student[:, 0]), kind="stable")[:most]
    else:
        by_teacher, by_student = map(task.traits.predictions, (teacher, student))
        sure = task.traits.certainty(activate(student, task.kind, temperature))
        differs = (by_teacher != by_student).reshape(len(sure), -1)
        confidence = np.where(differs, sure, 0).max(axis=1)  # of the surest label that differs
        differ = np.flatnonzero(differs.any(axis=1))
        order = differ[np.argsort(-confidence[differ], kind="stable")][:most]
        right = [int(metrics.is_right(labels, answers)[differ].sum()) for answers in (by_teacher, by_student)]
        counts = {"count": len(differ), "teacher_right": right[0], "student_right": right[1]}
    quoted = []
    for number in order.tolist():
        row = rows[number]
        pair = row.get("text_pair")
        quoted.append(
            QuotedRow(
                text=_shortened(row["text"]),
                text_pair=None if pair is None else _shortened(pair),
                label=_in_words(labels[number], task),
                teacher=_in_words(by_teacher[number], task),
                student=_in_words(by_student[number], task),
                confidence=None if confidence is None else float(confidence[number]),
            )
        )
    return Disagreements(**counts, rows=tuple(quoted))


def _in_words(answer: Any, task: Task) -> Answer:
    if not task.traits.has_labels:
        return float(answer)
    if task.traits.has_lists:
        return ", ".join(name for name, on in zip(task.labels, answer, strict=True) if on) or "(none)"
    return task.labels[int(answer)]


def _shortened(text: str) -> str:
    """Do not cut a letter from its marks."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    *_, last = regex.finditer(r"\X", text[: _MOST_CHARACTERS + 1])
    return text[: last.start() or _MOST_CHARACTERS] + " …"
