"""A student compared with its teacher, or a better baseline, on the same evaluation rows, as a contract judges it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdc.artifact.contract.judgement import judge_drop, rows_needed
from kdc.artifact.contract.terms import Contract, Quality, Verdict, replace
from kdc.artifact.manifest import Kind
from kdc.common.errors import InputError
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.intervals import Groups, basis_of, difference


@dataclass(frozen=True)
class Other:
    """What a student is compared with."""

    name: str  # "teacher", or that of a baseline
    logits: NDArray[np.floating]  # (rows, outputs)


class Shown(Quality):
    """What the rows show of the difference of two models."""

    verdict: Verdict  # "pass", "fail", or "not shown" where the interval holds the limit


def judge(
    student: ArrayLike,
    teacher: ArrayLike,
    labels: ArrayLike,
    *,
    kind: Kind = "classification",
    metric: str = "accuracy",
    max_drop: float = 1.0,
    confidence: float = 0.95,
    groups: ArrayLike | None = None,
) -> Shown:
    """Whether rows show that one model loses at most `max_drop` points against another; see `kdc.judge`, which is this.

    Raises:
        InputError: as it says.
    """
    logits, others, truth = np.asarray(student), np.asarray(teacher), np.asarray(labels)
    members = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    _check(logits, others, truth, members, kind, metric)
    contract = replace(Contract(), {"max_drop": max_drop, "confidence": confidence})
    quality = compare(logits, Other("teacher", others), truth, kind, metric, contract=contract, groups=members)
    assert quality is not None
    return Shown(**quality.model_dump(), verdict=judge_drop(contract, quality))


def compare(
    student: NDArray[np.floating],
    other: Other,
    labels: NDArray[np.generic],
    kind: Kind,
    metric: str,
    *,
    contract: Contract,
    groups: Groups | None = None,
    look: int = 1,
) -> Quality | None:
    """Both scores, the interval of their difference, and how many rows would show that it keeps to the contract.

    Args:
        student: (rows, outputs) logits.
        other: the teacher, or a better baseline.
        labels: (rows,), or (rows, outputs) for multi-label.
        kind: of the task.
        metric: the deciding one.
        contract: its `max_drop` is the limit of the difference; without one None is returned.
        groups: which rows belong together; None where each stands alone.
        look: see `Quality`.
    """
    max_drop = contract.limits.max_drop
    if max_drop is None:
        return None
    score, other_score = (
        metrics.compute(logits, labels, kind, (metric,))[metric] for logits in (student, other.logits)
    )
    confidence = spent(contract.confidence, look)
    seen = difference(student, other.logits, labels, kind, metric, groups=groups, confidence=confidence)
    gap, needed = round(score - other_score, 4), None
    if seen.interval[0] < -max_drop:
        basis = basis_of(metrics.truth_of(labels, kind), metric)
        needed = rows_needed(gap, seen.standard_error, basis, max_drop=max_drop, confidence=confidence)
    return Quality(
        metric=metric,
        against=other.name,
        teacher=other_score,
        student=score,
        difference=gap,
        interval=(round(seen.interval[0], 4), round(seen.interval[1], 4)),
        rows=len(labels),
        groups=seen.groups,
        look=look,
        rows_needed=needed,
    )


def spent(confidence: float, look: int) -> float:
    """The confidence that is left for a look at rows that were judged by before.

    The first look has an error of 1 - confidence, look k after it a part of 1 / (k (k - 1)) of that. These parts sum to
    1, so that however many models are judged by the rows, the chance that any of them passes wrongly is at most twice
    that of the first look alone: the error rate of both ends of its interval together.
    """
    return confidence if look == 1 else 1 - (1 - confidence) / (look * (look - 1))


def _check(
    student: NDArray[np.generic],
    teacher: NDArray[np.generic],
    labels: NDArray[np.generic],
    groups: Groups | None,
    kind: Kind,
    metric: str,
) -> None:
    """Refuse arrays that do not belong together.

    Raises:
        InputError: a wrong shape, kind or metric, or a value that is no number.
    """
    if metric not in metrics.METRICS:
        raise InputError("no such metric", given=metric, remedy=f"one of {', '.join(metrics.METRICS)}")
    if (metric in ("pearson", "spearman")) is not (kind == "regression"):
        raise InputError("the metric is not one of this kind of task", given=f"{metric}, {kind}", remedy="see docs")
    shapes = {"student": student.shape, "teacher": teacher.shape, "labels": labels.shape}
    shapes |= {} if groups is None else {"groups": groups.shape}
    given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if student.ndim != 2 or student.shape != teacher.shape or not len(student):
        raise InputError("both models' answers must be (rows, outputs), of the same rows", given=given)
    if labels.shape != (student.shape if kind == "multilabel" else student.shape[:1]):
        raise InputError(
            "the labels do not fit the answers", given=given, remedy="(rows,); multi-label (rows, outputs)"
        )
    if groups is not None and groups.shape != student.shape[:1]:
        raise InputError("the groups do not fit the answers", given=given, remedy="(rows,)")
    if not all(np.isfinite(each.astype(np.float64)).all() for each in (student, teacher, labels)):
        raise InputError("not every value is a number", given="NaN or infinity", remedy="leave these rows out")
    if kind == "classification" and (labels.min() < 0 or labels.max() >= student.shape[1]):
        given = f"{labels.min()} to {labels.max()}, {student.shape[1]} outputs"
        raise InputError("labels are the places of the outputs, from 0", given=given)
