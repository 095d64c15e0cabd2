"""How many rows go on to a second model, so that two models together lose little against the second one alone.

The first model answers the rows that it is sure of, by its most probable answer (Viola and Jones 2001 for detectors;
Wang et al. 2011, SIGIR, for ranking).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config import metrics
from kdc.pipeline.config.metrics import Labels, Outputs
from kdc.pipeline.config.tasks import Task

_STEPS = 100  # of the share of rows that go on


class Going(NamedTuple):
    """How many rows go on."""

    answered_from: float  # the first model answers a row from this sureness on
    share: float  # of the rows, those that go on
    score: float  # of both models together, points of the metric


def curve(
    first: Outputs,
    second: Outputs,
    sure: NDArray[np.floating],
    labels: Labels,
    task: Task,
    *,
    thresholds: Sequence[float] | None = None,
) -> list[Going]:
    """What the two models score by how many rows go on, from none to all.

    Args:
        first, second: logits of the two models, in one scale.
        sure: (rows,) how sure the first one is of each row, within [0, 1].
        task: of both; its first metric counts.
        thresholds: from which sureness on the first model answers, ascending; None for about a hundred.
    """
    points, name = [], task.metrics[0]
    for threshold in _thresholds(sure) if thresholds is None else thresholds:
        goes_on = sure < np.float64(threshold)
        together = np.where(goes_on[:, None], second, first)
        score = metrics.compute(together, labels, task.kind, (name,))[name]
        points.append(Going(threshold, float(goes_on.mean()), score))
    return points


def _thresholds(sure: NDArray[np.floating]) -> list[float]:
    """Sureness by which from none to all of the rows go on, in about a hundred steps."""
    ordered = np.sort(sure).astype(np.float64)
    places = np.unique(np.linspace(0, len(sure), _STEPS + 1).round().astype(int))
    # Halfway between two rows, so that rounding moves none; below the least sure one, and beyond the surest.
    between = np.concatenate([[0.0], (ordered[:-1] + ordered[1:]) / 2, [np.nextafter(ordered[-1], 2)]])
    return np.unique(between[places]).tolist()


def fewest(points: list[Going], wanted: float) -> Going:
    """The point with the fewest rows that go on, if it and all points with more rows score at least `wanted`: a single
    point may do so by luck. If not even the last point does, with all rows, it is the last point."""
    chosen = points[-1]
    for point in reversed(points):
        if point.score < wanted:
            break
        chosen = point
    return chosen
