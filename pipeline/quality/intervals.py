"""How sure a score is, and the difference of two models' scores on the same rows: confidence intervals, in points.

Accuracy has formulas: Wilson's interval of one model, Tango's of two. Every other metric is resampled, by the
bootstrap that corrects its bias and skewness (BCa), with Student's quantile for as many rows as the two models answer
differently. Rows of one group (of one text, say) are not independent: formulas count fewer rows for it, by the design
effect; resampling draws whole groups, and its quantile is for as many groups of one influence as move the difference.

docs/benchmarks/verdicts.md states the error rates that `benchmarks/verdicts.py` measured.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import quantile_of
from kdc.artifact.manifest import Kind
from kdc.pipeline.config import metrics
from kdc.pipeline.config.metrics import METRICS, Floats, Groups, Labels, Outputs, Scorer
from kdc.pipeline.quality.bootstrap import bca
from kdc.pipeline.quality.unseen import unseen

_UNSEEN_ROWS = 2  # rows that `design_effect` adds, whose groups share their fate wholly
_FEWEST_GROUPS = 8  # with fewer, nothing can be shown by drawing them

Ends = tuple[float, float]  # of an interval: the lower and the upper one


@dataclass(frozen=True)
class Difference:
    """How sure the difference of two models' scores is."""

    interval: Ends  # in points
    standard_error: float  # in points
    groups: int  # how many groups the rows form; as many as rows where each stands alone
    # points that no row shows, from how many times the rows there would be
    unseen: Callable[[float], float] = field(compare=False)


def difference(
    logits: Outputs,
    others: Outputs,
    labels: Labels,
    kind: Kind,
    metric: str,
    *,
    groups: Groups | None = None,
    confidence: float = 0.95,
) -> Difference:
    """The interval of the difference of two models' scores: of `logits` minus of `others`, on the same rows.

    Args:
        metric: a key of `METRICS`.
        confidence: of the two-sided interval, within (0, 1).
    """
    truth, groups = metrics.truth_of(labels, kind), _real(groups)
    answers, other_answers = (metrics.predictions(model, kind) for model in (logits, others))
    effective = independent_rows(groups, len(truth))
    count = len(truth) if groups is None else len(np.unique(groups))
    quantile = quantile_of(confidence)
    bounds = [unseen(truth, model, metric, groups=groups, quantile=quantile) for model in (answers, other_answers)]

    def unseen_points(times: float) -> float:
        return max(bound(times) for bound in bounds)

    if metric == "accuracy":
        won = metrics.is_right(truth, answers).astype(np.float64) - metrics.is_right(truth, other_answers)
        effect = design_effect(won, groups)
        counts = (int((won < 0).sum()) / effect, int((won > 0).sum()) / effect, len(won) / effect)
        low, high = tango(*counts, quantile=_quantile(confidence, None if groups is None else effective))
        error = float(np.std(won)) * math.sqrt(effect / len(won))
        return Difference((100 * low, 100 * high), 100 * error, count, unseen_points)
    scorer, lowest = METRICS[metric].scorer, METRICS[metric].lowest

    def gap(truth: Labels, answers: Labels, other_answers: Labels) -> Scorer:
        score, other_score = scorer(truth, answers), scorer(truth, other_answers)
        return lambda weights: score(weights) - other_score(weights)

    scale = 100 * (1 - lowest)  # points that one model may be above another
    interval, error, middle = (0.0, 0.0), 0.0, 0.0  # of two models that answer alike, in whatever sample
    if not np.array_equal(answers, other_answers):
        interval, error, middle = _resampled(gap, truth, (answers, other_answers), groups, confidence)
    # So few groups can be drawn in too few ways.
    most = unseen_points(1.0) if groups is None or effective >= _FEWEST_GROUPS else scale
    ends = _widened(interval, middle, most, count / effective, -scale, scale)
    return Difference(ends, error, count, unseen_points)


def score_interval(
    logits: Outputs,
    labels: Labels,
    kind: Kind,
    metric: str,
    *,
    groups: Groups | None = None,
    confidence: float = 0.95,
) -> Ends:
    """The interval of one model's score, in points. The arguments are as in `difference`."""
    truth, answers, groups = metrics.truth_of(labels, kind), metrics.predictions(logits, kind), _real(groups)
    effective = independent_rows(groups, len(truth))
    if metric == "accuracy":
        quantile = _quantile(confidence, None if groups is None else effective)
        right = metrics.is_right(truth, answers).astype(np.float64)
        effect = design_effect(right, groups)
        low, high = wilson(float(right.sum()) / effect, len(right) / effect, quantile=quantile)
        return 100 * low, 100 * high
    interval, _, middle = _resampled(METRICS[metric].scorer, truth, (answers,), groups, confidence)
    most = unseen(truth, answers, metric, groups=groups, quantile=quantile_of(confidence))(1.0)
    count = len(truth) if groups is None else len(np.unique(groups))
    return _widened(interval, middle, most, count / effective, 100 * METRICS[metric].lowest, 100.0)


def _widened(interval: Ends, middle: float, unseen: float, unequal: float, lowest: float, highest: float) -> Ends:
    """An interval with what no row shows to both sides of it, within the metric's range; in points.

    One event more than was seen joins the spread, as in Fay and Feuer (1997, Statistics in Medicine 16:791). It costs
    about half of `unseen`, which is for 3.7 events, if its group has the root of the groups' mean square size. If
    nothing was seen, the interval ends at `unseen`.

    Args:
        unequal: by how much more the squares of the groups' sizes sum up to than if all had one size.
    """
    event = unseen / 2 * math.sqrt(unequal)
    low, high = (max(unseen, math.hypot(end - middle, event)) for end in interval)
    return max(middle - low, lowest), min(middle + high, highest)


