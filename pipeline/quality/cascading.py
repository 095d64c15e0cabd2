"""A cascade: the first model answers the rows it is sure of, the second model the others (Viola and Jones 2001)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config import metrics
from kdc.pipeline.config.metrics import Labels, Outputs
from kdc.pipeline.config.tasks import Task

_STEPS = 100


class Going(NamedTuple):
    answered_from: float  # least confidence at which the first model answers
    share: float  # of rows that the second model answers
    score: float  # points of both models together


def curve(
    first: Outputs,
    second: Outputs,
    sure: NDArray[np.floating],
    labels: Labels,
    task: Task,
    *,
    thresholds: Sequence[float] | None = None,
) -> list[Going]:
    """The scores at ascending `thresholds`, by default about a hundred.

    Args:
        first, second: logits on one scale.
        sure: (rows,) the first model's confidence, 0 to 1.
    """
    points, name = [], task.metrics[0]
    for threshold in _thresholds(sure) if thresholds is None else thresholds:
        goes_on = sure < np.float64(threshold)
        together = np.where(goes_on[:, None], second, first)
        score = metrics.compute(together, labels, task.kind, (name,))[name]
        points.append(Going(threshold, float(goes_on.mean()), score))
    return points


def _thresholds(sure: NDArray[np.floating]) -> list[float]:
    ordered = np.sort(sure).astype(np.float64)
    places = np.unique(np.linspace(0, len(sure), _STEPS + 1).round().astype(int))
    # Halfway between two rows, so rounding moves no row.
    between = np.concatenate([[0.0], (ordered[:-1] + ordered[1:]) / 2, [np.nextafter(ordered[-1], 2)]])
    return np.unique(between[places]).tolist()


def fewest(points: list[Going], wanted: float) -> Going:
    """The first point that, like all after it, scores at least `wanted`; else the last. A single point may be lucky."""
    chosen = points[-1]
    for point in reversed(points):
        if point.score < wanted:
            break
        chosen = point
    return chosen
