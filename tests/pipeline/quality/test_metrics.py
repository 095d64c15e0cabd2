"""Metrics against values derived by hand."""

import numpy as np
import pytest

from kdc.artifact.task_kinds import KINDS
from kdc.pipeline.config import metrics

# Answers 1 1 0 0 1 against truth 1 0 0 0 1: tp 2, fp 1, tn 2, fn 0.
LOGITS = np.array([[0, 1], [0, 1], [1, 0], [1, 0], [0, 1]], dtype=float)
TRUTH = np.array([1, 0, 0, 0, 1])


def score(name: str, truth: np.ndarray, answers: np.ndarray) -> float:
    """One metric of unweighted rows."""
    return float(metrics.METRICS[name].scorer(truth, answers)(np.ones((1, len(truth))))[0])


def test_accuracy_f1_and_matthews_equal_hand_derived_values() -> None:
    scores = metrics.compute(LOGITS, TRUTH, "classification", ("accuracy", "f1", "matthews", "macro_f1"))
    matthews = (2 * 2 - 1 * 0) / np.sqrt((2 + 1) * (2 + 0) * (2 + 1) * (2 + 0))
    assert scores["accuracy"] == pytest.approx(80.0)
    assert scores["f1"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 0))
    assert scores["matthews"] == pytest.approx(100 * matthews, abs=1e-3)
    assert scores["macro_f1"] == pytest.approx(100 * (0.8 + 2 * 2 / (2 * 2 + 0 + 1)) / 2)


def test_correlations_equal_hand_derived_values() -> None:
    logits, truth = np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 2.0])
    scores = metrics.compute(logits, truth, "regression", ("pearson", "spearman"))
    x, y = logits[:, 0] - 7 / 3, truth - 2
    assert scores["pearson"] == pytest.approx(100 * (x @ y) / np.sqrt((x @ x) * (y @ y)), abs=1e-3)
    assert scores["spearman"] == pytest.approx(50.0)


def test_a_constant_regression_counts_as_uncorrelated() -> None:
    assert metrics.compute(np.ones((3, 1)), np.array([1.0, 2.0, 3.0]), "regression", ("pearson",)) == {"pearson": 0.0}


def test_multilabel_answers_are_probabilities_of_at_least_one_half() -> None:
    assert KINDS["multilabel"].predictions(np.array([[0.0, -0.1, 3.0]])).tolist() == [[1, 0, 1]]


def test_multilabel_accuracy_counts_rows_that_are_right_in_every_label() -> None:
    logits = np.array([[1.0, -1.0], [1.0, 1.0]])
    assert metrics.compute(logits, np.array([[1, 0], [1, 0]]), "multilabel", ("accuracy",)) == {"accuracy": 50.0}


@pytest.mark.parametrize(
    ("logits", "kind", "expected"),
    [
        ([[0.0, 1.0], [0.2, 0.9]], "classification", True),
        ([[0.0, 1.0], [1.0, 0.0]], "classification", False),
        ([[2.0], [2.0]], "regression", True),
        ([[2.0], [2.1]], "regression", False),
        ([[1.0, -1.0], [2.0, -2.0]], "multilabel", True),
        ([[1.0, -1.0], [2.0, 2.0]], "multilabel", False),
    ],
)
def test_a_collapsed_model_is_told_from_one_that_answers(logits: list, kind: str, expected: bool) -> None:
    assert metrics.is_constant(np.array(logits), kind) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "rows"), [(2.0, 3), (0.1, 7), (123.456, 10), (1e6 / 3, 11)])
def test_labels_of_one_value_are_correlated_with_nothing(value: float, rows: int) -> None:
    """Would catch a deviation that rounding left of the mean, or none at all, taken for one of the labels."""
    labels, answers = np.full(rows, value), np.arange(rows, dtype=float)[:, None]
    assert metrics.compute(answers, labels, "regression", ("pearson", "spearman")) == {"pearson": 0.0, "spearman": 0.0}


def test_labels_and_answers_of_very_different_sizes_can_be_correlated() -> None:
    """Would catch the rounding of the one side taken for the other side's."""
    large, small = np.array([1e6, 2e6, 3e6]), np.array([1e-7, 2e-7, 3e-7])
    for labels, answers in ((large, small), (small, large)):
        assert metrics.compute(answers[:, None], labels, "regression", ("pearson",)) == {"pearson": 100.0}


def test_the_majority_of_several_labels_gives_each_label_that_half_of_the_rows_have() -> None:
    """Would catch all labels given to every row, and shares taken over the labels of a row."""
    labels = np.array([[1, 0], [1, 1], [1, 0], [0, 0]])  # always (1, 0) is right in the first row and the third
    assert metrics.majority(labels, "multilabel", ("accuracy",)) == {"accuracy": 50.0}


