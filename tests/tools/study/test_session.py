"""How a study is asked for: engines, and what is said where one is not to be had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdc.common.errors import InputError, KdcError
from kdc.common.ray import connected
from kdc.pipeline.rundir.directory import locked
from kdc.tools.study.grid import Cell, Grid
from kdc.tools.study.jobs import Job
from kdc.tools.study.ray_engine import _share, side_by_side
from kdc.tools.study.study import study_for_people


def ask(out: Path, **changes: Any) -> None:
    study_for_people(
        tasks=("sst2",),
        families=("minilm",),
        methods=("fft",),
        ranks=(8,),
        seeds=(1,),
        out=out,
        given=(),
        flags={},
        **{"engine": "local", "address": None, "threads": None, **changes},
    )


def job(out: Path, device: str, threads: int | None = None) -> Job:
    cell = Cell("sst2", "minilm", "fft", 0, 1)
    grid = Grid(("sst2",), ("minilm",), ("fft",), (8,), (1,), out, flags=(("run.device", device),))
    return Job(cell, grid.config(cell), out, "rows", threads)


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="local or ray"):
        ask(tmp_path, engine="dask")


def test_an_address_without_ray_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--engine ray"):
        ask(tmp_path, address="auto")


def test_without_ray_the_remedy_is_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(KdcError, match=r"kdc\[ray\]"):
        list(side_by_side([job(tmp_path, "auto")], print))


@pytest.mark.parametrize(
    ("device", "gpus", "taken"), [("auto", 0, 0), ("auto", 2, 1), ("cpu", 2, 0), ("cuda", 2, 1), ("cuda", 0, 1)]
)
def test_a_cell_takes_a_gpu_where_it_may_use_one(tmp_path: Path, device: str, gpus: int, taken: int) -> None:
    cluster = SimpleNamespace(cluster_resources=lambda: {"CPU": 8, "GPU": gpus} if gpus else {"CPU": 8})
    assert _share(cluster, job(tmp_path, device, threads=3)) == {"num_cpus": 3, "num_gpus": taken}


@pytest.mark.ray
def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'kdc[ray]'")
    for address in ("127.0.0.1:9", "nobody", "127.0.0.1:x"):
        with pytest.raises(InputError, match="ray start --head"), connected(address):
            pass


def test_a_cell_killed_before_it_reads_died_and_did_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            os.kill(self.pid, signal.SIGKILL)
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr("kdc.tools.study.jobs.subprocess.Popen", Dead)
    outcome = job(tmp_path, "cpu").do()
    assert outcome.died
    assert "SIGKILL" in outcome.failure


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
    outcome = job(tmp_path, "cpu").do()
    assert not outcome.died
    assert outcome.failure == "no such module"


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """In place of a cell's Python: reads its line, writes it as the result, and goes on as told."""
    python = folder / "python"
    write = "import json, os, pathlib, signal, sys\nwanted = json.loads(sys.stdin.readline())\n"
    write += "file = pathlib.Path(wanted['file'])\nfile.parent.mkdir(parents=True, exist_ok=True)\n"
    python.write_text(f"#!{sys.executable}\n{write}{script}\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr("kdc.tools.study.jobs.sys.executable", str(python))


def test_a_cell_killed_after_its_result_was_written_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "file.write_text(json.dumps(wanted))\nos.kill(os.getpid(), signal.SIGKILL)")
    outcome = job(tmp_path, "cpu").do()
    assert outcome.result is not None, outcome.failure
    assert not outcome.died


def test_a_killed_cell_beside_the_result_of_other_settings_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(
        tmp_path,
        monkeypatch,
        "file.write_text(json.dumps({**wanted, 'rows': 'others'}))\nos.kill(os.getpid(), signal.SIGKILL)",
    )
    outcome = job(tmp_path, "cpu").do()
    assert outcome.result is None
    assert outcome.died


def test_two_studies_do_not_work_in_one_directory(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="another run works in this directory"):
        ask(tmp_path)
    assert not (tmp_path / "commands.json").exists()
