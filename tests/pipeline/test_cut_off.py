"""Runs that are killed at moments that are short and hurt: nothing finished is done again, nothing half done counts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs

from kdc.common.files import write_whole
from kdc.pipeline.config.settings import Config
from kdc.pipeline.rundir import folders
from kdc.pipeline.stages import targets


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_runs.write_rows(folder / "train.csv", 320, seed=1)
    tiny_runs.write_rows(folder / "eval.csv", 60, seed=2)
    return folder, tiny_runs.base_model("bert", folder / "teacher")


def settings(inputs: tuple[Path, Path], out: Path, *sets: str) -> Config:
    return tiny_runs.config_for(*inputs, *sets, flags={"run.out": out})


@pytest.mark.parametrize("teachers", [1, 2])
@pytest.mark.slow
def test_a_run_killed_after_the_teachers_answers_does_not_ask_again(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teachers: int
) -> None:
    more = [f"teacher.more={inputs[1]}"] * (teachers - 1)
    config = settings(inputs, tmp_path / "run", "targets.calibrate=true", *more)
    asked: list[int] = []
    answer = targets.answer_portions

    def counted(model: Any, rows: Any, starts: list[int], *rest: Any, **named: Any) -> None:
        asked.extend(starts)
        answer(model, rows, starts, *rest, **named)

    def killed(*given: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(targets, "answer_portions", counted)
    with monkeypatch.context() as patch:
        patch.setattr(targets, "_calibrate", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny_runs.compress(config, until="targets")
    assert asked == [0] * teachers
    tiny_runs.compress(config, until="targets")
    assert asked == [0] * teachers
    whole = settings(inputs, tmp_path / "whole", "targets.calibrate=true", *more)
    tiny_runs.compress(whole, until="targets")
    again, once = (np.load(tmp_path / name / "targets" / "logits.npy") for name in ("run", "whole"))
    np.testing.assert_array_equal(again, once)
    assert sorted(path.name for path in (tmp_path / "run" / "targets").iterdir()) == [
        "fingerprint",
        "logits.npy",
        "stage.json",
    ]


def test_what_a_cut_off_removal_leaves_is_not_the_beginning_of_a_stage(
    inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(inputs, tmp_path / "run")
    partial = tmp_path / "run" / "teacher.partial"

    def killed(path: Path, content: str) -> None:
        if path.parent == partial:
            raise KeyboardInterrupt
        write_whole(path, content)

    def removes_the_model(path: Path, **named: Any) -> None:
        if path == partial:
            remove(path / "model")
            raise KeyboardInterrupt
        remove(path, **named)

    remove = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny_runs.compress(config, until="teacher")
    assert (partial / "model").exists()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", removes_the_model)
        with pytest.raises(KeyboardInterrupt):
            tiny_runs.compress(config, until="teacher", start_from="teacher")
    assert partial.exists()
    tiny_runs.compress(config, until="teacher")
    assert (tmp_path / "run" / "teacher" / "model" / "config.json").exists()
