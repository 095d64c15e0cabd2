"""The process in which a model's memory is measured."""

from pathlib import Path

import pytest
from bag_models import write_artifact

from kdc.artifact.folder import load_manifest
from kdc.pipeline.quality.peak_memory import ModelFiles, peak_memory_bytes


@pytest.mark.usefixtures("among_foreign_modules")
def test_nothing_is_imported_from_the_callers_folder(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    manifest = load_manifest(artifact)
    files = ModelFiles(
        model=artifact / "model.onnx",
        tokenizer_json=artifact / "tokenizer.json",
        tokenizer=manifest.tokenizer,
        task=manifest.task,
    )
    assert peak_memory_bytes(files, ["good"]) > 10_000_000
