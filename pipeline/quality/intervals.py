"""How sure a score is, and the difference of two models' scores on the same rows: confidence intervals, in points.

Accuracy has formulas: Wilson's interval of one model, Tango's of two. Every other metric is resampled, by the
bootstrap that corrects its bias and skewness (BCa), with Student's quantile for as many rows as the two models answer
differently. Rows of one group (of one text, say) are not independent: formulas count fewer rows for it, by the design
effect; resampling draws whole groups, and its quantile is for as many groups of one influence as move the difference.

The error rates that were measured stand in docs/contract.md; `benchmarks/verdicts.py` measures them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import unseen
from kdc.artifact.manifest import Kind
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.bootstrap import bca
from kdc.pipeline.quality.hidden import as_many, basis_of, costs_of
from kdc.pipeline.quality.metrics import Floats, Groups, Scorer

_UNSEEN_ROWS = 2  # rows whose groups share their fate wholly, which are counted beside those that were seen
_WHOLE_SCALE = 200.0  # points between the ends of a correlation; more cannot be hidden
_FEWEST_GROUPS = 8  # with fewer, nothing can be shown by drawing them

Ends = tuple[float, float]  # of an interval: the lower and the upper one


@dataclass(frozen=True)
class Difference:
    """How sure the difference of two models' scores is."""

    interval: Ends  # in points
    standard_error: float  # in points
    groups: int  # how many groups the rows form; as many as rows where each stands alone


def difference(
    logits: NDArray[np.floating],
    others: NDArray[np.floating],
    labels: NDArray[np.generic],
    kind: Kind,
    metric: str,
    *,
    groups: Groups | None = None,
    confidence: float = 0.95,
) -> Difference:
    """The interval of the difference of two models' scores: of `logits` minus of `others`, on the same rows.

    Args:
        logits, others: (rows, outputs).
        labels: (rows,), or (rows, outputs) for multi-label.
        kind: of the task.
        metric: a key of `metrics.METRICS`.
        groups: which rows belong together; None where each stands alone.
        confidence: of the two-sided interval, within (0, 1).
    """
    truth, groups = metrics.truth_of(labels, kind), _real(groups)
    answers, other_answers = metrics.predictions(logits, kind), metrics.predictions(others, kind)
    count, effective = _group_counts(len(truth), groups)
    if metric == "accuracy":
        won = metrics.is_right(truth, answers).astype(np.float64) - metrics.is_right(truth, other_answers)
        effect = design_effect(won, groups)
        counts = (int((won < 0).sum()) / effect, int((won > 0).sum()) / effect, len(won) / effect)
        low, high = tango(*counts, quantile=_quantile(confidence, None if groups is None else effective))
        error = float(np.std(won)) * math.sqrt(effect / len(won))
        return Difference((100 * low, 100 * high), 100 * error, count)
    if groups is None:
        independent = float((answers != other_answers).reshape(len(truth), -1).any(axis=1).sum())
    elif kind == "regression":
        independent = effective
    else:
        independent = min(effective, _that_move(truth, answers, other_answers, metric, groups))
    units = _units(truth, (answers, other_answers), groups)
    score, other_score = (metrics.METRICS[metric](units.truth, each) for each in units.answers)

    def gap(weights: Floats) -> Floats:
        return 100 * (score(weights) - other_score(weights))

    quantile = _quantile(confidence, independent)
    interval, error = (0.0, 0.0), 0.0  # of two models that answer alike, in whatever sample
    if not np.array_equal(answers, other_answers):
        interval, error = bca(_by_unit(gap, units), units.counts, quantile=quantile, width=units.width)
    middle = float(gap(units.rows_of(units.counts[None]))[0])
    hidden = min(unseen(basis_of(truth, metric, groups), confidence), _WHOLE_SCALE)
    if groups is not None and effective < _FEWEST_GROUPS:
        hidden = _WHOLE_SCALE  # so few groups can be drawn in too few ways
    return Difference((min(interval[0], middle - hidden), max(interval[1], middle + hidden)), error, count)


