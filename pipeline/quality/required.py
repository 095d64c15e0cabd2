"""The shares that a contract asks of decisions, counted on labelled rows."""

import numpy as np

from kdc.artifact.contract.judgement import spent
from kdc.artifact.contract.rates import parse_bound
from kdc.artifact.contract.required import Found
from kdc.artifact.contract.terms import Contract
from kdc.artifact.manifest import TaskInfo
from kdc.pipeline.config.aims import required_label
from kdc.pipeline.config.metrics import Flags, Groups, Labels, Outputs
from kdc.pipeline.quality.intervals import independent_rows
from kdc.pipeline.quality.operating import having
from kdc.pipeline.quality.shares import rate
from kdc.serving.engine.deciding import decided


def found_rates(
    contract: Contract, task: TaskInfo, probabilities: Outputs, labels: Labels, *, groups: Groups, look: int = 1
) -> tuple[Found, ...]:
    """Count what a contract requires.

    That a share is kept has the contract's confidence for each of them: all have to be shown. That one is missed would
    come by chance more often the more shares there are, so that these ends of the intervals divide one share's error.

    Args:
        task: with the artifact's thresholds.
        groups: which rows belong together: they count as if those of each group were alike. The design effect that
            these rows show counts more of them, but doubles the errors where few rows of few groups are wrong.
        look: which look at these rows it is to judge by them.
    """
    required = contract.limits.require
    if not required:
        return ()
    gets, found = decided(probabilities, task), []
    kept = spent(contract.confidence, look)
    missed = 1 - (1 - kept) / len(required)
    for requirement in required:
        asked = parse_bound(requirement)
        assert asked is not None  # a contract cannot be made otherwise
        hits, rows = _counted(asked.measure, required_label(requirement, task), task, gets, labels)
        counted = rate(
            int(hits.sum()),
            int(rows.sum()),
            independent=independent_rows(np.asarray(groups)[rows], int(rows.sum())),
            confidences=(missed, kept) if asked.is_most else (kept, missed),
        )
        if asked.measure == "coverage" and (task.abstain is None or task.abstain.threshold == 0):
            counted = counted.model_copy(update={"low": 1.0})  # any row is answered
        found.append(Found(requirement=requirement, rate=counted, look=look))
    return tuple(found)


def _counted(measure: str, label: str | None, task: TaskInfo, gets: Flags, labels: Labels) -> tuple[Flags, Flags]:
    """The rows that count as kept, and those of which they are a share; `gets` is (rows, outputs)."""
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
