"""Exact intervals of shares, and thresholds for the surest rows."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from kdc.artifact.contract.rates import Rate
from kdc.pipeline.config.metrics import Flags, Floats, Groups, group_numbers
from kdc.pipeline.quality.intervals import Ends, design_effect, independent_rows

ERROR = 0.05  # chance that a chosen threshold breaks its bound
_STEPS = 50  # sets of surest rows
_STARTS = np.array([10, 20, 30, 40])  # each of these steps gets a quarter of `ERROR`


Count = int | np.integer


class Surest(NamedTuple):
    threshold: float  # least probability of these rows
    rows: int
    bound: float | None  # the share shown; None: the requested one

    def note(self, rows: int) -> str:
        assert self.bound is not None
        return f"{floor4(self.bound)} is shown, by the {self.rows} surest of {rows} rows"


def floor4(share: float) -> str:
    """A share with four digits, rounded down, so it is still shown when requested."""
    return f"{math.floor(share * 1e4) / 1e4:.4f}"


def at_least(error: Floats | float, right: Floats | float, wrong: Floats | float) -> Floats:
    """The lower end of a share's exact interval, above the true share with a chance of at most `error` (Clopper and
    Pearson 1934, Biometrika 26:404)."""
    return np.where(np.greater(right, 0), beta.ppf(error, np.maximum(right, 1e-9), np.add(wrong, 1)), 0.0)


def rate(hits: Count, of: Count, *, independent: float | None = None, confidences: Ends = (0.95, 0.95)) -> Rate:
    """A share with its exact interval; [0, 1] if `of` is 0.

    Args:
        independent: the effective number of the rows that `of` counts.
        confidences: two-sided, for the lower and the upper end.
    """
    hits, of = int(hits), int(of)
    if not of:
        return Rate(hits=0, of=0, low=0.0, high=1.0)
    right, wrong = (count * (independent or of) / of for count in (hits, of - hits))
    below, above = ((1 - confidence) / 2 for confidence in confidences)
    low, high = at_least(below, right, wrong), 1 - at_least(above, wrong, right)
    return Rate(hits=hits, of=of, low=round(float(low), 6), high=round(float(high), 6))


def effect_of_least(values: NDArray[np.floating], share: float, groups: Groups | None) -> float:
    """The design effect of being among the `share` of rows with the lowest `values`.

    `share` is the error rate that a bound allows. With the observed rate, luck would count twice.
    """
    least = np.zeros(len(values))
    least[np.argsort(values, kind="stable")[: math.ceil(share * len(values) - 1e-9)]] = 1
    return design_effect(least, groups)


def surest_right(
    confidence: NDArray[np.floating], right: Flags, bound: float, *, most: int, groups: Groups | None = None
) -> Surest:
    """The largest set of surest rows whose share of right rows is shown to be at least `bound`.

    Fifty sets are tried, by the fallback procedure (docs/explanation/decisions.md). The tests are exact: given the
    row after a set, the number of right rows in the set is binomial. Grouped rows count as fewer, by the design effect
    of being right.

    Args:
        confidence: (rows,) 0 to 1.
        bound: 0 to 1.
        most: largest set; must not depend on which rows are right.
    """
    steps = np.ceil(most * np.arange(1, _STEPS + 1) / _STEPS).astype(np.int64)
    rows, thresholds, rights = prefixes(confidence, right, steps)
    errors = np.zeros(len(rows))  # equal steps are one hypothesis, and add their errors
    starts = np.searchsorted(rows, steps[_STARTS - 1])
    np.add.at(errors, starts, ERROR / len(_STARTS))
    effect = _effects(confidence, right, rows, groups)
    hits, misses = rights / effect, (rows - rights) / effect
    # P-values: the chance of as many right rows if the true share were `bound`.
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


def surest_of_all(confidence: NDArray[np.floating], right: Flags, bound: float, groups: Groups | None) -> Surest:
    """The largest set of surest rows for which at least `bound` of all rows are shown to be right or outside the set.

    Exact tests go from the strictest threshold to the first that fails. They need no correction, since the share of
    wrong rows inside only grows (Wilks 1941, Ann. Math. Stat. 12:91).
    """
    thresholds, hits, wrong = by_threshold(confidence, right)
    rows = len(right)
    effect = effect_of_least(np.where(right, confidence, -np.asarray(confidence)), 1 - bound, groups)
    low = at_least(ERROR, (rows - wrong) / effect, wrong / effect)
    largest = int((low >= bound).sum()) - 1  # `low` falls with the threshold
    if largest < 0:
        return Surest(float(thresholds[0]), rows, float(low[0]))
    return Surest(float(thresholds[largest]), int(hits[largest] + wrong[largest]), None)


def _effects(
    confidence: NDArray[np.floating], right: Flags, counts: NDArray[np.int64], groups: Groups | None
) -> Floats:
    if groups is None:
        return np.ones(len(counts))
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")[: counts[-1]]
    hits, group = np.asarray(right, dtype=np.float64)[order], group_numbers(groups, len(right))[order]
    alike = len(order) / independent_rows(group, len(order))  # the effect if groups were wholly alike
    correlation = min(1.0, (design_effect(hits, group) - 1) / (alike - 1)) if alike > 1 else 1.0
    return np.array([design_effect(hits[:count], group[:count], correlation=correlation) for count in counts])


def prefixes(
    confidence: NDArray[np.floating], right: Flags, counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """For each of `counts`, the surest rows with ties: rows, threshold and right rows, without repeats."""
    thresholds, hits, misses = by_threshold(confidence, right)
    rows = (hits + misses).astype(np.int64)
    last = np.unique(np.searchsorted(rows, counts))
    return rows[last], thresholds[last], hits[last]


def by_threshold(probabilities: NDArray[np.floating], right: Flags) -> tuple[Floats, Floats, Floats]:
    """Falling thresholds (halfway between probabilities, the last 0), with the right and wrong rows above each."""
    distinct, number = np.unique(np.asarray(probabilities, dtype=np.float64), return_inverse=True)
    hits, misses = (np.bincount(number, weights=rows, minlength=len(distinct))[::-1] for rows in (right, ~right))
    falling = distinct[::-1]
    return np.append((falling[:-1] + falling[1:]) / 2, 0.0), hits.cumsum(), misses.cumsum()
