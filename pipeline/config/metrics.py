"""Metrics as GLUE defines them, in points (0 to 100; correlations -100 to 100): `METRICS` holds all of them.

A metric is written once, for weighted rows: `scorer` prepares it for a model's answers, and gives its value for any
number of weightings at a time. With all weights 1 that is the metric. The bootstrap of
`kdc.pipeline.quality.intervals` draws other weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import Kind

_SHUFFLES = 199

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]  # (rows,)
Labels = NDArray[np.generic]  # (rows,) class ids or numbers; (rows, outputs) in {0, 1} for multi-label, as answers are
Outputs = NDArray[np.floating]  # (rows, outputs) logits or probabilities
Groups = NDArray[np.integer]  # (rows,) the same number for rows that belong together; None: each row stands alone
Scorer = Callable[[Floats], Floats]  # (samples, rows) weights, none below 0, to (samples,) scores from -1 to 1
OfCounts = Callable[[Floats, Floats, Floats], Floats]  # what `counts` gives to (samples,) scores


@dataclass(frozen=True)
class Metric:
    """A metric whose score is 1 at most, and greater for a better model. An error is registered with a minus sign."""

    kinds: tuple[Kind, ...]  # of the tasks that it fits
    hub_name: str  # its name on the Hugging Face hub
    lowest: float  # the lowest score
    scorer: Callable[[NDArray[np.generic], NDArray[np.generic]], Scorer]  # from labels and answers, as `truth_of` gives
    # What errors that no row shows can cost, see `kdc.pipeline.quality.unseen`. A score of counts gives itself. Other
    # scores give how far they fall if all rows turn wrong; half of the rows then cost half.
    unseen_cost: OfCounts | float
    labels: int | None = None  # how many labels a task must have; None: any number


def fitting(kind: Kind, labels: int | None = None) -> list[str]:
    """Names of the metrics that fit tasks of a kind, and with so many labels; the default comes first."""
    fits = [name for name, metric in METRICS.items() if kind in metric.kinds]
    return fits if labels is None else [name for name in fits if METRICS[name].labels in (None, labels)]


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
    return _points(truth_of(labels, kind), predictions(np.asarray(logits, dtype=np.float64), kind), names)


def _points(truth: NDArray[np.generic], answers: NDArray[np.generic], names: tuple[str, ...]) -> dict[str, float]:
    once = np.ones((1, len(truth)))
    return {name: round(100 * float(METRICS[name].scorer(truth, answers)(once)[0]), 4) for name in names}


def truth_of(labels: NDArray[np.generic], kind: Kind) -> NDArray[np.generic]:
    """Labels as `METRICS` take them: integers, but for regression."""
    return np.asarray(labels) if kind == "regression" else np.asarray(labels).astype(np.int64)


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
    return int((~is_right(predictions(logits, kind), predictions(others, kind))).sum())


def majority(labels: NDArray[np.generic], kind: Kind, names: tuple[str, ...]) -> dict[str, float]:
    """The metrics of always giving the most frequent answer (the mean for regression), in points."""
    truth = truth_of(labels, kind)
    if kind == "regression":
        answers = np.full(len(truth), float(truth.mean()))
    elif kind == "multilabel":
        answers = np.tile((truth.mean(0) >= 0.5).astype(np.int64), (len(truth), 1))
    else:
        answers = np.full(len(truth), np.bincount(truth).argmax())
    return _points(truth, answers, names)


def chance(
    logits: NDArray[np.floating],
    labels: NDArray[np.generic],
    kind: Kind,
    name: str,
    *,
    groups: Groups | None = None,
) -> float:
    """How likely a score as high as this one is for answers that know nothing of the labels, within (0, 1].

    A permutation test (Ojala and Garriga 2010, Journal of Machine Learning Research 11:1833): the share of shuffled
    labels that the same answers fit as well. It holds for every metric, also for those by which a coin beats the
    majority. Rows of a group may have labels, and answers, that hang together: whole groups change places, and the rows
    within each. The arguments are as in `compute`; `groups` are (rows,), None if each row stands alone.
    """
    answers, truth = predictions(np.asarray(logits, dtype=np.float64), kind), truth_of(labels, kind)
    once, generator = np.ones((1, len(truth))), np.random.default_rng(0)
    score = METRICS[name].scorer(truth, answers)(once)[0]
    number = group_numbers(groups, len(truth))
    group_by_group = np.argsort(number, kind="stable")  # places of the rows
    shuffled = []
    for _ in range(_SHUFFLES):
        other_order = np.lexsort((generator.random(len(truth)), generator.permutation(number.max() + 1)[number]))
        moved = truth.copy()
        moved[group_by_group] = truth[other_order]
        shuffled.append(METRICS[name].scorer(moved, answers)(once)[0])
    return float(1 + sum(other >= score - 1e-12 for other in shuffled)) / (1 + _SHUFFLES)


def group_numbers(groups: Groups | None, rows: int) -> NDArray[np.intp]:
    """(rows,) the number of each row's group, from 0; without groups each row is one by itself."""
    return np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)


