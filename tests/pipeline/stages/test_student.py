"""A student that reads the first token of a teacher that reads the mean."""

from pathlib import Path

import tiny_runs
from transformers import AutoModelForSequenceClassification

from kdc.artifact.folder import load_manifest

SETS = ("teacher.pooling=mean", "student.pooling=first", "quantize.enabled=false", "export.fp16=false")


def test_a_student_on_the_first_token_learns_and_opens_by_transformers(tmp_path: Path) -> None:
    teacher = tiny_runs.base_model("bert", tmp_path / "teacher")
    tiny_runs.write_rows(tmp_path / "train.csv", 500, seed=1)
    tiny_runs.write_rows(tmp_path / "eval.csv", 60, seed=2)
    table = tiny_runs.table_of(tiny_runs.config_for(tmp_path, teacher, *SETS))
    assert table["merged"]["accuracy"] > 75
    opened, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run" / "merge" / "model", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert tuple(opened.config.id2label.values()) == load_manifest(tmp_path / "run" / "artifact").task.labels
