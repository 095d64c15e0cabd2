"""A cascade of two models: the first answers the rows it is sure of, the second the other rows.

Sources: Viola and Jones 2001 for detectors; Wang et al. 2011 (SIGIR) for ranking.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config import metrics
from kdc.pipeline.config.metrics import Labels, Outputs
from kdc.pipeline.config.tasks import Task

_STEPS = 100  # of the share of rows that the second model answers


class Going(NamedTuple):
    """A threshold of the cascade, and what it does."""

    answered_from: float  # the first model answers rows from this confidence on
    share: float  # of rows that the second model answers
    score: float  # of both models together, in points


def curve(
    first: Outputs,
    second: Outputs,
    sure: NDArray[np.floating],
    labels: Labels,
    task: Task,
    *,
    thresholds: Sequence[float] | None = None,
) -> list[Going]:
    """Score the cascade at thresholds that send none to all of the rows to the second model.

    Args:
        first, second: logits of the two models, in one scale.
        sure: (rows,) the first model's confidence, 0 to 1.
        task: its first metric is the score.
        thresholds: ascending; None for about a hundred.
    """
    points, name = [], task.metrics[0]
    for threshold in _thresholds(sure) if thresholds is None else thresholds:
        goes_on = sure < np.float64(threshold)
        together = np.where(goes_on[:, None], second, first)
        score = metrics.compute(together, labels, task.kind, (name,))[name]
        points.append(Going(threshold, float(goes_on.mean()), score))
    return points


def _thresholds(sure: NDArray[np.floating]) -> list[float]:
    """About a hundred thresholds that send none to all of the rows on."""
    ordered = np.sort(sure).astype(np.float64)
    places = np.unique(np.linspace(0, len(sure), _STEPS + 1).round().astype(int))
    # Halfway between two rows, so that rounding moves no row. The ends lie outside all rows.
    between = np.concatenate([[0.0], (ordered[:-1] + ordered[1:]) / 2, [np.nextafter(ordered[-1], 2)]])
    return np.unique(between[places]).tolist()


def fewest(points: list[Going], wanted: float) -> Going:
    """The point that sends on the fewest rows, if it and all points with more rows score at least `wanted`: a single
    point may be lucky. If even the last point scores less, it is the last point."""
    chosen = points[-1]
    for point in reversed(points):
        if point.score < wanted:
            break
        chosen = point
    return chosen
