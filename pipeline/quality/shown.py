"""Of which surest rows of a model it is shown that a stated share is right. Plain arrays in, plain numbers out."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

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


def surest_right(confidence: NDArray[np.floating], right: NDArray[np.bool_], bound: float, *, most: int) -> Surest:
    """As many of the surest rows as leave it shown that at least a share `bound` of such rows is right.

    The k surest rows are tried, for k up to `most` in fifty steps. That the rows above the probability of the next one
    are right less often than the bound is a hypothesis for each k, tested exactly: given that probability, the k rows
    above it are independent draws, of which a binomial number is right. The hypotheses share `ERROR` by the fallback
    procedure (Wiens 2003, Pharmaceutical Statistics 2:211; Wiens and Dmitrienko 2005, J. Biopharm. Stat. 15:929): a
    quarter belongs to each of `_STARTS`, and a hypothesis that is rejected leaves what it had to the next. So the
    chance that any is rejected wrongly, and with it that a threshold is chosen which does not keep the bound on other
    rows, is at most `ERROR`. The choice is the largest k that is rejected. Where none is, it is that start of which
    most is shown.

    Args:
        confidence: (rows,) the probability of what is right or not.
        right: (rows,) whether it is right.
        bound: share, 0 to 1.
        most: rows, at least 1; it must not depend on which rows are right.
    """
    steps = np.ceil(most * np.arange(1, _STEPS + 1) / _STEPS).astype(np.int64)
    tried = prefixes(confidence, right, steps)
    own = np.zeros(len(tried.rows))  # steps that end at one probability are one hypothesis, with the error of all
    starts = np.searchsorted(tried.rows, steps[_STARTS - 1])
    np.add.at(own, starts, ERROR / len(_STARTS))
    chance = binom.sf(tried.right - 1, tried.rows, bound)  # of so many right ones or more, were they at the bound
    carried, shown = 0.0, -1
    for place in range(len(own)):
        carried += own[place]
        if chance[place] <= carried:
            shown = place
        else:
            carried = 0.0
    if shown >= 0:
        return Surest(float(tried.threshold[shown]), int(tried.rows[shown]), None)
    # Clopper's and Pearson's lower ends; where no row is right it is not a number.
    low = np.nan_to_num(beta.ppf(own, tried.right, tried.rows - tried.right + 1))[starts]
    best = starts[low.argmax()]
    return Surest(float(tried.threshold[best]), int(tried.rows[best]), float(low.max()))


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
