"""Shallow students in whole runs: distilled, merged, quantised, judged and served as any other student is."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from conftest import ALL_MODELS, Finished

from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine


@pytest.mark.parametrize("student", ["conv:width=16,channels=16,hidden=16", "static:width=16,hidden=16"])
def test_a_shallow_student_ends_as_an_artifact_that_serves(student: str, finished: Finished, tmp_path: Path) -> None:
    """Would catch adapters asked of it, a projection that is lost on the way, and tokens of another tokenizer."""
    run = tmp_path / "run"
    shutil.copytree(finished.folder / "run", run, symlinks=True)
    flags = {"run.out": run, "student.model": student} | ALL_MODELS
    result = tiny_runs.compress(tiny_runs.config_for(finished.folder, finished.teacher, flags=flags))
    assert result.stages["teacher"].skipped
    assert not result.stages["student"].skipped
    table: dict[str, Any] = dict(result.metrics)
    assert table["fp32"]["accuracy"] > 90
    assert table["int8"]["accuracy"] > 85
    assert table["merged"]["parameters"] == table["fp32"]["parameters"] < 100 * 16 + 3000
    assert result.artifact is not None
    assert load_manifest(result.artifact).lineage.student == f"{student} of the finetuned teacher"
    engine = Engine.load(result.artifact, variant="fp32", device="cpu")
    with np.load(run / "evaluate" / "logits.npz") as logits:
        rows = [("w1 w9", "w4"), ("w2 w9 w30", "w4 w5")]
        assert engine.predict(rows).argmax(1).tolist() == [engine.labels.index(name) for name in ("yes", "no")]
        assert np.abs(logits["eval/fp32"] - logits["eval/merged"]).max() < 1e-3


def test_adapters_of_a_shallow_student_are_refused_before_anything_is_trained(
    finished: Finished, tmp_path: Path
) -> None:
    flags = {"run.out": tmp_path / "run", "student.model": "conv"}
    config = tiny_runs.config_for(finished.folder, finished.teacher, "student.method=lora", flags=flags)
    with pytest.raises(InputError, match="no layers that could take adapters"):
        tiny_runs.compress(config)
    assert not (tmp_path / "run" / "teacher").exists()
