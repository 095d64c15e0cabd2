"""The student beside its teacher on the same evaluation rows, as a contract judges it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contract.terms import Contract, Quality
from contract.verdict import rows_needed
from pipeline import metrics
from pipeline.statistics import difference
from pipeline.tasks import Kind


def compare(
    student: NDArray[np.floating],
    teacher: NDArray[np.floating],
    labels: NDArray[np.generic],
    kind: Kind,
    metric: str,
    *,
    contract: Contract,
    seed: int,
) -> Quality | None:
    """Scores, their difference with its interval, and how many rows would show that it keeps to the contract.

    Args:
        student, teacher: logits, (rows, outputs).
        labels: (rows,), or (rows, outputs) for multi-label.
        kind: of the task.
        metric: the deciding one.
        contract: None is returned where it asks for no `max_drop`.
        seed: of the resampling.
    """
    max_drop = contract.limits.max_drop
    if max_drop is None:
        return None
    mine, theirs = (metrics.compute(logits, labels, kind, (metric,))[metric] for logits in (student, teacher))
    resampled = difference(student, teacher, labels, kind, metric, seed=seed, confidence=contract.confidence)
    found, (low, high) = round(mine - theirs, 4), resampled.interval
    needed = None
    if low < -max_drop:
        needed = rows_needed(
            found, resampled.standard_error, len(labels), max_drop=max_drop, confidence=contract.confidence
        )
    return Quality(
        metric=metric, teacher=theirs, student=mine, difference=found, interval=(round(low, 4), round(high, 4)),
        rows=len(labels), rows_needed=needed,
    )  # fmt: skip
