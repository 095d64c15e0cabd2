"""Expected calibration error and temperature scaling."""

import math
from dataclasses import dataclass

import numpy as np

from kdc.artifact.task_kinds import KINDS, Kind
from kdc.pipeline.config.metrics import Floats, Groups, Labels, Outputs, group_numbers
from kdc.serving.engine.engine import activate

_BINS = 15
_FOLDS = 5
_ERROR = 0.05  # chance of keeping a temperature that does not help


@dataclass(frozen=True)
class Bin:
    rows: int  # multi-label: outputs, not rows
    confidence: float  # mean, 0 to 1
    accuracy: float  # 0 to 1


@dataclass(frozen=True)
class Reliability:
    ece: float  # expected calibration error, 0 to 1
    bins: tuple[Bin, ...]  # by rising confidence, without empty bins


def reliability(probabilities: Outputs, labels: Labels, kind: Kind) -> Reliability:
    """Calibration over 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3). Not for regression."""
    confidence = KINDS[kind].certainty(probabilities).ravel()
    right = (KINDS[kind].predictions(probabilities, 0.5) == labels).ravel()
    numbers = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    bins = []
    for number in np.unique(numbers):
        inside = numbers == number
        bins.append(Bin(int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())))
    ece = sum(one.rows * abs(one.confidence - one.accuracy) for one in bins) / len(confidence)
    return Reliability(float(ece), tuple(bins))


def calibrate(logits: Outputs, labels: Labels, kind: Kind, *, groups: Groups | None = None) -> float:
    """The likeliest temperature, 0.05 to 20 (Guo et al. 2017, section 4.2).

    It is 1.0 for regression. It is also 1.0 unless five-fold cross-validation shows a gain (one-sided t-test over
    groups, 5 %).
    """
    if not KINDS[kind].has_labels:
        return 1.0
    from scipy.stats import t

    group = group_numbers(groups, len(labels))
    count = int(group.max(initial=-1)) + 1
    fold = (np.random.default_rng(0).permutation(count) % _FOLDS)[group]
    gains = np.zeros(len(labels))
    for number in range(_FOLDS):
        inside, others = fold == number, fold != number
        if not inside.any() or not others.any():
            return 1.0
        fitted = _likeliest(logits[others], labels[others], kind)
        without = _surprise(logits[inside], labels[inside], kind, 1.0)
        gains[inside] = without - _surprise(logits[inside], labels[inside], kind, fitted)
    by_group = np.bincount(group, weights=gains - gains.mean())
    noise = t.ppf(1 - _ERROR, count - 1) * math.sqrt(by_group @ by_group * count / (count - 1)) / len(gains)
    return round(_likeliest(logits, labels, kind), 4) if gains.mean() > noise else 1.0


def _likeliest(logits: Outputs, labels: Labels, kind: Kind) -> float:
    from scipy.optimize import minimize_scalar

    def surprise(log_temperature: float) -> float:
        return float(_surprise(logits, labels, kind, float(np.exp(log_temperature))).mean())

    return float(np.exp(minimize_scalar(surprise, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def _surprise(logits: Outputs, labels: Labels, kind: Kind, temperature: float) -> Floats:
    probabilities = activate(logits, kind, temperature).astype(np.float64)
    if KINDS[kind].is_exclusive:
        likely = probabilities[np.arange(len(labels)), labels.astype(np.int64)]
        return -np.log(np.maximum(likely, 1e-12))
    likely = np.where(labels.astype(bool), probabilities, 1 - probabilities)
    return -np.log(np.maximum(likely, 1e-12)).mean(axis=1)
