"""Confident learning on an example worked by hand."""

import numpy as np

from kdc.pipeline.quality.label_errors import confident_classes, find_label_errors

LABELS = np.array([0, 0, 0, 1, 1, 1, 0])
PROBABILITIES = np.array(
    [
        [0.9, 0.1],  # confidently 0
        [0.2, 0.8],  # labelled 0, confidently 1
        [0.7, 0.3],  # confidently 0
        [0.1, 0.9],  # confidently 1
        [0.8, 0.2],  # labelled 1, confidently 0
        [0.35, 0.65],  # confidently 1
        [0.45, 0.55],  # labelled 0, most probably 1, but not confidently
    ]
)
# Thresholds: (0.9 + 0.2 + 0.7 + 0.45) / 4 = 0.5625 for class 0, (0.9 + 0.2 + 0.65) / 3 = 0.5833 for class 1.


def test_the_confident_joint_has_the_counts_worked_by_hand() -> None:
    confident = confident_classes(PROBABILITIES, LABELS)
    pairs = list(zip(LABELS.tolist(), confident.tolist(), strict=True))
    assert confident.tolist() == [0, 1, 0, 1, 0, 1, -1]
    joint = [[pairs.count((label, other)) for other in (0, 1)] for label in (0, 1)]
    assert joint == [[2, 1], [1, 2]]


def test_the_largest_margin_comes_first() -> None:
    probabilities = PROBABILITIES.copy()
    probabilities[4] = [0.81, 0.19]  # margin -0.62, row 1 has -0.6
    errors = find_label_errors(probabilities, LABELS)
    assert errors.rows.tolist() == [4, 1]
    assert errors.suggested.tolist() == [0, 1]


def test_a_row_whose_label_is_the_most_probable_class_is_no_error() -> None:
    # The last row reaches the threshold of class 1 (0.3) but not that of class 0, its label and its likely class.
    probabilities = np.array([[0.95, 0.05], [0.9, 0.1], [0.7, 0.3], [0.65, 0.35]])
    labels = np.array([0, 0, 1, 0])
    assert confident_classes(probabilities, labels).tolist() == [0, 0, 1, 1]
    assert find_label_errors(probabilities, labels).rows.tolist() == []


def test_a_class_without_rows_is_no_suggestion() -> None:
    probabilities = np.array([[0.1, 0.2, 0.7], [0.2, 0.7, 0.1]])
    assert find_label_errors(probabilities, np.array([0, 1])).suggested.tolist() == []
