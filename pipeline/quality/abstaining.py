"""Which rows a model should answer, so that a stated share of its answers is right. Plain arrays and numbers."""

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.decision import Abstention, Answered
from kdc.pipeline.config.aims import Aim
from kdc.pipeline.config.metrics import Groups
from kdc.pipeline.quality.operating import Chosen, rate
from kdc.pipeline.quality.shown import floor4, surest_right
from kdc.serving.engine.deciding import answered


def choose_answered(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], aim: Aim, *, groups: Groups | None = None
) -> Chosen:
    """The least probability of an answer, such that the share of right answers is shown to keep an aim, by rows whose
    labels are known: `kdc.pipeline.quality.shown.surest_right` of all rows.

    Args:
        confidence: (rows,) the probability of each row's label.
        right: (rows,) whether that label is the row's.
        aim: what is asked.
        groups: (rows,) which rows belong together; None where each stands alone.
    """
    assert aim.bound is not None
    if aim.measure == "fixed":
        return Chosen(aim.bound)
    found = surest_right(confidence, right, aim.bound, most=len(right), groups=groups)
    if found.bound is None:
        return Chosen(found.threshold)
    return Chosen(found.threshold, reached=False, note=found.note(len(right)), shown=floor4(found.bound))


def answered_rates(probabilities: NDArray[np.floating], labels: NDArray[np.generic], abstain: Abstention) -> Answered:
    """How many rows are answered, and how many of them rightly, with exact intervals.

    Args:
        probabilities: (rows, outputs).
        labels: (rows,) class ids.
        abstain: from which probability on a row is answered.
    """
    is_answered = answered(probabilities, abstain)
    hits = int((is_answered & (probabilities.argmax(axis=1) == labels)).sum())
    count = int(is_answered.sum())
    return Answered(coverage=rate(count, len(labels)), accuracy=rate(hits, count))
