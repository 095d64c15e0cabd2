"""Probabilities (rows, outputs) to labels, sureness and label sets. Not for regression."""

from typing import Any

import numpy as np

from kdc.artifact.decision import ABSTAINED, HALF, Abstention, LabelSets
from kdc.artifact.manifest import TaskInfo


def decided(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """Which labels rows get: bool (rows, outputs).

    A multi-label row gets labels at or above their thresholds (default 0.5). If one of two classes has a threshold, a
    row gets this class at or above it, else the other. Otherwise a row gets the most probable class, or none if the
    model abstains.
    """
    if task.traits.has_lists:
        thresholds = {point.label: point.threshold for point in task.points}
        return probabilities >= np.array([thresholds.get(label, HALF) for label in task.labels])
    chosen: np.ndarray = _classes(probabilities, task)[:, None] == np.arange(task.outputs)
    return chosen if task.abstain is None else chosen & answered(probabilities, task.abstain)[:, None]


def answered(probabilities: np.ndarray, abstain: Abstention) -> np.ndarray:
    """Which rows are answered: bool (rows,)."""
    return probabilities.max(axis=1) >= np.float64(abstain.threshold)


def sureness(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """Highest probability, (rows,). For multi-label, the lowest max(p, 1 - p) of all labels."""
    return task.traits.certainty(probabilities).min(axis=1)


def label_counts(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    if task.traits.has_lists or task.abstain is not None:
        return decided(probabilities, task).sum(axis=0)
    return np.bincount(_classes(probabilities, task), minlength=task.outputs)


def _classes(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    classes: np.ndarray = probabilities.argmax(axis=1)
    for point in task.points:
        column = task.labels.index(point.label)
        classes = np.where(probabilities[:, column] >= np.float64(point.threshold), column, 1 - column)
    return classes


def in_words(chosen: np.ndarray, task: TaskInfo) -> list[Any]:
    """A label name or `ABSTAINED` for each row of `decided`; lists of names if multi-label."""
    if task.traits.has_lists:
        return [[task.labels[column] for column in np.flatnonzero(row)] for row in chosen]
    columns = np.where(chosen.any(axis=1), chosen.argmax(axis=1), len(task.labels))
    names = (*task.labels, ABSTAINED)
    return [names[column] for column in columns.tolist()]


def in_sets(probabilities: np.ndarray, sets: LabelSets) -> np.ndarray:
    """Label sets: bool (rows, outputs). No set is empty."""
    return probabilities >= np.minimum(probabilities.max(axis=1, keepdims=True), np.float64(sets.at_least))


def sets_in_words(probabilities: np.ndarray, task: TaskInfo) -> list[list[str]]:
    """Label sets, most probable label first."""
    assert task.sets is not None
    sizes = in_sets(probabilities, task.sets).sum(axis=1)
    orders = np.argsort(-probabilities, axis=1, kind="stable")
    return [[task.labels[column] for column in order[:size]] for order, size in zip(orders, sizes, strict=True)]
