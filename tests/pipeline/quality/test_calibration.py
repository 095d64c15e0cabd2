"""Calibration errors against cases that can be worked out by hand."""

import numpy as np
import pytest

from kdc.pipeline.quality.calibration import reliability


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    result = reliability(probabilities, np.array([0, 0, 1]), "classification")
    # Two rows of confidence 0.9, half of them right; one of 0.6, wrong: (2 * 0.4 + 1 * 0.6) / 3.
    assert result.ece == pytest.approx(1.4 / 3)
    assert [(each.rows, each.accuracy) for each in result.bins] == [(1, 0.0), (2, 0.5)]


def test_calibration_error_of_a_sure_and_right_model_is_none() -> None:
    assert reliability(np.eye(3), np.arange(3), "classification").ece == 0.0


def test_every_output_of_multi_label_is_an_answer_of_its_own() -> None:
    probabilities = np.array([[0.8, 0.2], [0.8, 0.8]])
    result = reliability(probabilities, np.array([[1, 0], [1, 0]]), "multilabel")
    assert result.ece == pytest.approx(0.05)  # all of confidence 0.8, three of four right
    assert [each.rows for each in result.bins] == [4]
