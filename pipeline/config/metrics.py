"""Metrics as GLUE defines them, in points: 0 to 100, correlations -100 to 100.

A scorer takes many weightings of the rows at once, for the bootstrap; weights of 1 give the metric.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.task_kinds import KINDS, Kind

_SHUFFLES = 199

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]  # (rows,)
Labels = NDArray[np.generic]  # labels or answers, (rows,); multi-label (rows, outputs) in {0, 1}
Outputs = NDArray[np.floating]  # logits or probabilities (rows, outputs)
Groups = NDArray[np.integer]  # (rows,) equal numbers for dependent rows
Slices = Mapping[str, NDArray[np.object_]]  # by column each row's value, (rows,)
Scorer = Callable[[Floats], Floats]  # weights >= 0 (samples, rows) to scores in [-1, 1] (samples,)
OfCounts = Callable[[Floats, Floats, Floats], Floats]  # the three `counts` to scores


@dataclass(frozen=True)
class Metric:
    """A metric of at most 1; higher is better, so an error needs a minus sign."""

    kinds: tuple[Kind, ...]
    hub_name: str
    lowest: float
    scorer: Callable[[NDArray[np.generic], NDArray[np.generic]], Scorer]  # from labels and answers
    # For `quality.unseen`: a function of counts, or the fall if all rows become wrong; half of the rows cost half.
    unseen_cost: OfCounts | float
    labels: int | None = None  # required number; None: any


def fitting(kind: Kind, labels: int | None = None) -> list[str]:
    """Names of the metrics for a task, default first."""
    fits = [name for name, metric in METRICS.items() if kind in metric.kinds]
    return fits if labels is None else [name for name in fits if METRICS[name].labels in (None, labels)]


def compute(logits: Outputs, labels: Labels, kind: Kind, names: tuple[str, ...]) -> dict[str, float]:
    """In points."""
    return _points(names, *as_scored(labels, kind, logits))


def _points(names: tuple[str, ...], truth: Labels, answers: Labels) -> dict[str, float]:
    once = np.ones((1, len(truth)))
    return {name: round(100 * float(METRICS[name].scorer(truth, answers)(once)[0]), 4) for name in names}


def as_scored(labels: Labels, kind: Kind, *logits: Outputs) -> tuple[Labels, ...]:
    """Labels, integers except for regression, and each model's answers."""
    traits = KINDS[kind]
    return np.asarray(labels, dtype=traits.label_type), *map(traits.predictions, logits)


def is_constant(logits: Outputs, kind: Kind) -> bool:
    answers = KINDS[kind].predictions(np.asarray(logits, dtype=np.float64))
    return bool((np.ptp(answers, axis=0) < 1e-6 * max(1.0, float(np.abs(answers).max()))).all())


def changed_labels(logits: Outputs, others: Outputs, kind: Kind) -> int:
    """Rows; 0 for regression."""
    traits = KINDS[kind]
    return int((~is_right(*map(traits.predictions, (logits, others)))).sum()) if traits.has_labels else 0


def majority(labels: Labels, kind: Kind, names: tuple[str, ...]) -> dict[str, float]:
    """The metrics of the majority label (regression: the mean), in points."""
    (truth,) = as_scored(labels, kind)
    return _points(names, truth, np.full(truth.shape, KINDS[kind].majority(truth)))


def chance(logits: Outputs, labels: Labels, kind: Kind, name: str, *, groups: Groups | None = None) -> float:
    """The score's p-value, in (0, 1].

    A permutation test (Ojala and Garriga 2010, JMLR 11:1833). It shuffles groups, and the rows within each.
    """
    truth, answers = as_scored(labels, kind, logits)
    once, generator = np.ones((1, len(truth))), np.random.default_rng(0)
    score = METRICS[name].scorer(truth, answers)(once)[0]
    number = group_numbers(groups, len(truth))
    group_by_group = np.argsort(number, kind="stable")
    shuffled = []
    for _ in range(_SHUFFLES):
        other_order = np.lexsort((generator.random(len(truth)), generator.permutation(number.max() + 1)[number]))
        moved = truth.copy()
        moved[group_by_group] = truth[other_order]
        shuffled.append(METRICS[name].scorer(moved, answers)(once)[0])
    return float(1 + sum(other >= score - 1e-12 for other in shuffled)) / (1 + _SHUFFLES)


def group_numbers(groups: Groups | None, rows: int) -> NDArray[np.intp]:
    """Numbers from 0, (rows,); without groups, each row is its own."""
    return np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)