def is_right(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> NDArray[np.bool_]:
    """(rows,) whether a row's answer is its label; of multi-label rows, whether all labels are right."""
    return (truth == answers).reshape(len(truth), -1).all(axis=1)


def _accuracy(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> Scorer:
    right = is_right(truth, answers).astype(np.float64)
    return lambda weights: weights @ right / weights.sum(axis=1)


def _f1(both: Floats, answered: Floats, actual: Floats) -> Floats:
    """Of class 1."""
    return f1_by_class(both, answered, actual)[:, 1]


def _macro_f1(both: Floats, answered: Floats, actual: Floats) -> Floats:
    """The mean F1 of the classes that the rows have.

    scikit-learn also takes the classes that a model answers. Two models would then be averages over different classes,
    and a single wrong answer could cost a third of the scale.
    """
    present = actual > 0
    return (f1_by_class(both, answered, actual) * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1)


def _matthews(both: Floats, answered: Floats, actual: Floats) -> Floats:
    """The correlation coefficient R_K of several classes (Gorodkin 2004, Computational Biology and Chemistry 28:367);
    0 if all rows get one answer."""
    rows = actual.sum(axis=1)
    above = both.sum(axis=1) * rows - (answered * actual).sum(axis=1)
    spread = (rows**2 - (answered**2).sum(axis=1)) * (rows**2 - (actual**2).sum(axis=1))
    return np.divide(above, np.sqrt(spread.clip(0)), out=np.zeros_like(above), where=spread > 0)


def counts(
    truth: NDArray[np.generic], answers: NDArray[np.generic]
) -> Callable[[Floats], tuple[Floats, Floats, Floats]]:
    """Maps weights to weighted counts of rows, (samples, classes) each: the class is answered and right, it is
    answered, and it is the label."""
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
    """2 TP / (2 TP + FP + FN) of each class; 0 for one that neither occurs nor is answered."""
    below = answered + actual
    return np.divide(2 * both, below, out=np.zeros_like(below), where=below > 0)


def _pearson(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> Scorer:
    x, y = (side / (np.abs(side).max() or 1.0) for side in (truth.astype(np.float64), answers.astype(np.float64)))
    smallest = (1e-12 * np.abs(x).max(), 1e-12 * np.abs(y).max())
    x, y = x - x.mean(), y - y.mean()  # so that sums of squares lose no digits
    columns = np.stack([x, y, x * x, y * y, x * y], axis=1)

    def score(weights: Floats) -> Floats:
        x, y, xx, yy, xy = (weights @ columns / weights.sum(axis=1, keepdims=True)).T
        return _correlation(xx - x * x, yy - y * y, xy - x * y, smallest)

    return score


def _spearman(truth: NDArray[np.generic], answers: NDArray[np.generic]) -> Scorer:
    """Pearson's correlation of ranks; rows of one value share the mean of their ranks.

    Rows are put in order once, and the samples of a row lie side by side, so that a rank is a running sum of weights.
    """
    by_truth = np.argsort(truth, kind="stable")
    by_answer = np.argsort(answers[by_truth], kind="stable")  # from the order of the labels to that of the answers
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
    """From weights to ranks less their mean, (rows, samples) of rows in the order of their values: a row of weight w
    ranks as w rows would."""
    is_first = np.append(True, ascending[1:] != ascending[:-1])
    value = np.cumsum(is_first) - 1  # the number of each row's value among the distinct ones
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
    """(samples,) correlations; 0 if one side is constant: its deviation is no more than rounding leaves of one."""
    varies = (x_variance > smallest[0] ** 2) & (y_variance > smallest[1] ** 2)
    below = np.sqrt((x_variance * y_variance).clip(0))
    return np.divide(covariance, below, out=np.zeros_like(below), where=varies)


def _counted(score: OfCounts, truth: NDArray[np.generic], answers: NDArray[np.generic]) -> Scorer:
    counted = counts(truth, answers)
    return lambda weights: score(*counted(weights))


_CLASSES: tuple[Kind, ...] = ("classification",)
_LABELS: tuple[Kind, ...] = ("classification", "multilabel")
# All metrics by name. The first one of a kind of task decides people's own tasks, which are told the second one too.
METRICS: dict[str, Metric] = {
    "macro_f1": Metric(_LABELS, "f1", 0.0, partial(_counted, _macro_f1), unseen_cost=_macro_f1),
    "accuracy": Metric(_LABELS, "accuracy", 0.0, _accuracy, unseen_cost=1.0),
    "f1": Metric(_CLASSES, "f1", 0.0, partial(_counted, _f1), unseen_cost=_f1, labels=2),
    "matthews": Metric(_CLASSES, "matthews_correlation", -1.0, partial(_counted, _matthews), unseen_cost=_matthews),
    "pearson": Metric(("regression",), "pearsonr", -1.0, _pearson, unseen_cost=1.0),
    "spearman": Metric(("regression",), "spearmanr", -1.0, _spearman, unseen_cost=1.0),
}
