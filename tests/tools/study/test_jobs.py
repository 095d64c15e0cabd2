"""What a job reports of its process, and how a study is refused that cannot be begun."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdc.common.errors import InputError, KdcError
from kdc.common.ray import connected
from kdc.pipeline.rundir.directory import locked
from kdc.tools.study.grid import Grid
from kdc.tools.study.jobs import CellInputs, CellResult, Job
from kdc.tools.study.ray_engine import resources_of_a_job, side_by_side
from kdc.tools.study.study import study_for_people


def grid(out: Path, device: str = "cpu") -> Grid:
    return Grid(("sst2",), ("minilm",), ("fft",), (8,), (1,), out, flags=(("run.device", device),))


def job(out: Path) -> Job:
    (cell,) = grid(out).cells()
    return Job(cell=cell, config=grid(out).config(cell), rows="rows", file=cell.file(out))


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="local or ray"):
        study_for_people(grid(tmp_path), engine="dask")


def test_an_address_without_ray_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--engine ray"):
        study_for_people(grid(tmp_path), address="auto")


def test_without_ray_the_remedy_is_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(KdcError, match=r"kdc\[ray\]"):
        list(side_by_side([job(tmp_path)], print))


@pytest.mark.parametrize(
    ("device", "gpus", "taken"), [("auto", 0, 0), ("auto", 2, 1), ("cpu", 2, 0), ("cuda", 2, 1), ("cuda", 0, 1)]
)
def test_a_job_takes_a_gpu_where_it_may_use_one(device: str, gpus: int, taken: int) -> None:
    assert resources_of_a_job(device, 3, gpus) == {"num_cpus": 3, "num_gpus": taken}


@pytest.mark.ray
def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'kdc[ray]'")
    for address in ("127.0.0.1:9", "nobody", "127.0.0.1:x"):
        with pytest.raises(InputError, match="ray start --head"), connected(address):
            pass


def test_a_process_that_leaves_no_result_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "_run", lambda job: (0, ""))
    assert "without a result" in job(tmp_path).do().failure
    assert job(tmp_path).model_copy(update={"shared": "only"}).do().failure == ""


def test_a_cell_killed_before_it_reads_died_and_did_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            os.kill(self.pid, signal.SIGKILL)
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr("kdc.tools.study.jobs.subprocess.Popen", Dead)
    outcome = job(tmp_path).do()
    assert outcome.died
    assert "SIGKILL" in outcome.failure


def test_a_cells_file_may_hold_a_score_that_is_nan(tmp_path: Path) -> None:
    numbers = dict.fromkeys(("inference_s_per_1000_rows", "seconds"), 1.0)
    counts = dict.fromkeys(("steps", "parameters", "trainable_parameters", "peak_memory_bytes"), 1)
    result = CellResult(
        **job(tmp_path).model_dump(include=set(CellInputs.model_fields)),
        **numbers,
        **counts,
        scores={"pearson": math.nan},
        collapsed=True,
        tune={"pearson": math.nan},
        device="cpu",
    )
    (tmp_path / "cell.json").write_text(result.model_dump_json(), encoding="utf-8")
    assert math.isnan(CellResult.model_validate_json((tmp_path / "cell.json").read_text()).scores["pearson"])


@pytest.mark.usefixtures("among_foreign_modules")
def test_a_cells_process_imports_nothing_from_the_callers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "model_dump_json", lambda self: "{}")  # the process then ends where it reads the job
    failure = job(tmp_path).do().failure
    assert "this is not the library" not in failure
    assert "Field required" in failure


def test_a_cell_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such module >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)

    class Ended(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr("kdc.tools.study.jobs.subprocess.Popen", Ended)
    monkeypatch.setattr("kdc.tools.study.jobs.sys.executable", str(python))
    outcome = job(tmp_path).do()
    assert not outcome.died
    assert outcome.failure == "no such module"


FIGURES = {
    "scores": {"accuracy": 90.0},
    "tune": {"accuracy": 91.0},
    "collapsed": False,
    "inference_s_per_1000_rows": 2.0,
    "seconds": 10.0,
    "steps": 100,
    "parameters": 66,
    "trainable_parameters": 3,
    "peak_memory_bytes": 500,
    "device": "cpu",
}


def write_and_die(folder: Path, monkeypatch: pytest.MonkeyPatch, changes: str = "{}") -> None:
    """Put a script in place of a cell's Python that writes a result, with changes to it, and kills itself."""
    python = folder / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, signal, sys\n"
        "request = json.loads(sys.stdin.readline())\n"
        "file = pathlib.Path(request['file'])\n"
        "file.parent.mkdir(parents=True, exist_ok=True)\n"
        f"file.write_text(json.dumps({{**request, **{FIGURES}, **{changes}}}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    monkeypatch.setattr("kdc.tools.study.jobs.sys.executable", str(python))


def test_a_cell_killed_after_its_result_was_written_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_and_die(tmp_path, monkeypatch)
    outcome = job(tmp_path).do()
    assert outcome.result is not None, outcome.failure
    assert outcome.result.scores == {"accuracy": 90.0}
    assert not outcome.died


def test_a_killed_cell_beside_the_result_of_other_settings_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_and_die(tmp_path, monkeypatch, changes="{'rows': 'others'}")
    outcome = job(tmp_path).do()
    assert outcome.result is None
    assert outcome.died


def test_two_studies_do_not_work_in_one_directory(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="another run works in this directory"):
        study_for_people(grid(tmp_path))
    assert not (tmp_path / "commands.json").exists()
