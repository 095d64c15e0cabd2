"""A run's question: it is in the artifact, and another one repeats the last stage alone."""

import json
from pathlib import Path

import pytest
import tiny_runs

from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError

QUESTION = {"type": "choice", "instructions": "Which?", "criteria": {"a": "first", "b": None}}


def test_a_changed_question_repeats_the_last_stage_alone(tmp_path: Path) -> None:
    """Would catch a question that is read once, and a file whose path alone counts."""
    for name, count, seed in (("train.csv", 300, 1), ("eval.csv", 60, 2)):
        tiny_runs.write_rows(tmp_path / name, count, seed=seed, label=lambda yes, _: "a" if yes else "b")
    file = tmp_path / "question.json"
    config = tiny_runs.config_for(
        tmp_path,
        tiny_runs.base_model("bert", tmp_path / "teacher"),
        pair=False,
        flags={"operating.question": file, "student.model": "static"},
    )
    file.write_text(json.dumps(QUESTION | {"criteria": {"a": None, "c": None}}), encoding="utf-8")
    with pytest.raises(InputError, match="labels are a, b"):
        tiny_runs.compress(config)
    repeated = []
    for instructions in ("Which?", "Which one?"):
        file.write_text(json.dumps(QUESTION | {"instructions": instructions}), encoding="utf-8")
        made = tiny_runs.compress(config)
        (question,) = load_manifest(tmp_path / "run" / "artifact").questions
        assert (question.instructions, question.options[0].description) == (instructions, "first")
        repeated.append([name for name, record in made.stages.items() if not record.skipped])
    assert "teacher" in repeated[0]
    assert repeated[1] == ["package"]
