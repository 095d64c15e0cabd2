"""Targets that are calibrated: a teacher that is too sure is brought back to what the tuning slice bears out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
from tiny_runs import base_model, config_for, write_rows


def test_calibrated_targets_are_the_teachers_logits_over_one_temperature(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", 320, seed=1)
    write_rows(tmp_path / "eval.csv", 100, seed=2)
    teacher = base_model("bert", tmp_path / "teacher")
    plain, calibrated = (
        config_for(tmp_path, teacher, f"targets.calibrate={value}") for value in ("false", "true")
    )  # fmt: skip
    logits = []
    for config in (plain, calibrated):
        tiny_runs.compress(config, until="targets")
        logits.append(np.load(tmp_path / "run" / "targets" / "logits.npy"))
    temperature = json.loads((tmp_path / "run" / "targets" / "stage.json").read_text())["metrics"]["temperature"]
    assert temperature != 1.0
    np.testing.assert_allclose(logits[1] * temperature, logits[0], rtol=1e-5)
    assert temperature == pytest.approx(float(np.abs(logits[0]).sum() / np.abs(logits[1]).sum()), rel=1e-4)
