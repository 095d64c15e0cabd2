"""What no row shows: errors of a kind that none of the rows has may still be made on others, and cost a metric.

How many of them a confidence allows for is `kdc.artifact.contract.judgement.unseen`; here is what they would cost.
"""

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import Basis, unseen
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.metrics import Floats, Groups


def basis_of(labels: NDArray[np.generic], metric: str, groups: Groups | None = None) -> Basis:
    """The rows, or groups of rows, of which unseen errors may cost a metric most: of the classes' rows those where many
    errors can hide, and each costs much. Where groups, or multi-label rows, hold several classes, an error of one
    costs all that it holds. Labels are (rows,), or (rows, outputs) for multi-label."""
    cost, rows = costs_of(labels, metric), len(labels)
    unit = metrics.group_numbers(groups, rows)
    everywhere = np.ones(rows, dtype=np.bool_)
    if labels.ndim > 1:
        parts = [everywhere, *labels.T.astype(np.bool_)]
    else:
        is_split = metric in ("f1", "macro_f1", "matthews")
        parts = [labels == each for each in np.unique(labels)] if is_split else [everywhere]
    by_unit = np.bincount(unit, weights=cost)
    found = [Basis(rows, 1)]  # of rows without any label
    for part in parts:
        costs = by_unit[np.unique(unit[part])]
        if (total := float(costs.sum())) > 0:
            found.append(Basis(rows, max(1, int(as_many(costs) + 1e-6)), total))
    return max(found[1:] or found, key=lambda each: unseen(each, 0.95))


def as_many(weights: Floats) -> float:
    """As how many equal ones weights count: the square of their sum by the sum of their squares (Kish 1965, section
    11.7); 0 where all are 0."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def costs_of(labels: NDArray[np.generic], metric: str) -> Floats:
    """By how much a metric of 1 falls at the most where a row that was right turns wrong, in whatever way: (rows,).

    An F1 of a class with n rows falls by at most 1 / n for a row of the class that is lost, and by 1 / (2 n) for a row
    that is taken for one; these are its derivatives where it is 0 and 1.
    """
    rows = len(labels)
    if metric == "f1":
        return np.where(labels == 1, 1.0, 0.5) / max(1, int((labels == 1).sum()))
    if labels.ndim > 1 and metric == "macro_f1":
        actual = labels[:, labels.any(axis=0)].astype(np.float64)  # a label that no row has is in no mean
        return (np.where(actual > 0, 1.0, 0.5) / actual.sum(axis=0)).sum(axis=1) / max(1, actual.shape[1])
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if metric not in ("macro_f1", "matthews") or labels.ndim > 1 or len(counts) == 1:
        return np.full(rows, 1 / rows)
    if metric == "matthews":
        cost = matthews_weights(counts / rows) / counts
    else:
        ascending = np.sort(counts)
        rarest_other = np.where(counts == ascending[0], ascending[1], ascending[0])
        cost = np.maximum(1 / counts, (1 / counts + 1 / rarest_other) / 2) / len(counts)
    return np.asarray(cost[place.reshape(-1)], dtype=np.float64)


def matthews_weights(shares: Floats) -> Floats:
    """By how much Matthews' correlation of several classes falls, at the most, where a small part of a class's right
    answers turns wrong: (classes,) times that part. Of two classes the rarer one's is 1.

    The derivative of R_K (Gorodkin 2004) by the rows that go from class c, answered right, to class j, for a model that
    answers each class as often as it occurs, is s_c / (1 - sum s^2) * (1 + (1 - R_K) (s_j - s_c)); here R_K, from 0 to
    1, and j are those for which it is largest.

    Args:
        shares: (classes,) of the rows, s above; at least two classes.
    """
    more = np.maximum(0.0, shares.max() - shares)  # than in class c there are in the most frequent one
    weights: Floats = shares * (1 + more) / (1 - (shares**2).sum())
    return weights
