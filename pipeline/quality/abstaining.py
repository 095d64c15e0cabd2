"""Which rows a model should answer, so that a stated share of its answers is right. Plain arrays and numbers."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from kdc.artifact.decision import Abstention, Answered
from kdc.pipeline.config.aims import Aim
from kdc.pipeline.quality.operating import Chosen, rate
from kdc.serving.engine.deciding import answered

_STEPS = 50  # shares of the rows that are tried: 2 %, 4 %, ..., all
_STARTS = np.array([10, 20, 30, 40])  # steps with a part of the error of their own, so that a chain can begin there
_ERROR = 0.05  # most often, of all choices, that the share of right answers is below the aim in truth


class Prefixes(NamedTuple):
    """The surest rows of some, and how many of them are right; (counts,) each."""

    rows: NDArray[np.int64]  # how many
    threshold: NDArray[np.float64]  # a row is one of them whose probability is at least this
    right: NDArray[np.int64]


def choose_answered(confidence: NDArray[np.floating], right: NDArray[np.bool_], aim: Aim) -> Chosen:
    """The least probability of an answer, such that the share of right answers keeps an aim, by rows whose labels are
    known.

    The k surest rows are tried, k growing in steps of a fiftieth of all rows. That the answers above the probability of
    the next row are right less often than the aim is a hypothesis for each k, tested exactly: given that probability,
    the k rows above it are independent draws, of which a binomial number is right. The hypotheses share the error of
    5 % by the fallback procedure (Wiens 2003, Pharmaceutical Statistics 2:211; Wiens and Dmitrienko 2005, J. Biopharm.
    Stat. 15:929): a quarter belongs to each of `_STARTS`, and a hypothesis that is rejected leaves what it had to the
    next. So the chance that any hypothesis is rejected wrongly, and with it that a threshold is chosen which does not
    keep the aim on other rows, is at most 5 %. The choice is the largest k that is rejected. Where none is, it is that
    start of which most is shown.

    Args:
        confidence: (rows,) the probability of each row's label.
        right: (rows,) whether that label is the row's.
        aim: what is asked.
    """
    assert aim.bound is not None
    if aim.measure == "fixed":
        return Chosen(aim.bound)
    steps = np.ceil(len(right) * np.arange(1, _STEPS + 1) / _STEPS).astype(np.int64)
    tried = prefixes(confidence, right, steps)
    own = np.zeros(len(tried.rows))  # steps that end at one probability are one hypothesis, with the error of all
    starts = np.searchsorted(tried.rows, steps[_STARTS - 1])
    np.add.at(own, starts, _ERROR / len(_STARTS))
    chance = binom.sf(tried.right - 1, tried.rows, aim.bound)  # of so many right answers or more, were they at the aim
    carried, shown = 0.0, -1
    for place in range(len(own)):
        carried += own[place]
        if chance[place] <= carried:
            shown = place
        else:
            carried = 0.0
    if shown >= 0:
        return Chosen(float(tried.threshold[shown]))
    # Clopper's and Pearson's lower ends; of no right answer it is not a number.
    low = np.nan_to_num(beta.ppf(own, tried.right, tried.rows - tried.right + 1))[starts]
    best = starts[low.argmax()]
    note = f"at best {low.max():.4f} is shown, by the {tried.rows[best]} surest of {len(right)} rows"
    return Chosen(float(tried.threshold[best]), reached=False, note=note)


def prefixes(confidence: NDArray[np.floating], right: NDArray[np.bool_], counts: NDArray[np.int64]) -> Prefixes:
    """Of the surest rows so many, or as many more as have the last one's probability: rows of one probability are never
    parted. Counts are from 1 to the number of rows; of counts that end at one probability one is kept."""
    values = np.asarray(confidence, dtype=np.float64)
    falling, sizes = np.unique(-values, return_counts=True)
    ends, falling = sizes.cumsum(), -falling
    last = np.unique(np.searchsorted(ends, counts))
    between = np.append((falling[:-1] + falling[1:]) / 2, 0.0)  # halfway to the next probability, so that none is near
    hits = np.asarray(right)[np.argsort(-values, kind="stable")].cumsum()
    return Prefixes(ends[last], between[last], hits[ends[last] - 1])


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
