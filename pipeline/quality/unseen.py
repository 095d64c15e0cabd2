"""Bounds on changes that no measured row shows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config import metrics
from kdc.pipeline.config.metrics import Floats, Groups, Labels

_STEPS = 64  # most sets of rare classes (`_Parts`)


def unseen(
    truth: Labels, answers: Labels, metric: str, *, groups: Groups | None, quantile: float
) -> Callable[[float], float]:
    """Returns how far a score may change on other rows, in points, by a factor on the row count.

    If n rows or groups show no change, up to `z^2 / (n + z^2)` of others may change (Wilson 1927). The bound is the
    largest change if that share of right (or wrong) answers flips in the rarest class, the two rarest, and so on.
    `quantile` is z.
    """
    unit, square = metrics.group_numbers(groups, len(truth)), quantile**2
    score = metrics.METRICS[metric].unseen_cost
    if not callable(score):
        return lambda times: 100 * score * float(square / (times * (unit.max() + 1) + square))
    both, answered, actual = (each[0] for each in metrics.counts(truth, answers)(np.ones((1, len(truth)))))
    if score(actual[None], actual[None], actual[None])[0] < 1 - 1e-9:  # even perfect answers do not score 1
        return lambda times: 100.0
    right = truth == answers if truth.ndim == 1 else np.logical_and(truth, answers)
    can_lose, can_win = (_parts(truth, actual, unit, each) for each in (right, ~right))
    everywhere = np.tile(actual, (len(can_lose.units), 1))
    observed = score(both[None], answered[None], actual[None])[0]

    def points(times: float) -> float:
        share = square / (times * can_lose.units + square)
        lost = share * can_lose.classes * both
        failing = lost.sum(axis=1, keepdims=True) if can_lose.rows is None else share * can_lose.rows
        worse = score(both - lost, answered - lost + (failing - lost) * (actual > 0) * can_lose.wrong, everywhere)
        won = square / (times * can_win.units + square) * can_win.classes * (actual - both)
        false = (answered - both) * (1 - won.sum(axis=1, keepdims=True) / max(1.0, (actual - both).sum()))
        better = score(both + won, both + won + false, everywhere)
        return 100 * float(np.abs(np.concatenate([worse, better]) - observed).max())

    return points


@dataclass(frozen=True)
class _Parts:
    """Sets of rows that may change together (parts)."""

    classes: NDArray[np.bool_]  # (parts, classes)
    units: NDArray[np.intp]  # (parts, 1), groups with rows of the part
    rows: NDArray[np.intp] | None  # (parts, 1); None unless multi-label
    wrong: float  # chance that a failing row gets a given other class


def _parts(truth: Labels, actual: Floats, unit: NDArray[np.intp], chosen: NDArray[np.bool_]) -> _Parts:
    present = np.flatnonzero(actual)
    rank = np.full(len(actual), len(present))  # of a class, from the rarest
    rank[present[np.argsort(actual[present], kind="stable")]] = np.arange(len(present))
    last = np.unique(np.geomspace(1, len(present), _STEPS).astype(int))[:, None] - 1
    if truth.ndim == 1:
        first, wrong = np.where(chosen, rank[truth], len(present)), 1 / max(1, len(present) - 1)
    else:  # a failing row gets as many labels as any row has, all wrong
        first = np.where(chosen & truth.astype(np.bool_), rank, len(present) - 1).min(axis=1)
        labels = truth.sum(axis=1)
        wrong = min(1.0, float(labels.max() / max(1.0, len(present) - labels.mean())))
    of_unit = np.full(unit.max() + 1, len(present))
    np.minimum.at(of_unit, unit, first)
    units, rows = (np.searchsorted(np.sort(each), last, side="right") for each in (of_unit, first))
    return _Parts(rank <= last, units, rows if truth.ndim > 1 else None, wrong)
