"""Probabilities to labels: the labels that a row gets, the sureness of a model, and sets of labels.

Probabilities are (rows, outputs) as `Engine.predict` gives them, and of no regression.
"""

from typing import Any

import numpy as np

from kdc.artifact.decision import ABSTAINED, HALF, Abstention, LabelSets
from kdc.artifact.manifest import TaskInfo


def decided(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """Which labels rows get, by the task's operating points or its abstention: bool (rows, outputs).

    A multi-label row gets each label from its threshold on, by default one half. If one of two classes has a threshold,
    a row gets that class from there on, and otherwise the other class. Any other row gets the most probable class, or
    none if the task's abstention asks for more.
    """
    if task.kind == "multilabel":
        thresholds = {point.label: point.threshold for point in task.points}
        return probabilities >= np.array([thresholds.get(label, HALF) for label in task.labels])
    chosen: np.ndarray = _classes(probabilities, task)[:, None] == np.arange(task.outputs)
    return chosen if task.abstain is None else chosen & answered(probabilities, task.abstain)[:, None]


def answered(probabilities: np.ndarray, abstain: Abstention) -> np.ndarray:
    """Which rows are answered: bool (rows,)."""
    return probabilities.max(axis=1) >= np.float64(abstain.threshold)


def sureness(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """How sure a model is of each row, (rows,) within [0, 1]: the probability of the most probable class. A multi-label
    row's is the lowest, over its labels, of the probability that the row has the label, or that it has not."""
    if task.kind == "multilabel":
        return np.maximum(probabilities, 1 - probabilities).min(axis=1)
    return probabilities.max(axis=1)


def label_counts(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """How many rows get each label, (outputs,)."""
    if task.kind == "multilabel" or task.abstain is not None:
        return decided(probabilities, task).sum(axis=0)
    return np.bincount(_classes(probabilities, task), minlength=task.outputs)


def _classes(probabilities: np.ndarray, task: TaskInfo) -> np.ndarray:
    """(rows,) the class of each row."""
    classes: np.ndarray = probabilities.argmax(axis=1)
    for point in task.points:
        column = task.labels.index(point.label)
        classes = np.where(probabilities[:, column] >= np.float64(point.threshold), column, 1 - column)
    return classes


def in_words(chosen: np.ndarray, task: TaskInfo) -> list[Any]:
    """The labels of rows by name, from `chosen`, bool (rows, outputs): one for each row, or `ABSTAINED`; a list for
    each multi-label row."""
    if task.kind == "multilabel":
        return [[task.labels[column] for column in np.flatnonzero(row)] for row in chosen]
    columns = np.where(chosen.any(axis=1), chosen.argmax(axis=1), len(task.labels))
    names = (*task.labels, ABSTAINED)
    return [names[column] for column in columns.tolist()]


def in_sets(probabilities: np.ndarray, sets: LabelSets) -> np.ndarray:
    """Which labels are in the rows' sets: bool (rows, outputs), at least one of each row."""
    return probabilities >= np.minimum(probabilities.max(axis=1, keepdims=True), np.float64(sets.at_least))


def sets_in_words(probabilities: np.ndarray, task: TaskInfo) -> list[list[str]]:
    """The labels in the set of each row by name, the most probable first. The task has sets."""
    assert task.sets is not None
    sizes = in_sets(probabilities, task.sets).sum(axis=1)
    orders = np.argsort(-probabilities, axis=1, kind="stable")
    return [[task.labels[column] for column in order[:size]] for order, size in zip(orders, sizes, strict=True)]
