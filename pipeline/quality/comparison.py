"""A student compared with its teacher, or a better baseline, on the same evaluation rows, as a contract judges it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import Basis, rows_needed, unseen
from kdc.artifact.contract.terms import Contract, Quality
from kdc.artifact.manifest import Kind
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.intervals import difference


@dataclass(frozen=True)
class Other:
    """What a student is compared with."""

    name: str  # "teacher", or that of a baseline
    logits: NDArray[np.floating]  # (rows, outputs)


def compare(
    student: NDArray[np.floating],
    other: Other,
    labels: NDArray[np.generic],
    kind: Kind,
    metric: str,
    *,
    contract: Contract,
    seed: int,
) -> Quality | None:
    """Both scores, the interval of their difference, and how many rows would show that it keeps to the contract.

    Args:
        student: (rows, outputs) logits.
        other: the teacher, or a better baseline.
        labels: (rows,), or (rows, outputs) for multi-label.
        kind: of the task.
        metric: the deciding one.
        contract: its `max_drop` is the limit of the difference; without one None is returned.
        seed: of the resampling.
    """
    max_drop = contract.limits.max_drop
    if max_drop is None:
        return None
    score, other_score = (
        metrics.compute(logits, labels, kind, (metric,))[metric] for logits in (student, other.logits)
    )
    resampled = difference(student, other.logits, labels, kind, metric, seed=seed, confidence=contract.confidence)
    basis = basis_of(labels, metric)
    gap, hidden = round(score - other_score, 4), unseen(basis, contract.confidence)
    low, high = min(resampled.interval[0], gap - hidden), max(resampled.interval[1], gap + hidden)
    needed = None
    if low < -max_drop:
        needed = rows_needed(gap, resampled.standard_error, basis, max_drop=max_drop, confidence=contract.confidence)
    return Quality(
        metric=metric,
        against=other.name,
        teacher=other_score,
        student=score,
        difference=gap,
        interval=(round(low, 4), round(high, 4)),
        rows=len(labels),
        rows_needed=needed,
    )


def basis_of(labels: NDArray[np.generic], metric: str) -> Basis:
    """The rows that a metric rests on: F1 on the rows of class 1, macro-F1 and Matthews on those of the rarest class,
    every other metric on all rows. Labels are (rows,), or (rows, outputs) for multi-label."""
    rows = len(labels)
    if metric not in ("f1", "macro_f1", "matthews"):
        return Basis(rows, rows)
    if metric == "f1":
        return Basis(rows, max(1, int((labels == 1).sum())))
    counts = labels.sum(axis=0) if labels.ndim > 1 else np.unique(labels, return_counts=True)[1]
    counts = counts[counts > 0]  # a class that the rows lack is in no mean
    if len(counts) == 0:
        return Basis(rows, 1)
    share = 1 / len(counts) if metric == "macro_f1" else 1.0
    return Basis(rows, int(counts.min()), share)
