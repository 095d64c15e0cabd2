"""Metrics as GLUE defines them, in points (0 to 100; correlations -100 to 100)."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import Kind


def predictions(logits: NDArray[np.floating], kind: Kind) -> NDArray[np.generic]:
    """Answers from logits, (rows, outputs): (rows,) class ids; (rows, outputs) 0 or 1 for multi-label (a probability of
    at least one half); (rows,) numbers for regression."""
    if kind == "regression":
        return logits[:, 0]
    if kind == "multilabel":
        return (logits >= 0).astype(np.int64)
    return logits.argmax(-1)


def compute(
    logits: NDArray[np.floating], labels: NDArray[np.generic], kind: Kind, names: tuple[str, ...]
) -> dict[str, float]:
    """The named metrics, keys of `METRICS`, of logits (rows, outputs) against labels, in points. Labels are (rows,)
    class ids or numbers, or (rows, outputs) in {0, 1}."""
    answers = predictions(np.asarray(logits, dtype=np.float64), kind)
    truth = np.asarray(labels)
    if kind != "regression":
        truth = truth.astype(np.int64)
    return {name: round(100 * METRICS[name](truth, answers), 4) for name in names}


def is_constant(logits: NDArray[np.floating], kind: Kind) -> bool:
    """Whether every row gets the same answer: a collapsed model."""
    answers = predictions(np.asarray(logits, dtype=np.float64), kind)
    if kind == "regression":
        return bool(np.ptp(answers) < 1e-6 * max(1.0, float(np.abs(answers).max())))
    return bool((answers == answers[:1]).all())


def changed_labels(logits: NDArray[np.floating], others: NDArray[np.floating], kind: Kind) -> int:
    """Rows whose label differs between two models' logits, (rows, outputs) each; 0 for regression."""
    if kind == "regression":
        return 0
    changed = predictions(logits, kind) != predictions(others, kind)
    return int(changed.reshape(len(changed), -1).any(axis=1).sum())


def majority(labels: NDArray[np.generic], kind: Kind, names: tuple[str, ...]) -> dict[str, float]:
    """The metrics of always giving the most frequent answer (the mean for regression), in points."""
    truth = np.asarray(labels)
    if kind == "regression":
        answers = np.full((len(truth), 1), float(truth.mean()))
    elif kind == "multilabel":
        answers = np.tile(np.where(truth.mean(0) >= 0.5, 1.0, -1.0), (len(truth), 1))
    else:
        counts = np.bincount(truth.astype(np.int64))
        answers = np.tile((np.arange(len(counts)) == counts.argmax()).astype(float), (len(truth), 1))
    return compute(answers, truth, kind, names)


def _accuracy(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> float:
    return float((truth == answers).reshape(len(truth), -1).all(axis=1).mean())


def _f1(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> float:
    """Of class 1."""
    return float(_f1_by_class(*_counts(truth, answers))[1])


def _macro_f1(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> float:
    """The mean F1 of the classes that the rows have.

    With the classes that a model answers beside them, as scikit-learn takes them, two models would be averages over
    different classes, and a single wrong answer could cost a third of the scale.
    """
    both, answered, actual = _counts(truth, answers)
    present = actual > 0
    return float(_f1_by_class(both, answered, actual)[present].mean()) if present.any() else 0.0


def _matthews(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> float:
    """The correlation coefficient R_K of several classes (Gorodkin 2004, Computational Biology and Chemistry 28:367);
    0 where one answer is given to all rows."""
    both, answered, actual = (counts.astype(np.float64) for counts in _counts(truth, answers))
    rows = len(truth)
    spread = (rows**2 - answered @ answered) * (rows**2 - actual @ actual)
    return float((both.sum() * rows - answered @ actual) / np.sqrt(spread)) if spread > 0 else 0.0


def _counts(
    truth: NDArray[np.generic], answers: NDArray[np.generic]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """By class: rows where it is answered and right, rows where it is answered, rows that have it.

    By counting, not by scikit-learn, whose checks of its input take about fifty times as long: an interval asks for a
    thousand resamples.
    """
    if truth.ndim > 1:
        right, given = truth.astype(bool), answers.astype(bool)
        return (right & given).sum(axis=0), given.sum(axis=0), right.sum(axis=0)
    classes = max(2, int(truth.max(initial=0)) + 1, int(answers.max(initial=0)) + 1)
    both = np.bincount(truth[truth == answers], minlength=classes)
    return both, np.bincount(answers, minlength=classes), np.bincount(truth, minlength=classes)


def _f1_by_class(
    both: NDArray[np.int64], answered: NDArray[np.int64], actual: NDArray[np.int64]
) -> NDArray[np.float64]:
    """2 TP / (2 TP + FP + FN) of each class; 0 for one that neither occurs nor is answered."""
    return 2 * both / np.maximum(answered + actual, 1)


def _correlation(
    truth: NDArray[np.generic], answers: NDArray[np.generic], *, name: Literal["pearsonr", "spearmanr"]
) -> float:
    from scipy import stats

    if len(truth) < 2:
        return 0.0
    function = getattr(stats, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant input has no correlation: that is counted as 0 below
        value = float(function(truth.astype(np.float64), answers).statistic)
    return value if np.isfinite(value) else 0.0


METRICS: dict[str, Callable[[NDArray[np.generic], NDArray[np.generic]], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": partial(_correlation, name="pearsonr"),
    "spearman": partial(_correlation, name="spearmanr"),
}
