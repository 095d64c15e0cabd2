"""A study's cells side by side on a real Ray: the same figures as one by one, killed workers, failures, Ctrl-C."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kdc.common.errors import InputError
from kdc.tools.study.grid import Grid
from kdc.tools.study.jobs import Outcome
from kdc.tools.study.ray_engine import side_by_side
from kdc.tools.study.study import run_study
from kdc.tools.study.summary import summarise
from kdc.tools.study.tables import scores_table

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'kdc[ray]'")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def small(study: Grid) -> Grid:
    return replace(study, methods=("fft", "student-lora"))


@pytest.fixture(scope="module")
def outcomes(small: Grid) -> list[Outcome]:
    return run_study(small, engine=side_by_side)


def processes() -> list[psutil.Process]:
    """Cells' processes below this one."""
    cells = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "kdc.tools.study.cell_process" in process.cmdline():
                cells.append(process)
        except psutil.Error:
            pass
    return cells


def test_figures_are_those_of_one_cell_after_the_other(
    small: Grid, outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(small, out=tmp_path)
    expected = run_study(alone, threads=1)
    assert [outcome.failure for outcome in outcomes] == ["", ""]
    assert scores_table(small, summarise(small, outcomes)) == scores_table(alone, summarise(alone, expected))
    measured = {"peak_memory_bytes", "seconds", "inference_s_per_1000_rows", "file", "config"}
    for by_ray, by_itself in zip(outcomes, expected, strict=True):
        assert by_ray.result is not None, by_ray.failure
        assert by_itself.result is not None, by_itself.failure
        assert by_ray.result.model_dump(exclude=measured) == by_itself.result.model_dump(exclude=measured)
        assert (by_ray.result.peak_memory_bytes or 0) > 1e8


def test_finished_cells_are_not_done_again_by_either_engine(small: Grid, outcomes: list[Outcome]) -> None:
    lines: list[str] = []
    assert run_study(small, engine=side_by_side, say=lines.append) == outcomes
    assert run_study(small, say=lines.append) == outcomes
    assert lines == []


def test_a_killed_worker_and_a_killed_cell_begin_anew(small: Grid, outcomes: list[Outcome]) -> None:
    lines: list[str] = []
    killed: list[psutil.Process] = []

    def kill_twice(line: str) -> None:
        lines.append(line)
        if "r2" in line and "starts" in line and len(killed) < 2:
            while not (cells := [one for one in processes() if one not in killed]):
                time.sleep(0.05)
            killed.append(cells[0])
            victim = cells[0].parent() if len(killed) == 1 else cells[0]
            assert victim is not None
            assert victim.pid != os.getpid()
            victim.kill()

    one = replace(small, methods=("student-lora",), ranks=(2,))
    (outcome,) = run_study(one, engine=side_by_side, say=kill_twice)
    assert outcome.result is not None, outcome.failure
    anew = [line for line in lines if "anew" in line]
    assert len(anew) == 2
    assert "its worker was lost" in anew[0]
    assert "SIGKILL" in anew[1]
    assert psutil.wait_procs(killed, timeout=5)[1] == []  # the first one's worker was killed, not it


def test_a_cell_that_fails_is_reported_and_the_others_go_on(small: Grid, outcomes: list[Outcome]) -> None:
    wrong = replace(small, methods=("student-fft", "student-lora"), sets=(*small.sets, "student.lora.targets=nothing"))
    lines: list[str] = []
    whole, adapters = run_study(wrong, engine=side_by_side, say=lines.append)
    assert whole.result is not None, whole.failure
    assert adapters.result is None
    assert "nothing" in adapters.failure
    assert not any("anew" in line for line in lines)


def test_without_their_teacher_all_cells_fail_with_its_reason(small: Grid, outcomes: list[Outcome]) -> None:
    wrong = replace(small, sets=(*small.sets, "teacher.model=/nowhere"))
    failed = run_study(wrong, engine=side_by_side)
    assert all("/nowhere" in outcome.failure for outcome in failed)


def test_an_interrupted_study_leaves_no_process_behind(small: Grid, outcomes: list[Outcome]) -> None:
    def interrupt(line: str) -> None:
        if "starts" in line:
            while not processes():
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(replace(small, ranks=(3,)), engine=side_by_side, say=interrupt)
    assert psutil.wait_procs(processes(), timeout=10)[1] == []


def test_a_cell_that_fits_nowhere_is_refused(small: Grid, outcomes: list[Outcome]) -> None:
    with pytest.raises(InputError) as caught:
        run_study(replace(small, ranks=(3,)), engine=side_by_side, threads=3)
    assert "3 cores" in str(caught.value)


def test_a_ray_client_is_refused(small: Grid) -> None:
    with pytest.raises(InputError, match="--address auto"):
        run_study(replace(small, ranks=(3,)), engine=lambda *given: side_by_side(*given, address="ray://head:10001"))
