"""A small study for real: every method's cell in a process of its own, what is shared, resumed, and what fails."""

from __future__ import annotations

import json

import pytest

from kdc.tools.study.cell import CellResult
from kdc.tools.study.grid import Grid
from kdc.tools.study.jobs import Outcome
from kdc.tools.study.schedule import run_study

METHODS = ("fft", "lora", "kd-lora", "student-lora", "student-fft")


@pytest.fixture(scope="module")
def outcomes(study: Grid) -> list[Outcome]:
    return run_study(study)


def result(outcomes: list[Outcome], method: str) -> CellResult:
    (found,) = [outcome.result for outcome in outcomes if outcome.cell.method == method]
    assert found is not None, [outcome.failure for outcome in outcomes]
    return found


def test_every_method_learns(outcomes: list[Outcome]) -> None:
    for method in METHODS:
        assert result(outcomes, method).scores["accuracy"] > 75, method
        assert not result(outcomes, method).collapsed


def test_methods_train_what_they_are_named_for(outcomes: list[Outcome]) -> None:
    trained = {method: result(outcomes, method).trainable_parameters for method in METHODS}
    whole = {method: result(outcomes, method).parameters for method in METHODS}
    assert trained["fft"] == whole["fft"] == whole["lora"]
    assert trained["student-fft"] == whole["student-fft"] == whole["kd-lora"] == whole["student-lora"]
    assert trained["kd-lora"] == trained["student-lora"] < whole["kd-lora"] < whole["fft"]
    assert trained["lora"] < whole["lora"]


def test_every_cell_tells_its_costs(outcomes: list[Outcome]) -> None:
    for method in METHODS:
        found = result(outcomes, method)
        assert found.peak_memory_bytes > 1e8
        assert found.seconds > 0
        assert found.inference_s_per_1000_rows > 0


def test_the_teacher_was_trained_once_for_all(study: Grid, outcomes: list[Outcome]) -> None:
    base = study.cells()[0].base(study.out)
    made = (base / "teacher" / "stage.json").stat().st_mtime
    cells = [cell.file(study.out).stat().st_mtime for cell in study.cells()]
    assert made < min(cells)
    assert len(list(study.out.rglob("teacher/stage.json"))) == 1


def test_finished_cells_are_not_done_again_and_new_ones_are(study: Grid, outcomes: list[Outcome]) -> None:
    said: list[str] = []
    more = Grid(**{**vars(study), "methods": ("fft", "student-lora"), "ranks": (4, 2)})
    again = run_study(more, say=said.append)
    assert [line for line in said if line.endswith("starts")] == ["sst2 minilm student-lora r2 seed 1: starts"]
    assert result(again, "fft") == result(outcomes, "fft")


def test_a_cell_that_fails_is_reported_and_the_others_go_on(study: Grid, outcomes: list[Outcome]) -> None:
    sets = (*study.sets, "student.lora.targets=nothing")
    wrong = Grid(**{**vars(study), "methods": ("lora", "student-lora"), "sets": sets})
    for outcome in run_study(wrong):
        assert outcome.result is None
        assert "nothing" in outcome.failure
        assert not outcome.cell.file(wrong.out).with_suffix(".work").exists()


def test_a_result_is_kept_whole(study: Grid, outcomes: list[Outcome]) -> None:
    kept = json.loads(study.cells()[0].file(study.out).read_text())
    assert kept["cell"]["method"] == "fft"
    assert not list(study.out.rglob("*.tmp"))
