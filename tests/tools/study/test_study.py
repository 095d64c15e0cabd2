"""A small study for real: what every method trains and measures, what is shared and resumed, and what fails."""

import io
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_runs

from kdc.common.errors import InputError
from kdc.pipeline.data.prepared import open_data
from kdc.tools.study.cell_process import main, make_shared, run_cell
from kdc.tools.study.grid import Grid
from kdc.tools.study.jobs import CellResult, Job, Outcome
from kdc.tools.study.study import run_study

pytestmark = pytest.mark.slow  # all of them read one study, which trains by every method


METHODS = ("fft", "lora", "kd-lora", "student-lora", "student-fft")


def in_this_process(jobs: Sequence[Job], say: Callable[[str], None]) -> Generator[Outcome, None, None]:
    """An engine that saves the start of a process for each cell."""
    for job in jobs:
        make_shared(job.config)
        work = job.file.with_suffix(".work")
        work.mkdir(parents=True)
        result = run_cell(job, work)
        job.file.write_text(result.model_dump_json(), encoding="utf-8")
        yield Outcome(job.cell, result)


@pytest.fixture(scope="module")
def outcomes(study: Grid) -> list[Outcome]:
    return run_study(study, engine=in_this_process)


def result(outcomes: list[Outcome], method: str) -> CellResult:
    (only,) = [outcome.result for outcome in outcomes if outcome.cell.method == method]
    assert only is not None, [outcome.failure for outcome in outcomes]
    return only


def test_every_method_learns(outcomes: list[Outcome]) -> None:
    for method in METHODS:
        assert result(outcomes, method).scores["accuracy"] > 75, method
        assert not result(outcomes, method).collapsed


def test_methods_train_what_they_are_named_for(outcomes: list[Outcome]) -> None:
    trained = {method: result(outcomes, method).trainable_parameters or 0 for method in METHODS}
    whole = {method: result(outcomes, method).parameters or 0 for method in METHODS}
    assert trained["fft"] == whole["fft"] == whole["lora"]
    assert trained["student-fft"] == whole["student-fft"] == whole["kd-lora"] == whole["student-lora"]
    assert trained["kd-lora"] == trained["student-lora"] < whole["kd-lora"] < whole["fft"]
    assert trained["lora"] < whole["lora"]


def test_every_cell_tells_its_costs(outcomes: list[Outcome]) -> None:
    for method in METHODS:
        figures = result(outcomes, method)
        assert (figures.peak_memory_bytes or 0) > 1e8
        assert (figures.seconds or 0) > 0
        assert (figures.inference_s_per_1000_rows or 0) > 0


def test_a_baseline_stands_beside_them_without_costs(outcomes: list[Outcome]) -> None:
    figures = result(outcomes, "tfidf")
    assert figures.scores["accuracy"] > 75
    assert (figures.seconds, figures.parameters, figures.inference_s_per_1000_rows) == (None, None, None)


def test_the_teacher_was_trained_once_for_all(study: Grid, outcomes: list[Outcome]) -> None:
    base = study.cells()[0].base(study.out)
    made = (base / "teacher" / "stage.json").stat().st_mtime
    cells = [cell.file(study.out).stat().st_mtime for cell in study.cells()]
    assert made < min(cells)
    assert len(list(study.out.rglob("teacher/stage.json"))) == 1


def test_a_student_with_fewer_pieces_answers_in_these(study: Grid, tmp_path: Path) -> None:
    """Would catch evaluation rows that are cut by the teacher's tokenizer, of other numbers."""
    teacher = tiny_runs.pieces_model(tmp_path / "teacher")
    sets = (*study.sets, f"teacher.model={teacher}", "student.model=layers:0", "student.vocabulary=auto")
    grid = replace(study, methods=("kd-lora", "student-lora"), out=tmp_path / "out", sets=sets)
    made = run_study(grid, engine=in_this_process)
    assert all(result(made, method).scores["accuracy"] > 90 for method in grid.methods)


def test_finished_cells_are_not_done_again_and_new_ones_are_in_a_process(study: Grid, outcomes: list[Outcome]) -> None:
    lines: list[str] = []
    more = replace(study, methods=("fft", "student-lora"), ranks=(4, 2))
    again = run_study(more, say=lines.append)
    assert [line for line in lines if line.endswith("starts")] == ["sst2 minilm student-lora r2 seed 1: starts"]
    assert result(again, "fft") == result(outcomes, "fft")
    (new,) = [outcome.result for outcome in again if outcome.cell.rank == 2]
    assert new is not None
    assert json.loads(new.file.read_text()) == new.model_dump(mode="json")
    labels = np.asarray(open_data(new.file.parent.parent / "data").rows("eval")["label"][:])
    with np.load(new.file.with_suffix(".npz")) as answers:  # and its logits are those that its score is of
        assert 100 * np.mean(answers["eval"].argmax(axis=1) == labels) == pytest.approx(new.scores["accuracy"])
    assert not list(study.out.rglob("*.tmp"))


def test_a_training_that_fails_says_why_and_leaves_nothing_behind(
    study: Grid, outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = replace(study, methods=("student-lora",), sets=(*study.sets, "student.lora.targets=nothing"))
    (cell,) = wrong.cells()
    file = cell.file(wrong.out)
    job = Job(cell=cell, config=wrong.config(cell), rows="", file=file, shared="there")
    monkeypatch.setattr("sys.stdin", io.StringIO(job.model_dump_json()))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == InputError.exit_code
    assert "nothing" in capsys.readouterr().err
    assert not file.with_suffix(".work").exists()


def test_after_a_cell_that_fails_the_others_are_tried(
    study: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nread line\necho no memory >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr("kdc.tools.study.jobs.sys.executable", str(python))
    outcomes = run_study(replace(study, out=tmp_path, methods=("lora", "student-lora")))
    assert [outcome.failure for outcome in outcomes] == ["no memory"] * 2


def test_a_result_that_cannot_be_read_is_refused_with_its_file(study: Grid, tmp_path: Path) -> None:
    one = replace(study, out=tmp_path, methods=("fft",))
    file = one.cells()[0].file(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="another version of kdc") as caught:
        run_study(one)
    assert str(file) in str(caught.value)
