"""Shallow students in whole runs: distilled, merged, quantised, judged and served as any other student is."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_runs
from conftest import ALL_MODELS, Finished
from safetensors.numpy import load_file

from kdc.artifact.contract.terms import Costs
from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError
from kdc.pipeline.results.training import CandidatesResult
from kdc.pipeline.rundir.record import read_result
from kdc.serving.engine.engine import Engine


@pytest.mark.parametrize(
    "student",
    [
        "conv:width=12,channels=16,hidden=16",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("static:width=12,hidden=16", "linear:width=12,pairs=64")
        ),
    ],
)
def test_a_shallow_student_ends_as_an_artifact_that_serves(student: str, finished: Finished, tmp_path: Path) -> None:
    """Would catch adapters asked of it, a projection that is lost on the way, and tokens of another tokenizer."""
    run = tmp_path / "run"
    shutil.copytree(finished.folder / "run", run, symlinks=True)
    controls = {"run.controls": student.startswith("static")}  # they take two more trainings
    flags = {"run.out": run, "student.model": student} | ALL_MODELS | controls
    longer = "student.min_steps=240"  # with fewer, some seeds end at 73 %
    result = tiny_runs.compress(tiny_runs.config_for(finished.folder, finished.teacher, longer, flags=flags))
    assert result.stages["teacher"].skipped
    assert not result.stages["student"].skipped
    table: dict[str, Any] = dict(result.metrics)
    assert table["fp32"]["accuracy"] > 90
    assert table["int8"]["accuracy"] > 85
    assert table["student"]["parameters"] == table["merged"]["parameters"] == table["fp32"]["parameters"]
    assert table["fp32"]["parameters"] < 100 * 16 + 3000
    assert load_file(run / "merge" / "model" / "model.safetensors")["vectors.weight"].shape == (100 + 1, 12)
    assert result.artifact is not None
    assert "by training all weights" in (result.artifact / "README.md").read_text(encoding="utf-8")
    assert load_manifest(result.artifact).lineage.student == f"{student} of the finetuned teacher"
    engine = Engine.load(result.artifact, variant="fp32", device="cpu")
    with np.load(run / "evaluate" / "logits.npz") as logits:
        rows = [("w1 w9", "w4"), ("w2 w9 w30", "w4 w5")]
        assert engine.predict(rows).argmax(1).tolist() == [engine.labels.index(name) for name in ("yes", "no")]
        assert np.abs(logits["eval/fp32"] - logits["eval/merged"]).max() < 1e-3


@pytest.mark.parametrize("setting", ["student.method=lora", "student.gradient_checkpointing=true"])
def test_what_needs_layers_is_refused_before_anything_is_trained(
    setting: str, finished: Finished, tmp_path: Path
) -> None:
    """Also where the rows are there already."""
    run = tmp_path / "run"
    shutil.copytree(finished.folder / "run" / "data", run / "data", symlinks=True)
    flags = {"run.out": run, "student.model": "conv"} | ALL_MODELS
    config = tiny_runs.config_for(finished.folder, finished.teacher, setting, flags=flags)
    with pytest.raises(InputError, match="without layers can have no adapters"):
        tiny_runs.compress(config)
    assert not (run / "teacher").exists()


@pytest.mark.slow
def test_vectors_of_four_bits_reach_the_artifact(finished: Finished, tmp_path: Path) -> None:
    """Would catch a setting that is lost between the stages, or that makes nothing anew, and a contract whose size was
    measured of another file than the one that is made."""
    teacher = tiny_runs.base_model("bert", tmp_path / "teacher", hidden_size=64)
    flags = {"run.out": tmp_path / "run", "student.model": "static:width=64,hidden=16"}

    def made(*sets: str) -> tuple[bool, int, float]:
        """Whether vectors have 4 bits, their bytes, and the megabytes of the file and the tokenizer."""
        config = tiny_runs.config_for(finished.folder, teacher, "teacher.epochs=3", *sets, flags=flags)
        tiny_runs.compress(config, until="quantize")
        file = tmp_path / "run" / "quantize" / "model.int8.onnx"
        matrices = [each for each in onnx.load(file).graph.initializer if len(each.dims) > 1]
        vectors = max(matrices, key=lambda matrix: tuple(matrix.dims))  # more tokens than any layer has rows
        tokenizer = tmp_path / "run" / "export" / "tokenizer.json"
        is_packed = vectors.data_type == onnx.TensorProto.UINT8
        return is_packed, len(vectors.raw_data), (file.stat().st_size + tokenizer.stat().st_size) / 1e6

    # Not the files: layers of 8 bits have several forms, and a search may pick another one each time.
    (eight, large, megabytes), (four, small, _) = made("quantize.vector_bits=8"), made("quantize.vector_bits=4")
    assert (eight, four) == (False, True)
    assert small == large // 2
    assert not made()[0]
    assert not made(f"contract.max_size_mb={megabytes + 0.01}")[0]
    (measured,) = read_result(tmp_path / "run", CandidatesResult).candidates.values()
    (costs,) = (each for name, each in measured.variants.items() if name == "int8")
    assert isinstance(costs, Costs)
    assert measured.int8_4_bits is not None
    assert made(f"contract.max_size_mb={(measured.int8_4_bits.size_mb + costs.size_mb) / 2}")[0]
