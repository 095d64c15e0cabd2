"""Calibration errors by hand, and temperatures: found where there is one, by whatever search, and else left alone."""

import numpy as np
import pytest

from kdc.pipeline.quality.calibration import Bin, calibrate, reliability


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


def test_confidences_share_a_bin_of_a_fifteenth() -> None:
    probabilities = np.array([[0.60, 0.40], [0.66, 0.34], [0.67, 0.33], [0.94, 0.06], [1.0, 0.0]])
    bins = reliability(probabilities, np.array([0, 1, 0, 1, 0]), "classification").bins
    assert [(each.rows, each.accuracy) for each in bins] == [(2, 0.5), (1, 1.0), (2, 0.5)]
    assert [each.confidence for each in bins] == pytest.approx([0.63, 0.67, 0.97])


def test_a_probability_of_a_half_is_an_answer_for_the_label() -> None:
    assert reliability(np.array([[0.5]]), np.array([[1]]), "multilabel").bins == (Bin(1, 0.5, 1.0),)


def rows_of(count: int, outputs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that have the probabilities which the logits say."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, outputs)) * 2
    powers = np.exp(logits)
    labels = np.array([random.choice(outputs, p=row) for row in powers / powers.sum(-1, keepdims=True)])
    return logits, labels


def test_calibration_finds_the_temperature_that_logits_were_scaled_by() -> None:
    logits, labels = rows_of(20_000, 3, seed=0)
    assert calibrate((3 * logits).astype(np.float32), labels, "classification") == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("factor", [2.5, 0.3])
def test_the_temperature_is_the_likeliest_of_a_fine_grid(factor: float) -> None:
    logits, labels = rows_of(400, 3, seed=2)
    logits = (factor * logits).astype(np.float32)

    def surprise(temperature: float) -> float:
        powers = np.exp(logits.astype(np.float64) / temperature)
        return -np.log(powers[np.arange(400), labels] / powers.sum(-1)).mean()

    best = min(np.geomspace(0.05, 20, 6000), key=surprise)
    assert calibrate(logits, labels, "classification") == pytest.approx(best, rel=2e-3)


def test_the_temperature_of_several_labels_is_found_from_all_of_them() -> None:
    """Most rows have few labels. Would catch a temperature by the labels that a row has, and not by the others."""
    random = np.random.default_rng(3)
    logits = random.normal(size=(4000, 3)) * [1, 2, 3] - 1
    labels = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    assert calibrate((4 * logits).astype(np.float32), labels, "multilabel") == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(("factor", "end"), [(1000.0, 20.0), (0.001, 0.05)])
def test_a_temperature_has_ends(factor: float, end: float) -> None:
    logits, labels = rows_of(2000, 2, seed=4)
    assert calibrate((factor * logits).astype(np.float32), labels, "classification") == pytest.approx(end, rel=0.01)


@pytest.mark.parametrize(("factor", "least", "most"), [(1.0, 0, 2), (1.5, 10, 30)])
def test_a_temperature_is_taken_only_where_it_helps_beyond_noise(factor: float, least: int, most: int) -> None:
    """Would catch: a temperature that is fitted to noise and makes other rows' calibration worse. Of 60 times 300 rows
    none is taken of logits that are calibrated, and a third where they are half again too large."""
    sets = [rows_of(300, 2, seed) for seed in range(60)]
    taken = [
        calibrate((factor * logits).astype(np.float32), labels, "classification") != 1.0 for logits, labels in sets
    ]
    assert least <= sum(taken) <= most


def test_a_temperature_that_helps_groups_by_luck_is_seldom_taken() -> None:
    """Rows of a group have one label and one probability, which is right. Would catch groups that lie in the fitted and
    the tested rows, and a noise of rows that count as independent."""
    taken = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        groups = np.arange(400) // 8
        likely = random.beta(2, 2, 50)[groups]
        labels = (random.random(50)[groups] < likely).astype(int)
        logits = np.log(np.stack([1 - likely, likely], axis=1)).astype(np.float32)
        taken += calibrate(logits, labels, "classification", groups=groups) != 1.0
    assert taken / 60 <= 0.15


def test_too_few_rows_and_regression_have_no_temperature() -> None:
    logits, labels = rows_of(4, 2, seed=5)
    assert calibrate((50 * logits).astype(np.float32), labels, "classification") == 1.0
    assert calibrate(np.ones((30, 1), dtype=np.float32), np.ones(30), "regression") == 1.0
