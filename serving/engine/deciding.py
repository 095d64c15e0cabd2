"""From probabilities to labels: the one place that says which labels a row gets."""

from typing import Any

import numpy as np

from kdc.artifact.decision import ABSTAINED, HALF, Abstention, LabelSets
from kdc.artifact.manifest import TaskInfo


def decided(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """Which labels rows get, by the task's operating points or its abstention: bool (rows, outputs).

    A multi-label row gets each label from its threshold on, by default one half. Of two classes of which one has a
    threshold, a row gets that one from there on, and otherwise the other; of all other classes the most probable, or
    none where that is less probable than the task's abstention asks for.

    Args:
        probabilities: (rows, outputs) as `Engine.predict` gives them.
        task: not a regression.
    """
    if task.kind == "multilabel":
        thresholds = {point.label: point.threshold for point in task.points}
        return probabilities >= np.array([thresholds.get(label, HALF) for label in task.labels])
    chosen: np.ndarray = _places(probabilities, task)[:, None] == np.arange(task.outputs)
    return chosen if task.abstain is None else chosen & answered(probabilities, task.abstain)[:, None]


def answered(probabilities: np.ndarray, abstain: Abstention) -> np.ndarray:
    """Which rows are answered: bool (rows,). Probabilities are (rows, outputs)."""
    enough: np.ndarray = probabilities.max(axis=1) >= np.float64(abstain.threshold)
    return enough


def sureness(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """How sure a model is of each row, (rows,) within [0, 1]: the probability of the most probable class, or of a
    multi-label row the least of what it gives to having a label or not.

    Args:
        probabilities: (rows, outputs) as `Engine.predict` gives them.
        task: not a regression.
    """
    if task.kind == "multilabel":
        least: np.ndarray = np.maximum(probabilities, 1 - probabilities).min(axis=1)
        return least
    most: np.ndarray = probabilities.max(axis=1)
    return most


def given(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """How many rows get each label, (outputs,). Arguments as of `decided`."""
    if task.kind == "multilabel" or task.abstain is not None:
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
    """The labels of rows by name: one for each, `ABSTAINED` where there is none, or a list of a multi-label row's.
    `gets` is bool (rows, outputs)."""
    if task.kind == "multilabel":
        return [[task.labels[place] for place in np.flatnonzero(row)] for row in gets]
    places = np.where(gets.any(axis=1), gets.argmax(axis=1), len(task.labels))
    names = (*task.labels, ABSTAINED)
    return [names[place] for place in places.tolist()]


def in_sets(probabilities: np.ndarray, sets: LabelSets) -> np.ndarray:
    """Which labels are in the rows' sets: bool (rows, outputs), at least one of each row. Probabilities are (rows,
    outputs)."""
    holds: np.ndarray = probabilities >= np.minimum(probabilities.max(axis=1, keepdims=True), np.float64(sets.at_least))
    return holds


def sets_in_words(probabilities: np.ndarray, task: TaskInfo) -> list[list[str]]:
    """The labels in the set of each row by name, the most probable first. Probabilities are (rows, outputs); the task
    has sets."""
    assert task.sets is not None
    sizes = in_sets(probabilities, task.sets).sum(axis=1)
    orders = np.argsort(-probabilities, axis=1, kind="stable")
    return [[task.labels[place] for place in order[:size]] for order, size in zip(orders, sizes, strict=True)]
