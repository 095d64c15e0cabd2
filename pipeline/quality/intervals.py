"""Confidence intervals, in points, of a score and of two models' difference on the same rows.

Methods: docs/explanation/verdicts.md. Error rates: docs/benchmarks/verdicts.md.
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

_UNSEEN_ROWS = 2  # rows that `design_effect` adds
_FEWEST_GROUPS = 8  # with fewer effective groups, a bootstrapped difference neither passes nor fails

Ends = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    interval: Ends  # in points
    standard_error: float  # in points
    groups: int  # number of groups, or of independent rows
    # Maps a factor on the row count to the points that unobserved errors may cost.
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
    """The two-sided interval of the score of `logits` minus the score of `others`."""
    (truth, answers, other_answers), groups = metrics.as_scored(labels, kind, logits, others), _real(groups)
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

    scale = 100 * (1 - lowest)  # largest possible difference, in points
    interval, error, middle = (0.0, 0.0), 0.0, 0.0  # if both models answer alike
    if not np.array_equal(answers, other_answers):
        interval, error, middle = _resampled(gap, truth, (answers, other_answers), groups, confidence)
    # A few groups have too few distinct resamples.
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
    (truth, answers), groups = metrics.as_scored(labels, kind, logits), _real(groups)
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
    """Widen an interval for unobserved changes, in points.

    The spread of one unseen event is added in quadrature (Fay and Feuer 1997, Statistics in Medicine 16:791). `unseen`
    is the cost of z^2 (about four) events, so z standard errors of one cost about half.

    Args:
        unequal: sum of squared group sizes, divided by the sum for equal groups.
    """
    event = unseen / 2 * math.sqrt(unequal)
    low, high = (max(unseen, math.hypot(end - middle, event)) for end in interval)
    return max(middle - low, lowest), min(middle + high, highest)


def widest(logits: Outputs, others: Outputs, labels: Labels, kind: Kind, *, groups: Groups | None = None) -> list[int]:
    """Classes whose F1 difference widens the interval of the macro F1 difference, as both covary. Widest first."""
    present, influence = influences(logits, others, labels, kind, groups=groups)
    part = influence.T @ influence.sum(axis=1)
    return [int(present[index]) for index in np.argsort(-part) if part[index] > 0]


def influences(
    logits: Outputs, others: Outputs, labels: Labels, kind: Kind, *, groups: Groups | None = None
) -> tuple[NDArray[np.intp], Any]:
    """The classes that occur, and how far each group moves their F1 differences, (groups, classes), sparse.

    By the delta method, with F1 as `2 TP / N`: a row that adds tp to TP and n to N moves F1 by `(2 tp - F1 n) / N`.
    """
    from scipy.sparse import csr_array

    truth, *answers = metrics.as_scored(labels, kind, logits, others)
    unit, rows = metrics.group_numbers(groups, len(truth)), np.arange(len(truth))
    members = csr_array((np.ones(len(truth)), (unit, rows)))
    present = np.flatnonzero(truth.any(axis=0) if truth.ndim > 1 else np.bincount(truth))
    parts = []
    for model in answers:
        counted: Any = metrics.counts(truth, model)(members)
        both, answered, actual = (count[:, present] for count in counted)
        total = (answered + actual).sum(axis=0)
        f1 = 2 * both.sum(axis=0) / total
        parts.append(csr_array(both.multiply(2 / total) - (answered + actual).multiply(f1 / total)))
    return present, parts[0] - parts[1]


def wilson(right: float, rows: float, *, quantile: float) -> Ends:
    """The score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22:209)."""
    square = quantile**2
    middle = (right + square / 2) / (rows + square)
    half = quantile * math.sqrt(right * (rows - right) / rows + square / 4) / (rows + square)
    return max(0.0, middle - half), min(1.0, middle + half)


@lru_cache(maxsize=4096)
def tango(lost: float, won: float, rows: float, *, quantile: float) -> Ends:
    """The score interval of the difference of two paired proportions (Tango 1998, Statistics in Medicine 17:891).

    If few rows differ, mostly one way, the end nearer to 0 is too close: up to 5 % of students at the limit would fail,
    not 2.5 %. So each end is the farther of Tango's and one corrected for skewness (Gart and Nam 1988, Biometrics
    44:323). Counts are discrete, so the corrected end nearer to 0 also moves by up to half a row.

    Args:
        lost: rows that only the other model has right; may be a fraction.
        won: the same for this model.

    Returns:
        This model's accuracy minus the other's, within [-1, 1].
    """
    from scipy.optimize import brentq

    half = (lost - won) / (lost + won) / 2 if lost + won else 0.0

    def deviation(gap: float, corrected: bool, shift: float) -> float:
        linear = (2 * rows - won + lost) * gap - won - lost
        root = math.sqrt(max(0.0, linear**2 + 8 * rows * lost * gap * (1 - gap)))
        differing = (root - linear) / (2 * rows) + gap  # share of rows that only one model has right
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
    ways = (False, True)
    return min(end(quantile, way, low) for way in ways), max(end(-quantile, way, high) for way in ways)


def design_effect(values: Floats, groups: Groups | None, *, correlation: float = 1.0) -> float:
    """Variance of the mean, relative to independent rows (Kish 1965, Survey Sampling, section 5.4); at least 1.

    Few deviating rows show little correlation, so two pseudo-rows with `correlation` are added. They deviate by about
    1, so `values`, (rows,), must too.
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
    """The effective number of rows if each group's rows are alike (Kish 1965, section 11.7)."""
    if groups is None:
        return float(rows)
    squares = float((np.unique(groups, return_counts=True)[1].astype(np.float64) ** 2).sum())
    return float(rows) ** 2 / squares if squares else 0.0


def _real(groups: Groups | None) -> Groups | None:
    return None if groups is None or len(np.unique(groups)) == len(groups) else groups


def _resampled(
    score_of: Callable[..., Scorer],
    truth: Labels,
    answers: tuple[Labels, ...],
    groups: Groups | None,
    confidence: float,
) -> tuple[Ends, float, float]:
    unit_of_row: Any = slice(None)  # each distinct row is a unit
    if groups is None:
        table = np.column_stack([labels.astype(np.float64) for labels in (truth, *answers)])
        _, first, counts = np.unique(table, axis=0, return_index=True, return_counts=True)
        truth, answers, units = truth[first], tuple(model[first] for model in answers), counts.astype(np.float64)
    else:
        names, unit_of_row = np.unique(groups, return_inverse=True)
        units = np.ones(len(names))
    score, width = score_of(truth, *answers), len(truth)
    if truth.dtype.kind != "f":  # the scorer counts rows by class or label
        width = max(width, *truth.shape[1:], int(max(labels.max() for labels in (truth, *answers))) + 1)

    def points(weights: Floats) -> Floats:
        return 100 * score(weights[:, unit_of_row])

    interval, error = bca(points, units, quantile=partial(_quantile, confidence), width=width)
    return interval, error, float(points(units[None])[0])


def _quantile(confidence: float, independent: float | None) -> float:
    from scipy import stats

    at = (1 + confidence) / 2
    return float(stats.norm.ppf(at) if independent is None else stats.t.ppf(at, max(1, independent - 1)))
