"""Targets that are calibrated: a teacher that is too sure is brought back to what the tuning slice bears out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import tiny_runs
from scipy.special import softmax
from tiny_runs import base_model, config_for, write_rows

from pipeline.reading.prepared import open_data


def test_calibrated_targets_are_the_teachers_logits_over_one_temperature(tmp_path: Path) -> None:
    def noisy(yes: bool, generator: random.Random) -> str:  # a teacher that learns this is sometimes sure and wrong
        return "yes" if yes != (generator.random() < 0.08) else "no"

    write_rows(tmp_path / "train.csv", 320, seed=1, label=noisy)
    write_rows(tmp_path / "eval.csv", 100, seed=2)
    teacher = base_model("bert", tmp_path / "teacher")
    plain, calibrated = (
        config_for(tmp_path, teacher, f"targets.calibrate={value}", "teacher.learning_rate=2e-3") for value in ("false", "true")
    )  # fmt: skip
    logits = []
    for config in (plain, calibrated):
        tiny_runs.compress(config, until="targets")
        logits.append(np.load(tmp_path / "run" / "targets" / "logits.npy"))
    temperature = json.loads((tmp_path / "run" / "targets" / "stage.json").read_text())["metrics"]["temperature"]
    assert temperature != 1.0
    np.testing.assert_allclose(logits[1] * temperature, logits[0], rtol=1e-5)
    tune = open_data(tmp_path / "run" / "data").rows("tune")
    places, labels = np.asarray(tune["row"][:]), np.asarray(tune["label"][:])

    def surprise(found: np.ndarray) -> float:
        shares = softmax(found[places].astype(np.float64), axis=1)
        return float(-np.log(np.maximum(shares[np.arange(len(labels)), labels], 1e-12)).mean())

    assert surprise(logits[1]) < surprise(logits[0])
    assert surprise(logits[1]) <= min(surprise(logits[1] * 1.1), surprise(logits[1] * 0.9))