def is_right(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Whether all labels of a row are right, (rows,)."""
    return (truth == answers).reshape(len(truth), -1).all(axis=1)


def _accuracy(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> Scorer:
    right = is_right(truth, answers).astype(np.float64)
    return lambda weights: weights @ right / weights.sum(axis=1)


def _f1(both: Floats, answered: Floats, actual: Floats) -> Floats:
    return f1_by_class(both, answered, actual)[:, 1]


def _macro_f1(both: Floats, answered: Floats, actual: Floats) -> Floats:
    """Over the classes that occur as labels. scikit-learn adds predicted ones: one wrong answer can cost a third."""
    present = actual > 0
    return (f1_by_class(both, answered, actual) * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1)


def _matthews(both: Floats, answered: Floats, actual: Floats) -> Floats:
    """R_K for several classes (Gorodkin 2004, Computational Biology and Chemistry 28:367); 0 for constant answers."""
    rows = actual.sum(axis=1)
    above = both.sum(axis=1) * rows - (answered * actual).sum(axis=1)
    spread = (rows**2 - (answered**2).sum(axis=1)) * (rows**2 - (actual**2).sum(axis=1))
    return np.divide(above, np.sqrt(spread.clip(0)), out=np.zeros_like(above), where=spread > 0)


def counts(truth: Labels, answers: Labels) -> Callable[[Floats], tuple[Floats, Floats, Floats]]:
    """From weights to weighted true positives, predicted and actual, (samples, classes) each."""
    from scipy.sparse import csr_array

    if truth.ndim > 1:
        actual, answered = csr_array(truth.astype(np.float64)), csr_array(answers.astype(np.float64))
    else:
        rows, ones = np.arange(len(truth)), np.ones(len(truth))
        shape = (len(truth), max(2, int(truth.max(initial=0)) + 1, int(answers.max(initial=0)) + 1))
        actual, answered = (csr_array((ones, (rows, which)), shape=shape) for which in (truth, answers))
    both = actual.multiply(answered).tocsr()
    return lambda weights: (weights @ both, weights @ answered, weights @ actual)


def f1_by_class(both: Floats, answered: Floats, actual: Floats) -> Floats:
    """2 TP / (2 TP + FP + FN) per class; 0 for absent classes."""
    below = answered + actual
    return np.divide(2 * both, below, out=np.zeros_like(below), where=below > 0)


def _pearson(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> Scorer:
    x, y = (side / (np.abs(side).max() or 1.0) for side in (truth.astype(np.float64), answers.astype(np.float64)))
    smallest = (1e-12 * np.abs(x).max(), 1e-12 * np.abs(y).max())
    x, y = x - x.mean(), y - y.mean()  # otherwise sums of squares lose digits
    columns = np.stack([x, y, x * x, y * y, x * y], axis=1)

    def score(weights: Floats) -> Floats:
        x, y, xx, yy, xy = (weights @ columns / weights.sum(axis=1, keepdims=True)).T
        return _correlation(xx - x * x, yy - y * y, xy - x * y, smallest)

    return score


def _spearman(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> Scorer:
    """Equal values share their mean rank. Rows are sorted once; then a rank is a running sum of weights."""
    by_truth = np.argsort(truth, kind="stable")
    by_answer = np.argsort(answers[by_truth], kind="stable")  # label to answer order
    truth_ranks, answer_ranks = _ranks(truth[by_truth]), _ranks(answers[by_truth][by_answer])

    def score(weights: Floats) -> Floats:
        rows, weights = weights.sum(axis=1), weights.T[by_truth]  # (samples,), (rows, samples)
        x = truth_ranks(weights)
        xx = np.einsum("ij,ij,ij->j", weights, x, x)
        weights, x = weights[by_answer], x[by_answer]
        y = answer_ranks(weights)
        weights *= y
        yy, xy = np.einsum("ij,ij->j", weights, y), np.einsum("ij,ij->j", weights, x)
        return _correlation(xx / rows, yy / rows, xy / rows, (1e-6, 1e-6))

    return score


def _ranks(ascending: NDArray[np.generic]) -> Callable[[Floats], Floats]:
    """From weights to centred ranks, (rows, samples) by value; weight w ranks as w rows."""
    is_first = np.append(True, ascending[1:] != ascending[:-1])
    value = np.cumsum(is_first) - 1
    last = np.append(np.flatnonzero(is_first)[1:], len(ascending)) - 1

    def ranks(weights: Floats) -> Floats:
        until = weights.cumsum(axis=0)
        rows = until[-1].copy()
        if is_first.all():
            until -= weights / 2
            until -= rows / 2
            return until
        until = until[last]
        until -= (np.diff(until, axis=0, prepend=0.0) + rows) / 2
        return until[value]

    return ranks


def _correlation(x_variance: Floats, y_variance: Floats, covariance: Floats, smallest: tuple[float, float]) -> Floats:
    """Correlations (samples,); 0 if a side varies only by rounding."""
    varies = (x_variance > smallest[0] ** 2) & (y_variance > smallest[1] ** 2)
    below = np.sqrt((x_variance * y_variance).clip(0))
    return np.divide(covariance, below, out=np.zeros_like(below), where=varies)


def _counted(score: OfCounts, truth: NDArray[np.generic], answers: NDArray[np.generic]) -> Scorer:
    counted = counts(truth, answers)
    return lambda weights: score(*counted(weights))


_CLASSES: tuple[Kind, ...] = ("classification",)
_LABELS: tuple[Kind, ...] = ("classification", "multilabel")
# For custom tasks the first that fits decides; the second is reported.
METRICS: dict[str, Metric] = {
    "macro_f1": Metric(_LABELS, "f1", 0.0, partial(_counted, _macro_f1), unseen_cost=_macro_f1),
    "accuracy": Metric(_LABELS, "accuracy", 0.0, _accuracy, unseen_cost=1.0),
    "f1": Metric(_CLASSES, "f1", 0.0, partial(_counted, _f1), unseen_cost=_f1, labels=2),
    "matthews": Metric(_CLASSES, "matthews_correlation", -1.0, partial(_counted, _matthews), unseen_cost=_matthews),
    "pearson": Metric(("regression",), "pearsonr", -1.0, _pearson, unseen_cost=1.0),
    "spearman": Metric(("regression",), "spearmanr", -1.0, _spearman, unseen_cost=1.0),
}
