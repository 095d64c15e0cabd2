"""The shares that a contract asks of decisions, counted on labelled rows."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from kdc.artifact.contract.judgement import spent
from kdc.artifact.contract.rates import Rate, parse_bound
from kdc.artifact.contract.terms import Contract, RequiredShare
from kdc.artifact.manifest import TaskInfo
from kdc.pipeline.config.aims import required_label
from kdc.pipeline.config.metrics import Groups
from kdc.pipeline.quality.operating import having, rate
from kdc.pipeline.quality.shown import independent_rows
from kdc.serving.engine.deciding import decided

Flags = NDArray[np.bool_]


def found_rates(
    contract: Contract,
    task: TaskInfo,
    probabilities: NDArray[np.floating],
    labels: NDArray[np.generic],
    *,
    groups: Groups,
    look: int = 1,
) -> tuple[RequiredShare, ...]:
    """Count what a contract requires.

    That a share is kept has the contract's confidence for each of them: all have to be shown. That one is missed would
    come by chance more often the more shares there are, so that these ends of the intervals divide one share's error.

    Args:
        contract: what is asked.
        task: with the artifact's thresholds.
        probabilities: (rows, outputs).
        labels: (rows,) class ids, or (rows, outputs) in {0, 1} for multi-label.
        groups: (rows,) which rows belong together: they count as if those of each group were alike. The design effect
            that these rows show counts more of them, but doubles the errors where few rows of few groups are wrong.
        look: which look at these rows it is to judge by them.
    """
    required = contract.limits.require
    if not required:
        return ()
    gets = decided(probabilities, task)
    kept = spent(contract.confidence, look)
    missed = 1 - (1 - kept) / len(required)
    found = []
    for requirement in required:
        asked = parse_bound(requirement)
        assert asked is not None  # a contract cannot be made otherwise
        hits, rows = _counted(asked.measure, required_label(requirement, task), task, gets, labels)
        confidences = (missed, kept) if asked.is_most else (kept, missed)
        counted = _rate(hits, rows, groups, *confidences)
        if asked.measure == "coverage" and (task.abstain is None or task.abstain.threshold == 0):
            counted = counted.model_copy(update={"low": 1.0})  # any row is answered
        found.append(RequiredShare(requirement=requirement, rate=counted, look=look))
    return tuple(found)


def _counted(
    measure: str, label: str | None, task: TaskInfo, gets: Flags, labels: NDArray[np.generic]
) -> tuple[Flags, Flags]:
    """The rows that count as kept, and those of which they are a share; (rows,) each."""
    if label is None:
        answered = np.asarray(gets.any(axis=1))
        if measure == "coverage":
            return answered, np.ones_like(answered)
        right: Flags = gets[np.arange(len(gets)), labels.astype(np.int64)]
        return right, answered
    place = task.labels.index(label)
    given, has = gets[:, place], having(labels, place)
    if measure == "fpr":
        return given & ~has, ~has
    return given & has, given if measure == "precision" else has


def _rate(hits: Flags, rows: Flags, groups: Groups, low: float, high: float) -> Rate:
    """A share, with the lower end of one two-sided Clopper-Pearson interval and the upper end of another."""
    of, count = int(rows.sum()), int(hits.sum())
    if not of:
        return rate(0, 0)
    shrunk = independent_rows(np.asarray(groups)[rows], of) / of
    right, wrong = shrunk * count, shrunk * (of - count)
    return Rate(
        hits=count,
        of=of,
        low=round(float(beta.ppf((1 - low) / 2, right, wrong + 1)), 6) if count else 0.0,
        high=round(float(beta.ppf(1 - (1 - high) / 2, right + 1, wrong)), 6) if count < of else 1.0,
    )