def test_the_majority_of_a_balanced_task_is_chance() -> None:
    assert metrics.majority(np.array([0, 1, 1, 0]), "classification", ("accuracy",)) == {"accuracy": 50.0}


def test_the_majority_answer_for_numbers_is_their_mean() -> None:
    assert metrics.majority(np.array([-1.5, 0.5]), "regression", ("pearson",)) == {"pearson": 0.0}


def test_the_labels_as_they_are_count_among_the_shuffled_ones() -> None:
    """A chance of 0 would say that it cannot be."""
    labels = np.arange(200) % 2
    assert metrics.chance(np.eye(2)[labels], labels, "classification", "accuracy") == 1 / 200


def test_the_majority_answer_is_the_most_frequent_class() -> None:
    assert metrics.majority(np.array([2, 2, 2, 0]), "classification", ("accuracy",)) == {"accuracy": 75.0}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[1, 0, 0], [0, 1, 0]], 100.0),  # no row has the third label
        ([[1, 0, 0], [1, 0, 0]], 100 * 2 / 3),  # the first is right once of twice: F1 is 2/3; the others have no row
        ([[0, 0, 0], [0, 0, 0]], 0.0),
    ],
)
def test_multilabel_macro_f1_is_over_the_labels_that_some_row_has(labels: list, expected: float) -> None:
    logits = np.array([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])
    score = metrics.compute(logits, np.array(labels), "multilabel", ("macro_f1",))["macro_f1"]
    assert score == pytest.approx(expected, abs=1e-3)


@pytest.mark.filterwarnings("ignore:A single label was found")  # scikit-learn's, of the rows of one class
@pytest.mark.parametrize("classes", [2, 3, 77])
def test_metrics_of_classes_equal_those_of_scikit_learn(classes: int) -> None:
    """Would catch: a class that only one of truth and answers holds, or none; rows of one class alone."""
    from sklearn.metrics import f1_score, matthews_corrcoef

    generator = np.random.default_rng(classes)
    for rows in (1, 2, 5, 40, 300):
        for _ in range(20):
            truth = generator.integers(0, classes, rows)
            answers = np.where(generator.random(rows) < 0.6, truth, generator.integers(0, classes, rows))
            present = np.unique(truth)
            expected = f1_score(truth, answers, labels=present, average="macro", zero_division=0.0)
            assert score("macro_f1", truth, answers) == pytest.approx(expected, abs=1e-12)
            assert score("matthews", truth, answers) == pytest.approx(matthews_corrcoef(truth, answers), abs=1e-12)
            if classes == 2:
                assert score("f1", truth, answers) == pytest.approx(
                    f1_score(truth, answers, zero_division=0.0), abs=1e-12
                )


def test_macro_f1_of_several_labels_equals_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    for _ in range(50):
        truth, answers = generator.random((2, 30, 5)) < generator.random(5)
        present = np.flatnonzero(truth.any(axis=0))
        expected = f1_score(truth, answers, labels=present, average="macro", zero_division=0.0) if len(present) else 0.0
        assert score("macro_f1", truth.astype(int), answers.astype(int)) == pytest.approx(expected, abs=1e-12)


def test_label_changes_are_counted_by_kind() -> None:
    before = np.array([[1.0, -0.1], [0.0, 1.0], [-1.0, -2.0]])
    after = np.array([[0.5, 0.6], [0.0, 2.0], [-1.0, 0.1]])
    assert metrics.changed_labels(after, before, "classification") == 2
    assert metrics.changed_labels(after, before, "multilabel") == 2
    assert metrics.changed_labels(after, before, "regression") == 0


def test_a_label_counts_as_changed_whichever_way_it_changed() -> None:
    first, second = np.array([[1.0, 0.0], [0.0, 1.0]])[[0, 1, 0]], np.array([[1.0, 0.0], [0.0, 1.0]])[[1, 0, 0]]
    assert metrics.changed_labels(first, second, "classification") == 2
    assert metrics.changed_labels(first - 0.5, second - 0.5, "multilabel") == 2
    assert metrics.changed_labels(first, second, "regression") == 0


@pytest.mark.parametrize(
    ("answers", "constant"),
    [([1e6, 1e6 + 1e-3], True), ([1e-9, 3e-9], True), ([0.5, 0.5 + 1e-5], False), ([1e6, 1e6 + 10], False)],
)
def test_numbers_that_differ_by_rounding_alone_are_one_answer(answers: list[float], constant: bool) -> None:
    assert metrics.is_constant(np.array(answers)[:, None], "regression") is constant
