"""Labels, sureness and sets of labels from probabilities, against what a person reads off them."""

from typing import Any

import numpy as np
import pytest

from kdc.artifact.decision import ABSTAINED, Abstention, LabelSets, OperatingPoint
from kdc.artifact.manifest import TaskInfo
from kdc.serving.engine.deciding import answered, decided, in_sets, in_words, label_counts, sets_in_words, sureness

MOOD = TaskInfo(name="mood", kind="classification", labels=("bad", "so so", "good"))
SPAM = TaskInfo(name="spam", kind="classification", labels=("ham", "spam"))
TAGS = TaskInfo(name="tags", kind="multilabel", labels=("a", "b"))


def point(label: str, threshold: float) -> OperatingPoint:
    return OperatingPoint(label=label, threshold=threshold, aim="fixed")


def rows(*probabilities: tuple[float, ...]) -> Any:
    return np.array(probabilities)


# A task, probabilities of rows, and their labels. Each threshold is met by one row as it stands.
CASES: dict[str, tuple[TaskInfo, Any, list[Any]]] = {
    "classes": (MOOD, rows((0.5, 0.3, 0.2), (0.1, 0.2, 0.7), (0.2, 0.6, 0.2)), ["bad", "good", "so so"]),
    "classes that abstain": (
        MOOD.model_copy(update={"abstain": Abstention(threshold=0.5, aim="fixed")}),
        rows((0.5, 0.3, 0.2), (0.4, 0.2, 0.4), (0.1, 0.2, 0.7)),
        ["bad", ABSTAINED, "good"],
    ),
    "the first of two classes": (
        SPAM.model_copy(update={"points": (point("ham", 0.75),)}),
        rows((0.75, 0.25), (0.7, 0.3), (0.8, 0.2)),
        ["ham", "spam", "ham"],
    ),
    "the second of two classes": (
        SPAM.model_copy(update={"points": (point("spam", 0.25),)}),
        rows((0.75, 0.25), (0.8, 0.2), (0.1, 0.9)),
        ["spam", "ham", "spam"],
    ),
    "labels": (TAGS, rows((0.5, 0.4), (0.5, 0.6), (0.1, 0.2)), [["a"], ["a", "b"], []]),
    "labels with a threshold": (
        TAGS.model_copy(update={"points": (point("b", 0.25),)}),
        rows((0.4, 0.25), (0.6, 0.2), (0.9, 0.9)),
        [["b"], ["a"], ["a", "b"]],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_row_gets_its_labels_from_the_thresholds_on(case: str) -> None:
    task, probabilities, labels = CASES[case]
    chosen = decided(probabilities, task)
    assert chosen.dtype == np.bool_
    assert chosen.shape == probabilities.shape
    assert in_words(chosen, task) == labels
    given = [label for row in labels for label in (row if isinstance(row, list) else [row])]
    assert label_counts(probabilities, task).tolist() == [given.count(label) for label in task.labels]


def test_a_class_that_no_row_gets_is_counted_too() -> None:
    assert label_counts(rows((0.8, 0.1, 0.1)), MOOD).tolist() == [1, 0, 0]


def test_a_row_is_answered_from_the_threshold_on() -> None:
    found = answered(rows((0.5, 0.5), (0.4, 0.3), (0.1, 0.9)), Abstention(threshold=0.5, aim="fixed"))
    assert found.tolist() == [True, False, True]


def test_a_model_is_as_sure_of_a_row_as_of_its_best_class_or_its_least_sure_label() -> None:
    assert sureness(rows((0.4, 0.3, 0.3), (0.1, 0.2, 0.7)), MOOD).tolist() == [0.4, 0.7]
    found = sureness(rows((0.9, 0.4), (0.01, 0.98), (0.0, 1.0), (0.25, 0.75)), TAGS)
    assert found.tolist() == pytest.approx([0.6, 0.98, 1.0, 0.75])


def test_a_set_has_the_labels_from_the_probability_on_and_at_least_the_best_one() -> None:
    sets = LabelSets(coverage=0.9, at_least=0.25)
    probabilities = rows((0.25, 0.5, 0.25), (0.2, 0.2, 0.6), (0.2, 0.7, 0.1), (0.25, 0.25, 0.5))
    expected = [["so so", "bad", "good"], ["good"], ["so so"], ["good", "bad", "so so"]]
    assert sets_in_words(probabilities, MOOD.model_copy(update={"sets": sets})) == expected
    assert in_sets(probabilities, sets).sum(axis=1).tolist() == [3, 1, 1, 3]
    surer = sets.model_copy(update={"at_least": 0.5})
    found = in_sets(rows((0.4, 0.3, 0.3), (0.2, 0.8, 0.0), (0.4, 0.4, 0.2)), surer)
    assert found.tolist() == [[True, False, False], [False, True, False], [True, True, False]]  # two are the best one
