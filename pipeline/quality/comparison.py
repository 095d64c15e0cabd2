"""Compare a student with another model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdc.artifact.contract.judgement import judge_drop, quantile_of, spent
from kdc.artifact.contract.terms import Contract, Quality, Verdict, replace
from kdc.artifact.task_kinds import KINDS, Kind
from kdc.common.errors import InputError
from kdc.pipeline.config import metrics
from kdc.pipeline.config.metrics import Groups, Labels, Outputs
from kdc.pipeline.quality.intervals import Difference, difference

_POWER = 0.8
_MOST_TIMES, _HALVINGS = 1e6, 30  # largest factor on the row count; bisection steps
_WHOLE = 100.0  # points: with too few groups, the interval of equal models reaches down so far


@dataclass(frozen=True)
class Other:
    name: str  # "teacher" or a baseline
    logits: Outputs


class Shown(Quality):
    verdict: Verdict


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
    """Whether rows show that a model loses at most `max_drop` points against another model.

    `pass`: the whole confidence interval keeps to the limit. `fail`: the whole interval breaks it. `not shown`: the
    rows are too few. docs/benchmarks/verdicts.md states the error rates.

    Args:
        student, teacher: (rows, outputs) logits or scores; multi-label needs logits.
        labels: (rows,) class numbers from 0, (rows, outputs) in {0, 1} for multi-label, or (rows,) numbers.
        kind: "classification", "multilabel" or "regression".
        metric: "accuracy", "f1" (of class 1), "macro_f1", "matthews", "pearson" or "spearman".
        max_drop: points, 0 to 100.
        confidence: of the two-sided interval, within (0.5, 0.99].
        groups: (rows,) one value for rows that are not independent, such as a user's; None: all rows are independent.

    Returns:
        `verdict`, `difference` (student minus teacher, in points), `interval`, `groups` (their number) and
        `rows_needed` (about how many would show a pass).

    Raises:
        InputError: the arrays do not fit together, or a value is out of range.
    """
    try:
        logits, others, truth = (np.asarray(array, dtype=np.float64) for array in (student, teacher, labels))
        members = None if groups is None else _numbered(np.asarray(groups))
    except (TypeError, ValueError) as error:
        raise InputError("the arrays do not hold numbers, in rows of one length", given=error) from None
    _check(logits, others, truth, members, kind, metric)
    contract = replace(Contract(), {"max_drop": max_drop, "confidence": confidence})
    if contract.limits.max_drop is None:
        raise InputError("max_drop is missing", given=max_drop, remedy="points of the metric, such as 1.0")
    quality = compare(logits, Other("teacher", others), truth, kind, metric, contract=contract, groups=members)
    return Shown(**quality.model_dump(), verdict=judge_drop(contract, quality))


def _numbered(groups: NDArray[np.generic]) -> Groups:
    if any(name is None or name != name for name in groups.ravel().tolist()):  # NaN differs from itself
        raise InputError("a row has no group", given="None or NaN", remedy="give each a group of its own")
    return np.unique(groups.astype(str), return_inverse=True)[1].reshape(groups.shape)


def compare(
    student: Outputs,
    other: Other,
    labels: Labels,
    kind: Kind,
    metric: str,
    *,
    contract: Contract,
    groups: Groups | None = None,
    look: int = 1,
) -> Quality:
    """Compare two models. The contract must have a `max_drop`."""
    max_drop = contract.limits.max_drop
    assert max_drop is not None
    score, other_score = (
        metrics.compute(logits, labels, kind, (metric,))[metric] for logits in (student, other.logits)
    )
    confidence = spent(contract.confidence, look)
    observed = difference(student, other.logits, labels, kind, metric, groups=groups, confidence=confidence)
    gap, needed = round(score - other_score, 4), None
    if observed.interval[0] < -max_drop:
        # With few rows or groups, the interval is wider than its standard error says.
        more = rows_needed(gap, gap - observed.interval[0], observed, max_drop=max_drop, confidence=confidence)
        needed = None if more is None else max(math.ceil(len(labels) * more), len(labels) + 1)
    return Quality(
        metric=metric,
        against=other.name,
        teacher=other_score,
        student=score,
        difference=gap,
        interval=(round(observed.interval[0], 4), round(observed.interval[1], 4)),
        rows=len(labels),
        groups=observed.groups,
        look=look,
        rows_needed=needed,
    )


def rows_needed(gap: float, below: float, observed: Difference, *, max_drop: float, confidence: float) -> float | None:
    """The factor on the row count that would show a pass, with a power of 80 %.

    None if `gap` is at or beyond the limit.

    `gap` must exceed -max_drop by z_confidence + z_power standard errors (Lachin 1981, Controlled Clinical Trials
    2:93-113, equation 3), and by what unobserved errors may cost (`unseen`).

    Args:
        gap: student minus teacher, in points.
        below: points from the interval's lower end to `gap`.
    """
    room = gap + max_drop
    if room <= 0:
        return None
    times, unseen = 0.0, observed.unseen(1.0)
    if observed.standard_error:
        times = ((1 + NormalDist().inv_cdf(_POWER) / quantile_of(confidence)) * below / room) ** 2
    elif unseen < below < _WHOLE:  # few or unequal groups widened the interval
        room *= unseen / below
    fewest, most = 0.0, math.log(_MOST_TIMES)
    for _ in range(_HALVINGS):
        middle = (fewest + most) / 2
        fewest, most = (middle, most) if observed.unseen(math.exp(middle)) > room else (fewest, middle)
    return max(times, math.exp(most))


def _check(student: Outputs, teacher: Outputs, labels: Labels, groups: Groups | None, kind: Kind, metric: str) -> None:
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError("no such kind of task", given=kind, remedy=f"one of {', '.join(KINDS)}")
    traits = KINDS[kind]
    if metric not in (known := metrics.fitting(kind)):
        raise InputError(f"no such metric of {kind}", given=metric, remedy=f"one of {', '.join(known)}")
    arrays = {"student": student, "teacher": teacher, "labels": labels} | ({} if groups is None else {"groups": groups})
    given = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    if student.ndim != 2 or student.shape != teacher.shape or not student.size:
        raise InputError("both models' answers must be (rows, outputs), of the same rows", given=given)
    rows, outputs = student.shape
    if not traits.has_labels and outputs != 1:
        raise InputError("a regression has one output", given=given, remedy="answers of shape (rows, 1)")
    if labels.shape != (student.shape if traits.has_lists else (rows,)):
        remedy = "(rows,); multi-label (rows, outputs)"
        raise InputError("the labels do not fit the answers", given=given, remedy=remedy)
    if groups is not None and groups.shape != (rows,):
        raise InputError("the groups do not fit the answers", given=given, remedy="(rows,)")
    if not all(np.isfinite(array).all() for array in (student, teacher, labels)):
        raise InputError("not every value is a number", given="NaN or infinity", remedy="leave these rows out")
    if traits.is_exclusive and not np.isin(labels, np.arange(outputs)).all():
        given = f"{labels.min():g} to {labels.max():g}, {outputs} outputs"
        raise InputError("labels are indices of the outputs, whole numbers from 0", given=given)
    if traits.has_lists and not np.isin(labels, (0, 1)).all():
        raise InputError("labels of multi-label rows are 0 or 1", given=f"{labels.min():g} to {labels.max():g}")