def widest(logits: Outputs, others: Outputs, labels: Labels, kind: Kind, *, groups: Groups | None = None) -> list[int]:
    """The classes that make the interval of a difference of macro F1 wide, the widest first. A class's part of the
    variance is the covariance of its F1 with the mean."""
    present, influence = influences(logits, others, labels, kind, groups=groups)
    part = influence.T @ influence.sum(axis=1)
    return [int(present[index]) for index in np.argsort(-part) if part[index] > 0]


def influences(
    logits: Outputs, others: Outputs, labels: Labels, kind: Kind, *, groups: Groups | None = None
) -> tuple[NDArray[np.intp], Any]:
    """The classes that rows have, and how far each group moves the difference of their F1, (groups, classes), sparse.

    The delta method: F1 is 2 TP / (answered + actual). A row moves F1 by its own 2 TP - F1 (answered + actual), divided
    by the sum of all rows.
    """
    from scipy.sparse import csr_array

    truth = metrics.truth_of(labels, kind)
    unit, rows = metrics.group_numbers(groups, len(truth)), np.arange(len(truth))
    members = csr_array((np.ones(len(truth)), (unit, rows)))
    present = np.flatnonzero(truth.any(axis=0) if truth.ndim > 1 else np.bincount(truth))
    parts = []
    for model in (logits, others):
        counted: Any = metrics.counts(truth, metrics.predictions(model, kind))(members)
        both, answered, actual = (count[:, present] for count in counted)
        total = (answered + actual).sum(axis=0)
        f1 = 2 * both.sum(axis=0) / total
        parts.append(csr_array(both.multiply(2 / total) - (answered + actual).multiply(f1 / total)))
    return present, parts[0] - parts[1]


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

    Tango's end away from 0 is too near for few and one-sided differences: up to 5 % of students whose true drop is the
    limit would fail. Each end is the farther one of Tango's and of Tango's corrected for the skewness of the difference
    (by the Edgeworth expansion; Gart and Nam 1988, Biometrics 44:323). If nearly all differing rows are lost, 3.4 %
    would still fail, since rows are whole. The end nearer to 0 is therefore corrected for continuity too: by half a row
    if all differing rows are lost (or all won), and by less the more the two are in balance.

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
    ways = (False, True)  # corrected or not
    return min(end(quantile, way, low) for way in ways), max(end(-quantile, way, high) for way in ways)


def design_effect(values: Floats, groups: Groups | None, *, correlation: float = 1.0) -> float:
    """By how much more the mean of the rows' values varies than it would if all rows were independent; at least 1.

    The variance between groups divided by that between rows (Kish 1965, Survey Sampling, section 5.4). A few rows that
    differ say little of it: two more rows are counted whose groups share their fate wholly. If no row differs, the rows
    of a group count as one.

    Args:
        values: (rows,) -1, 0 or 1.
        correlation: of two rows of one group, for the two that are counted beside; 1: they share their fate wholly.
    """
    if groups is None:
        return 1.0
    group, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    rows, count = len(values), len(sizes)
    if count == rows:
        return 1.0
    off = values - values.mean()
    together = np.bincount(group, weights=off)
    between, alone = float(together @ together) * count / max(1, count - 1), float(off @ off)
    whole = 1 + correlation * (float((sizes**2).sum()) / rows - 1)
    return max(1.0, (between + _UNSEEN_ROWS * whole) / (alone + _UNSEEN_ROWS))


def independent_rows(groups: Groups | None, rows: int) -> float:
    """The number of independent rows that these count for if the rows of each group are alike (Kish 1965, section
    11.7): the square of the sum of the groups' sizes by the sum of their squares; 0 of no rows."""
    if groups is None:
        return float(rows)
    squares = float((np.unique(groups, return_counts=True)[1].astype(np.float64) ** 2).sum())
    return float(rows) ** 2 / squares if squares else 0.0


def _real(groups: Groups | None) -> Groups | None:
    """Groups, or None where every row is one by itself."""
    return None if groups is None or len(np.unique(groups)) == len(groups) else groups


def _resampled(
    score_of: Callable[..., Scorer],
    truth: Labels,
    answers: tuple[Labels, ...],
    groups: Groups | None,
    confidence: float,
) -> tuple[Ends, float, float]:
    """The bootstrap's interval of a score, its standard error, and the score itself, in points. It draws groups, or
    rows of which several may be alike. `score_of` takes the labels, and the answers of each model."""
    unit_of_row: Any = slice(None)  # every unit is one row
    if groups is None:
        table = np.column_stack([labels.astype(np.float64) for labels in (truth, *answers)])
        _, first, counts = np.unique(table, axis=0, return_index=True, return_counts=True)
        truth, answers, units = truth[first], tuple(model[first] for model in answers), counts.astype(np.float64)
    else:
        names, unit_of_row = np.unique(groups, return_inverse=True)
        units = np.ones(len(names))
    score, width = score_of(truth, *answers), len(truth)
    if truth.dtype.kind != "f":  # a score counts rows by class, or by label
        width = max(width, *truth.shape[1:], int(max(labels.max() for labels in (truth, *answers))) + 1)

    def points(weights: Floats) -> Floats:
        return 100 * score(weights[:, unit_of_row])

    interval, error = bca(points, units, quantile=partial(_quantile, confidence), width=width)
    return interval, error, float(points(units[None])[0])


def _quantile(confidence: float, independent: float | None) -> float:
    """Of the two-sided interval; Student's where the spread was estimated from so many rows, or groups of rows."""
    from scipy import stats

    at = (1 + confidence) / 2
    return float(stats.norm.ppf(at) if independent is None else stats.t.ppf(at, max(1, independent - 1)))
