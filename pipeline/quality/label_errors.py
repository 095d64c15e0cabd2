"""Confident learning (Northcutt et al. 2021, arXiv 1911.00068): which labels are probably wrong."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class LabelErrors(NamedTuple):
    rows: Ints  # (errors,), indices
    suggested: Ints  # (errors,), class numbers


def confident_classes(probabilities: NDArray[np.floating], labels: Ints) -> Ints:
    """The most probable class that reaches its threshold, (rows,); -1 for none (section 3.1).

    The threshold is the class's mean probability over the rows with its label.

    Args:
        probabilities: (rows, classes), by models that did not learn from the row.
    """
    of_class = np.eye(probabilities.shape[1])[labels]
    counts = of_class.sum(0)
    means = (of_class * probabilities).sum(0) / np.maximum(counts, 1)
    thresholds = np.where(counts > 0, means, np.inf)
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(reached.max(1) >= 0, reached.argmax(1), -1)


def find_label_errors(probabilities: NDArray[np.floating], labels: Ints) -> LabelErrors:
    """Rows that confidently have another class than their label, unless the label is the most probable class.

    The order is by normalised margin: the label's probability minus the most probable other class's.
    """
    probabilities = probabilities.astype(np.float64)
    confident = confident_classes(probabilities, labels)
    rows = np.flatnonzero((confident >= 0) & (confident != labels) & (probabilities.argmax(1) != labels))
    found, own = probabilities[rows], labels[rows]
    of_label = found[np.arange(len(rows)), own]
    others = np.where(np.eye(found.shape[1], dtype=np.bool_)[own], -np.inf, found)
    order = np.argsort(of_label - others.max(1), kind="stable")
    return LabelErrors(rows[order], confident[rows[order]])
