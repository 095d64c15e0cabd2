"""Metrics as GLUE defines them, in points (0 to 100; correlations -100 to 100). scikit-learn and scipy compute all but
accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import Kind


def predictions(logits: NDArray[np.floating], kind: Kind) -> NDArray[np.generic]:
    """Answers from logits.

    Args:
        logits: (rows, outputs).
        kind: the task's kind.

    Returns:
        (rows,) class ids; (rows, outputs) 0 or 1 for multi-label (a probability of at least one half); (rows,)
        numbers for regression.
    """
    if kind == "regression":
        return logits[:, 0]
    if kind == "multilabel":
        return (logits >= 0).astype(np.int64)
    return logits.argmax(-1)


def compute(
    logits: NDArray[np.floating], labels: NDArray[np.generic], kind: Kind, names: tuple[str, ...]
) -> dict[str, float]:
    """The named metrics of logits against labels, in points.

    Args:
        logits: (rows, outputs).
        labels: (rows,) class ids or numbers, or (rows, outputs) in {0, 1}.
        kind: the task's kind.
        names: some of `METRICS`.
    """
    answers = predictions(np.asarray(logits, dtype=np.float64), kind)
    truth = np.asarray(labels)
    if kind == "multilabel":
        truth = truth.astype(np.int64)
    return {name: round(100 * METRICS[name](truth, answers), 4) for name in names}


def is_constant(logits: NDArray[np.floating], kind: Kind) -> bool:
    """Whether every row gets the same answer: a collapsed model."""
    answers = predictions(np.asarray(logits, dtype=np.float64), kind)
    if kind == "regression":
        return bool(np.ptp(answers) < 1e-6 * max(1.0, float(np.abs(answers).max())))
    return bool((answers == answers[:1]).all())


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
    # As scikit-learn's accuracy_score, whose checks of its input would be most of the time of a bootstrap.
    return float((truth == answers).reshape(len(truth), -1).all(axis=1).mean())


def _f1(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, answers, zero_division=0.0))


def _macro_f1(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> float:
    from sklearn.metrics import f1_score

    # Over the classes that the rows have. With those that a model answers beside them, as scikit-learn takes them,
    # two models would be averages over different classes, and a single wrong answer could cost a third of the scale.
    classes = np.flatnonzero(truth.any(axis=0)) if truth.ndim > 1 else np.unique(truth)
    if len(classes) == 0:
        return 0.0  # multi-label rows without any label
    return float(f1_score(truth, answers, labels=classes, average="macro", zero_division=0.0))


def _matthews(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth, answers))


def _pearson(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, truth, answers)


def _spearman(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, truth, answers)


def _correlation(function: Callable, truth: NDArray[np.generic], answers: NDArray[np.generic]) -> float:
    if len(truth) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant input has no correlation: that is counted as 0 below
        value = float(function(truth.astype(np.float64), answers).statistic)
    return value if np.isfinite(value) else 0.0


METRICS: dict[str, Callable[[NDArray[np.generic], NDArray[np.generic]], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
