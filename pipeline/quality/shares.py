"""Shares of rows, also of rows in groups: their exact intervals, and how large a share is at least of the rows that a
model is surest of."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from kdc.artifact.contract.rates import Rate
from kdc.pipeline.config.metrics import Flags, Floats, Groups, group_numbers
from kdc.pipeline.quality.intervals import Ends, design_effect, independent_rows

ERROR = 0.05  # most often, of all choices, that a share does not keep its bound in truth
_STEPS = 50  # numbers of rows that are tried: a fiftieth of the most, two fiftieths, ..., the most
_STARTS = np.array([10, 20, 30, 40])  # steps with a part of the error of their own, so that a chain can begin there


Count = int | np.integer


class Surest(NamedTuple):
    """Some of the surest rows, and what is shown of them."""

    threshold: float  # a row is one of them whose probability is at least this
    rows: int  # how many
    bound: float | None  # the share that is shown to be right, where that is less than was asked for

    def note(self, rows: int) -> str:
        """A sentence on the bound that `rows` rows show instead of the requested one."""
        assert self.bound is not None
        return f"{floor4(self.bound)} is shown, by the {self.rows} surest of {rows} rows"


def floor4(share: float) -> str:
    """A share with four digits, rounded down: who asks for what is shown gets it."""
    return f"{math.floor(share * 1e4) / 1e4:.4f}"


def at_least(error: Floats | float, right: Floats | float, wrong: Floats | float) -> Floats:
    """The lower end of the interval of a share, above the true share with a chance of `error` (Clopper and Pearson
    1934, Biometrika 26:404). Neither number of rows needs to be whole: rows in groups count as fewer."""
    return np.where(np.greater(right, 0), beta.ppf(error, np.maximum(right, 1e-9), np.add(wrong, 1)), 0.0)


def rate(hits: Count, of: Count, *, independent: float | None = None, confidences: Ends = (0.95, 0.95)) -> Rate:
    """A share with its exact interval; of nothing the interval is everything.

    Args:
        independent: as how many independent rows `of` count; None: as so many.
        confidences: of the two-sided intervals of which the lower and the upper end are taken.
    """
    hits, of = int(hits), int(of)
    if not of:
        return Rate(hits=0, of=0, low=0.0, high=1.0)
    right, wrong = (count * (independent or of) / of for count in (hits, of - hits))
    below, above = ((1 - confidence) / 2 for confidence in confidences)
    low, high = at_least(below, right, wrong), 1 - at_least(above, wrong, right)
    return Rate(hits=hits, of=of, low=round(float(low), 6), high=round(float(high), 6))


def effect_of_least(values: NDArray[np.floating], share: float, groups: Groups | None) -> float:
    """The design effect of being one of a `share` of the rows, those with the least values.

    This share is the one that a bound allows. A threshold leaves fewer rows on the wrong side, and fewer rows show less
    of how alike the rows of a group are: a lucky slice would show more for two reasons at once.
    """
    least = np.zeros(len(values))
    least[np.argsort(values, kind="stable")[: math.ceil(share * len(values) - 1e-9)]] = 1
    return design_effect(least, groups)


def surest_right(
    confidence: NDArray[np.floating], right: Flags, bound: float, *, most: int, groups: Groups | None = None
) -> Surest:
    """As many of the surest rows as leave it shown that at least a share `bound` of such rows is right.

    The k surest rows are tried, for k up to `most` in fifty steps. Each k has a hypothesis: rows above the probability
    of the next row are right less often than the bound. The test is exact, since given that probability the k rows are
    independent draws, and the number of right rows is binomial. Rows in groups count as fewer, by the design effect of
    being right. All rows that are tried tell how alike the rows of a group are, where the first few tell too little.

    The hypotheses share `ERROR` by the fallback procedure (Wiens 2003, Pharmaceutical Statistics 2:211; Wiens and
    Dmitrienko 2005, J. Biopharm. Stat. 15:929): a quarter belongs to each of `_STARTS`, and a rejected hypothesis
    leaves its share to the next. A wrong rejection would choose a threshold that does not keep the bound on other rows;
    its chance is at most `ERROR`. The choice is the largest k that is rejected, else the start with the highest bound.

    Args:
        confidence: (rows,) the probability of what is right or not.
        bound: share, 0 to 1.
        most: rows, at least 1; it must not depend on which rows are right.
    """
    steps = np.ceil(most * np.arange(1, _STEPS + 1) / _STEPS).astype(np.int64)
    rows, thresholds, rights = prefixes(confidence, right, steps)
    errors = np.zeros(len(rows))  # steps that end at one probability are one hypothesis, with the error of all
    starts = np.searchsorted(rows, steps[_STARTS - 1])
    np.add.at(errors, starts, ERROR / len(_STARTS))
    effect = _effects(confidence, right, rows, groups)
    hits, misses = rights / effect, (rows - rights) / effect
    # The chance of so many right ones or more if the share were the bound, by the beta distribution.
    chances = np.where(hits > 0, beta.cdf(bound, np.maximum(hits, 1e-9), misses + 1), 1.0)
    carried, rejected = 0.0, []
    for number, (chance, error) in enumerate(zip(chances, errors, strict=True)):
        carried += error
        if chance <= carried:
            rejected.append(number)
        else:
            carried = 0.0
    if rejected:
        largest = rejected[-1]
        return Surest(float(thresholds[largest]), int(rows[largest]), None)
    low = at_least(errors, hits, misses)[starts]
    best = starts[low.argmax()]
    return Surest(float(thresholds[best]), int(rows[best]), float(low.max()))


def _effects(
    confidence: NDArray[np.floating], right: Flags, counts: NDArray[np.int64], groups: Groups | None
) -> Floats:
    """(counts,) the design effect of being right among so many of the surest rows."""
    if groups is None:
        return np.ones(len(counts))
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")[: counts[-1]]
    hits, group = np.asarray(right, dtype=np.float64)[order], group_numbers(groups, len(right))[order]
    alike = len(order) / independent_rows(group, len(order))  # the design effect if the rows of each group are alike
    correlation = min(1.0, (design_effect(hits, group) - 1) / (alike - 1)) if alike > 1 else 1.0
    return np.array([design_effect(hits[:count], group[:count], correlation=correlation) for count in counts])


def prefixes(
    confidence: NDArray[np.floating], right: Flags, counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Of the surest rows so many, or as many more as have the last one's probability: rows of one probability are never
    parted. Counts are from 1 to the number of rows; of counts that end at one probability one is kept.

    Returns:
        How many rows, the threshold from which on a row is one of them, and how many of them are right.
    """
    thresholds, hits, misses = by_threshold(confidence, right)
    rows = (hits + misses).astype(np.int64)
    last = np.unique(np.searchsorted(rows, counts))
    return rows[last], thresholds[last], hits[last]


def by_threshold(probabilities: NDArray[np.floating], right: Flags) -> tuple[Floats, Floats, Floats]:
    """All thresholds that differ, falling, with the right and the wrong rows from each one on. A threshold is halfway
    between two probabilities, so that rounding moves no row."""
    distinct, number = np.unique(np.asarray(probabilities, dtype=np.float64), return_inverse=True)
    hits, misses = (np.bincount(number, weights=rows, minlength=len(distinct))[::-1] for rows in (right, ~right))
    falling = distinct[::-1]
    return np.append((falling[:-1] + falling[1:]) / 2, 0.0), hits.cumsum(), misses.cumsum()