def score_interval(
    logits: NDArray[np.floating],
    labels: NDArray[np.generic],
    kind: Kind,
    metric: str,
    *,
    groups: Groups | None = None,
    confidence: float = 0.95,
) -> Ends:
    """The interval of one model's score, in points. The arguments are as in `difference`."""
    truth, answers, groups = metrics.truth_of(labels, kind), metrics.predictions(logits, kind), _real(groups)
    _, effective = _group_counts(len(truth), groups)
    quantile = _quantile(confidence, None if groups is None else effective)
    if metric == "accuracy":
        right = metrics.is_right(truth, answers).astype(np.float64)
        effect = design_effect(right, groups)
        low, high = wilson(float(right.sum()) / effect, len(right) / effect, quantile=quantile)
        return 100 * low, 100 * high
    units = _units(truth, (answers,), groups)
    score = metrics.METRICS[metric](units.truth, units.answers[0])
    low, high = bca(_by_unit(score, units), units.counts, quantile=quantile, width=units.width)[0]
    middle = 100 * float(score(units.rows_of(units.counts[None]))[0])
    hidden = unseen(basis_of(truth, metric, groups), confidence)  # resampling sees no error that no row shows
    return max(min(100 * low, middle - hidden), -100.0), min(max(100 * high, middle + hidden), 100.0)


def _that_move(
    truth: NDArray[np.generic],
    answers: NDArray[np.generic],
    other_answers: NDArray[np.generic],
    metric: str,
    groups: Groups,
) -> float:
    """As how many groups of one influence those count that move the difference. The spread of the difference is
    estimated from the square of what each group moves it by, of which a few large ones may make up most."""
    right, other_right = ((truth == each).reshape(len(truth), -1).mean(axis=1) for each in (answers, other_answers))
    place = metrics.group_numbers(groups, len(truth))
    moved = np.bincount(place, weights=costs_of(truth, metric) * (right - other_right))
    return as_many(np.square(moved, dtype=np.float64))


def wilson(right: float, rows: float, *, quantile: float) -> Ends:
    """The score interval of a proportion (Wilson 1927, Journal of the American Statistical Association 22:209), of
    `right` rows among `rows`; neither needs to be whole."""
    square = quantile**2
    middle = (right + square / 2) / (rows + square)
    half = quantile * math.sqrt(right * (rows - right) / rows + square / 4) / (rows + square)
    return max(0.0, middle - half), min(1.0, middle + half)


@lru_cache(maxsize=4096)
def tango(lost: float, won: float, rows: float, *, quantile: float) -> Ends:
    """The score interval of the difference of two paired proportions (Tango 1998, Statistics in Medicine 17:891).

    The end that lies away from 0 is too near for few and one-sided differences: of students whose true drop is the
    limit up to 5 % would fail. So each end is the farther one of Tango's and of the same corrected for the skewness of
    the difference (by the Edgeworth expansion; Gart and Nam 1988, Biometrics 44:323). If nearly all rows that differ
    are lost, 3.4 % would still fail, since rows are whole. So the end nearer to 0 is corrected for continuity too: by
    half a row if all of these rows are lost (or all won), and by less the more the two are in balance.

    Args:
        lost: rows that only the other model has right.
        won: rows that only this model has right.
        rows: all rows. None of the three needs to be whole: fewer are counted where rows are not independent.
        quantile: of the normal distribution, or of Student's.

    Returns:
        The ends of the interval of this model's share of right rows minus the other's, within [-1, 1].
    """
    from scipy.optimize import brentq

    half = (lost - won) / (lost + won) / 2 if lost + won else 0.0

    def deviation(gap: float, corrected: bool, shift: float) -> float:
        """How many standard errors the observed difference lies above `gap`, if that were the true one."""
        linear = (2 * rows - won + lost) * gap - won - lost
        root = math.sqrt(max(0.0, linear**2 + 8 * rows * lost * gap * (1 - gap)))
        differing = (root - linear) / (2 * rows) + gap  # share of the rows of which one model is right, as is likeliest
        variance = max(differing - gap**2, 1e-15)
        above = (won - lost - rows * gap) / math.sqrt(rows * variance)
        if not corrected:
            return above
        skewness = (gap - 3 * gap * differing + 2 * gap**3) / (variance**1.5 * math.sqrt(rows))
        return above + shift / math.sqrt(rows * variance) - skewness * (quantile**2 - 1) / 6

    edge = 1 - 1e-9

    def end(target: float, corrected: bool, shift: float) -> float:
        if deviation(-edge, corrected, shift) <= target:
            return -1.0
        if deviation(edge, corrected, shift) >= target:
            return 1.0
        return float(brentq(lambda gap: deviation(gap, corrected, shift) - target, -edge, edge, xtol=1e-9))

    low, high = min(0.0, half), max(0.0, half)
    both = (False, True)
    return min(end(quantile, each, low) for each in both), max(end(-quantile, each, high) for each in both)


