"""From probabilities to labels: the one place that says which labels a row gets."""

from typing import Any

import numpy as np

from kdc.artifact.decision import HALF
from kdc.artifact.manifest import TaskInfo


def decided(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """Which labels rows get, by the task's operating points: bool (rows, outputs).

    A multi-label row gets each label from its threshold on, by default one half. Of two classes of which one has a
    threshold, a row gets that one from there on, and otherwise the other; of all other classes the most probable.

    Args:
        probabilities: (rows, outputs) as `Engine.predict` gives them.
        task: not a regression.
    """
    if task.kind == "multilabel":
        thresholds = {point.label: point.threshold for point in task.points}
        return probabilities >= np.array([thresholds.get(label, HALF) for label in task.labels])
    chosen: np.ndarray = _places(probabilities, task)[:, None] == np.arange(task.outputs)
    return chosen


def given(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """How many rows get each label, (outputs,). Arguments as of `decided`."""
    if task.kind == "multilabel":
        counts: np.ndarray = decided(probabilities, task).sum(axis=0)
        return counts
    return np.bincount(_places(probabilities, task), minlength=task.outputs)


def _places(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """(rows,) the class of each row."""
    places: np.ndarray = probabilities.argmax(axis=1)
    for point in task.points:
        place = task.labels.index(point.label)
        places = np.where(probabilities[:, place] >= np.float64(point.threshold), place, 1 - place)
    return places


def in_words(gets: np.ndarray, task: TaskInfo) -> list[Any]:
    """The labels of rows by name: one for each, or a list of a multi-label row's. `gets` is bool (rows, outputs)."""
    if task.kind == "multilabel":
        return [[task.labels[place] for place in np.flatnonzero(row)] for row in gets]
    return [task.labels[place] for place in gets.argmax(axis=1)]
