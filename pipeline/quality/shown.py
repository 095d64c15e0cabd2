"""What rows show of a share: how large it is at least, also of rows in groups. Plain arrays in, plain numbers out."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from kdc.pipeline.config.metrics import Floats, Groups, group_numbers
from kdc.pipeline.quality.hidden import as_many
from kdc.pipeline.quality.intervals import design_effect

ERROR = 0.05  # most often, of all choices, that a share does not keep its bound in truth
_STEPS = 50  # numbers of rows that are tried: a fiftieth of the most, two fiftieths, ..., the most
_STARTS = np.array([10, 20, 30, 40])  # steps with a part of the error of their own, so that a chain can begin there


class Prefixes(NamedTuple):
    """The surest rows of some, and how many of them are right; (counts,) each."""

    rows: NDArray[np.int64]  # how many
    threshold: NDArray[np.float64]  # a row is one of them whose probability is at least this
    right: NDArray[np.int64]


class Surest(NamedTuple):
    """Some of the surest rows, and what is shown of them."""

    threshold: float  # a row is one of them whose probability is at least this
    rows: int  # how many
    bound: float | None  # the share that is shown to be right, where that is less than was asked for

    def note(self, rows: int) -> str:
        """What is shown in place of what was asked for, of so many rows."""
        assert self.bound is not None
        return f"{floor4(self.bound)} is shown, by the {self.rows} surest of {rows} rows"


def floor4(share: float) -> str:
    """A share with four digits, rounded down: who asks for what is shown gets it."""
    return f"{math.floor(share * 1e4) / 1e4:.4f}"


def at_least(error: Floats | float, right: Floats, wrong: Floats) -> Floats:
    """The lower end of the interval of a share, above the true share with a chance of `error` (Clopper and Pearson
    1934, Biometrika 26:404). Neither number of rows needs to be whole: rows in groups count as fewer."""
    return np.where(right > 0, beta.ppf(error, np.maximum(right, 1e-9), wrong + 1), 0.0)


def independent_rows(groups: Groups | None, rows: int) -> float:
    """As how many independent rows these count if the rows of each group are alike (Kish 1965, section 11.7)."""
    return as_many(np.bincount(group_numbers(groups, rows)).astype(np.float64))


def effect_of_least(values: NDArray[np.floating], share: float, groups: Groups | None) -> float:
    """The design effect of being one of a `share` of the rows, those with the least values.

    This share is the one that a bound allows. A threshold leaves fewer rows on the wrong side, and fewer rows show less
    of how alike the rows of a group are: a lucky slice would show more for two reasons at once.
    """
    least = np.zeros(len(values))
    least[np.argsort(values, kind="stable")[: math.ceil(share * len(values) - 1e-9)]] = 1
    return design_effect(least, groups)


def surest_right(
    confidence: NDArray[np.floating],
    right: NDArray[np.bool_],
    bound: float,
    *,
    most: int,
    groups: Groups | None = None,
) -> Surest:
    """As many of the surest rows as leave it shown that at least a share `bound` of such rows is right.

    The k surest rows are tried, for k up to `most` in fifty steps. That the rows above the probability of the next one
    are right less often than the bound is a hypothesis for each k, tested exactly: given that probability, the k rows
    above it are independent draws, of which a binomial number is right. Rows in groups count as fewer, by the design
    effect of being right; what few rows do not show of it is taken from all that are tried.

    The hypotheses share `ERROR` by the fallback procedure (Wiens 2003, Pharmaceutical Statistics 2:211; Wiens and
    Dmitrienko 2005, J. Biopharm. Stat. 15:929): a quarter belongs to each of `_STARTS`, and a hypothesis that is
    rejected leaves what it had to the next. So the chance that any is rejected wrongly, and with it that a threshold is
    chosen which does not keep the bound on other rows, is at most `ERROR`. The choice is the largest k that is
    rejected. Where none is, it is that start of which most is shown.

    Args:
        confidence: (rows,) the probability of what is right or not.
        right: (rows,) whether it is right.
        bound: share, 0 to 1.
        most: rows, at least 1; it must not depend on which rows are right.
        groups: (rows,) which rows belong together; None where each stands alone.
    """
    steps = np.ceil(most * np.arange(1, _STEPS + 1) / _STEPS).astype(np.int64)
    tried = prefixes(confidence, right, steps)
    own = np.zeros(len(tried.rows))  # steps that end at one probability are one hypothesis, with the error of all
    starts = np.searchsorted(tried.rows, steps[_STARTS - 1])
    np.add.at(own, starts, ERROR / len(_STARTS))
    effect = _effects(confidence, right, tried.rows, groups)
    hits, misses = tried.right / effect, (tried.rows - tried.right) / effect
    # The chance of so many right ones or more if the share were the bound, by the beta distribution.
    chance = np.where(hits > 0, beta.cdf(bound, np.maximum(hits, 1e-9), misses + 1), 1.0)
    carried, shown = 0.0, -1
    for place in range(len(own)):
        carried += own[place]
        if chance[place] <= carried:
            shown = place
        else:
            carried = 0.0
    if shown >= 0:
        return Surest(float(tried.threshold[shown]), int(tried.rows[shown]), None)
    low = at_least(own, hits, misses)[starts]
    best = starts[low.argmax()]
    return Surest(float(tried.threshold[best]), int(tried.rows[best]), float(low.max()))


def _effects(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], counts: NDArray[np.int64], groups: Groups | None
) -> Floats:
    """(counts,) the design effect of being right among so many of the surest rows."""
    if groups is None:
        return np.ones(len(counts))
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")[: counts[-1]]
    hits, group = np.asarray(right, dtype=np.float64)[order], group_numbers(groups, len(right))[order]
    alike = len(order) / independent_rows(group, len(order))  # the design effect if the rows of each group are alike
    correlation = min(1.0, (design_effect(hits, group) - 1) / (alike - 1)) if alike > 1 else 1.0
    return np.array([design_effect(hits[:count], group[:count], correlation=correlation) for count in counts])


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