def design_effect(values: Floats, groups: Groups | None, *, correlation: float = 1.0) -> float:
    """By how much more the mean of the rows' values varies than it would if all rows were independent; at least 1.

    The variance between groups divided by that between rows (Kish 1965, Survey Sampling, section 5.4). A few rows that
    differ say little of it: two more are counted whose groups share their fate wholly, so that where no row differs the
    rows of a group count as one.

    Args:
        values: (rows,) -1, 0 or 1.
        groups: which rows belong together; None where each stands alone.
        correlation: of two rows of one group, for the two that are counted beside; 1: they share their fate wholly.
    """
    if groups is None:
        return 1.0
    place, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    rows, count = len(values), len(sizes)
    if count == rows:
        return 1.0
    off = values - values.mean()
    together = np.bincount(place, weights=off)
    between, alone = float(together @ together) * count / max(1, count - 1), float(off @ off)
    whole = 1 + correlation * (float((sizes**2).sum()) / rows - 1)
    return max(1.0, (between + _UNSEEN_ROWS * whole) / (alone + _UNSEEN_ROWS))


@dataclass(frozen=True)
class _Units:
    """What is drawn: rows of which there are several alike, or groups of rows."""

    truth: NDArray[np.generic]
    answers: tuple[NDArray[np.generic], ...]  # of each model
    counts: Floats  # (units,) how many there are of each
    unit_of_row: NDArray[np.integer] | None  # None: every unit is one row

    @property
    def width(self) -> int:
        """Numbers that a score makes of each sample: a weight for each row, or a count for each class."""
        if self.truth.dtype.kind == "f":  # regression
            return len(self.truth)
        classes = int(max(each.max() for each in (self.truth, *self.answers))) + 1
        return max(len(self.truth), *self.truth.shape[1:], classes)

    def rows_of(self, weights: Floats) -> Floats:
        """From weights of units to weights of rows."""
        return weights if self.unit_of_row is None else weights[:, self.unit_of_row]


def _units(truth: NDArray[np.generic], answers: tuple[NDArray[np.generic], ...], groups: Groups | None) -> _Units:
    if groups is not None:
        names, unit_of_row = np.unique(groups, return_inverse=True)
        return _Units(truth, answers, np.ones(len(names)), unit_of_row)
    columns = np.stack([each.reshape(len(truth), -1).astype(np.float64) for each in (truth, *answers)])
    table = columns.transpose(1, 0, 2).reshape(len(truth), -1)
    _, first, counts = np.unique(table, axis=0, return_index=True, return_counts=True)
    return _Units(truth[first], tuple(each[first] for each in answers), counts.astype(np.float64), None)


def _by_unit(score: Scorer, units: _Units) -> Callable[[Floats], Floats]:
    return lambda weights: score(units.rows_of(weights))


def _real(groups: Groups | None) -> Groups | None:
    """Groups, or None where every row is one by itself."""
    return None if groups is None or len(np.unique(groups)) == len(groups) else groups


def _group_counts(rows: int, groups: Groups | None) -> tuple[int, float]:
    """How many groups there are, and as how many of one size they count where their sizes differ."""
    if groups is None:
        return rows, float(rows)
    sizes = np.unique(groups, return_counts=True)[1]
    return len(sizes), as_many(sizes.astype(np.float64))


def _quantile(confidence: float, independent: float | None) -> float:
    """Of the two-sided interval; Student's where the spread was estimated from so many rows, or groups of rows."""
    from scipy import stats

    at = (1 + confidence) / 2
    return float(stats.norm.ppf(at) if independent is None else stats.t.ppf(at, max(1, independent - 1)))
