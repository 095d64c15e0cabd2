"""Intervals and calibration errors against cases that can be worked out by hand."""

import numpy as np
import pytest

from kdc.pipeline.quality.intervals import bootstrap, difference, reliability, score_interval


def test_resamples_of_two_rows_have_the_means_that_can_be_counted() -> None:
    values = np.array([0.0, 1.0])  # a resample's mean is 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    resampled = [
        bootstrap(lambda rows: float(values[rows].mean()), 2, seed=1, confidence=share) for share in (0.95, 0.3)
    ]
    assert [each.interval for each in resampled] == [(0.0, 1.0), (0.5, 0.5)]
    assert resampled[0].standard_error == pytest.approx(0.125**0.5, abs=0.02)


def test_accuracys_interval_is_the_binomial_one() -> None:
    labels = np.array([0] * 320 + [1] * 80)
    logits = np.tile([1.0, 0.0], (400, 1))  # always 0: 80 % are right, standard error 2 points
    low, high = score_interval(logits, labels, "classification", "accuracy", seed=0)
    assert low == pytest.approx(80 - 1.96 * 2, abs=0.6)
    assert high == pytest.approx(80 + 1.96 * 2, abs=0.6)


def test_a_model_does_not_differ_from_itself() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 3
    assert difference(logits, logits, labels, "classification", "macro_f1", seed=0).interval == (0.0, 0.0)


def test_differences_are_paired() -> None:
    # Models that are right on all but the same rows differ by few rows, whatever their scores' own spread is.
    labels = np.zeros(400, dtype=np.int64)
    mine = np.tile([1.0, 0.0], (400, 1))
    mine[:100] = [0.0, 1.0]
    theirs = mine.copy()
    theirs[100:104] = [0.0, 1.0]  # four rows worse: 1 point, standard error sqrt(0.01 * 0.99 / 400) = 0.5 points
    low, high = difference(mine, theirs, labels, "classification", "accuracy", seed=0).interval
    assert low == pytest.approx(0.25, abs=0.25)
    assert high == pytest.approx(2.0, abs=0.3)


def test_the_same_seed_gives_the_same_interval() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
    assert len({score_interval(logits, labels, "classification", "f1", seed=7) for _ in range(2)}) == 1


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
