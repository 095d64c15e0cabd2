"""Count how often decisions are right, with exact intervals."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import spent
from kdc.artifact.contract.rates import parse_bound
from kdc.artifact.contract.terms import Contract, RequiredShare
from kdc.artifact.decision import Abstention, Answered, Covered, LabelSets, Rates
from kdc.artifact.manifest import TaskInfo
from kdc.pipeline.config.aims import required_label
from kdc.pipeline.config.metrics import Flags, Floats, Groups, Labels, Outputs, Slices
from kdc.pipeline.quality.intervals import independent_rows
from kdc.pipeline.quality.shares import rate
from kdc.serving.engine.deciding import answered, decided, in_sets


def measured(
    task: TaskInfo, slice_name: str, probabilities: Outputs, labels: Labels, *, teacher: Outputs | None = None
) -> TaskInfo:
    """The task with the rates of its decisions on "tuning" or "evaluation". The latter adds label sets."""
    changes: dict[str, Any] = {}
    if task.points:
        gets, points = decided(probabilities, task), []
        for point in task.points:
            column = task.labels.index(point.label)
            counted = rates(gets[:, column], having(labels, column))
            points.append(point.model_copy(update={slice_name: counted}))
        changes["points"] = tuple(points)
    if task.abstain is not None:
        counted_answers = answered_rates(probabilities, labels, task.abstain, teacher)
        changes["abstain"] = task.abstain.model_copy(update={slice_name: counted_answers})
    if task.sets is not None and slice_name == "evaluation":
        covered = covered_rates(probabilities, labels, task.sets)
        changes["sets"] = task.sets.model_copy(update={"evaluation": covered})
    return task.model_copy(update=changes)


def having(labels: Labels, column: int) -> Flags:
    labels = np.asarray(labels).astype(np.int64)
    return labels == column if labels.ndim == 1 else labels[:, column] == 1


def rates(gets_label: Flags, has_label: Flags) -> Rates:
    counted = _of_label(gets_label, has_label)
    precision, recall, fpr = (rate(hits.sum(), rows.sum()) for hits, rows in counted.values())
    return Rates(precision=precision, recall=recall, false_alarms=fpr)


def _of_label(gets: Flags, has: Flags) -> dict[str, tuple[Flags, Flags]]:
    return {"precision": (gets & has, gets), "recall": (gets & has, has), "fpr": (gets & ~has, ~has)}


def answered_rates(
    probabilities: Outputs, labels: Labels, abstain: Abstention, teacher: Outputs | None = None
) -> Answered:
    """A task that defers also gets shares of all rows."""
    is_answered, answers, rows = answered(probabilities, abstain), probabilities.argmax(axis=1), len(labels)
    wrong = is_answered & (answers != labels)
    counted = Answered(
        coverage=rate(is_answered.sum(), rows),
        accuracy=rate(is_answered.sum() - wrong.sum(), is_answered.sum()),
    )
    if not abstain.defers:
        return counted
    of_all = {"error": rate(wrong.sum(), rows)}
    if teacher is not None:
        of_all["disagreement"] = rate((is_answered & (answers != teacher.argmax(axis=1))).sum(), rows)
    return counted.model_copy(update=of_all)


def covered_rates(probabilities: Outputs, labels: Labels, sets: LabelSets) -> Covered:
    holds = in_sets(probabilities, sets)
    sizes, rows = holds.sum(axis=1), len(labels)
    return Covered(
        coverage=rate(holds[np.arange(rows), labels.astype(np.int64)].sum(), rows),
        single=rate((sizes == 1).sum(), rows),
        size=round(float(sizes.mean()), 6),
    )


def sweep(probabilities: NDArray[np.floating], has_label: Flags, thresholds: Floats) -> tuple[Floats, Floats, Floats]:
    """Precision (NaN without rows), recall, and share of rows that get the label; (thresholds,) each."""
    gets = probabilities[:, None] >= thresholds
    hits, given = (gets & has_label[:, None]).sum(axis=0), gets.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return hits / given, hits / has_label.sum(), given / len(gets)


def found_rates(
    contract: Contract,
    task: TaskInfo,
    probabilities: Outputs,
    labels: Labels,
    *,
    groups: Groups,
    slices: Slices | None = None,
    look: int = 1,
) -> tuple[RequiredShare, ...]:
    """Measure the shares that a contract requires.

    A pass needs every share, so its interval ends keep the contract's confidence. One missed share suffices for a
    fail, so the other ends get Bonferroni's correction. Rows of a group count as identical. With the design effect,
    verdicts would err twice as often if few rows of few groups are wrong.
    """
    required = contract.limits.require
    if not required:
        return ()
    gets, shares = decided(probabilities, task), []
    counts: dict[str, tuple[Flags, Flags]]
    kept = spent(contract.confidence, look)
    missed = 1 - (1 - kept) / len(required)
    for requirement in required:
        bound, label = parse_bound(requirement), required_label(requirement, task)
        assert bound is not None  # the contract checked it
        if label is None:
            is_answered = np.asarray(gets.any(axis=1))
            right: Flags = gets[np.arange(len(gets)), labels.astype(np.int64)]
            counts = {"coverage": (is_answered, np.ones_like(right)), "accuracy": (right, is_answered)}
        else:
            column = task.labels.index(label)
            counts = _of_label(gets[:, column], having(labels, column))
        hits, rows = counts[bound.measure]
        if bound.slice is not None:
            inside = np.asarray((slices or {})[bound.slice[0]] == bound.slice[1], dtype=np.bool_)
            hits, rows = hits & inside, rows & inside
        counted = rate(
            hits.sum(),
            rows.sum(),
            independent=independent_rows(groups[rows], rows.sum()),
            confidences=(missed, kept) if bound.is_most else (kept, missed),
        )
        if bound.measure == "coverage" and (task.abstain is None or task.abstain.threshold == 0):
            counted = counted.model_copy(update={"low": 1.0})  # every row is answered
        shares.append(RequiredShare(requirement=requirement, rate=counted, look=look))
    return tuple(shares)
