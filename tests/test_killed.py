"""`kill -9` and Ctrl-C at several moments of a real run: the same command goes on, and nothing finished is repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_runs

from kdc.artifact.folder import load_manifest
from kdc.pipeline.training.checkpoints import SEAL


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A quick run with many checkpoints."""
    teacher = tiny_runs.base_model("bert", tmp_path / "teacher")
    tiny_runs.write_rows(tmp_path / "train.csv", 500, seed=1)
    tiny_runs.write_rows(tmp_path / "eval.csv", 60, seed=2)
    return tiny_runs.command(tmp_path, teacher, "--set", "teacher.evaluations=12", "--set", "student.evaluations=12")


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and they would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until(process: subprocess.Popen[str], moment: Callable[[], bool]) -> None:
    """Return at the moment; fail where the process ends before it."""
    deadline = time.monotonic() + 120
    while not moment():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def torn(stage: Path) -> bool:
    """Whether a checkpoint is being written right now, after an earlier one was finished."""
    checkpoints = list(stage.glob("checkpoints/checkpoint-*"))
    return len(checkpoints) > 1 and any(not (checkpoint / SEAL).exists() for checkpoint in checkpoints)


def records(run: Path) -> dict[str, int]:
    """Finished stages and when they were."""
    return {file.parent.name: file.stat().st_mtime_ns for file in run.glob("*/stage.json")}


def test_a_killed_run_goes_on_and_repeats_no_finished_stage(command: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    moments: list[tuple[str, Callable[[], bool]]] = [
        ("between stages", lambda: (run / "data" / "stage.json").exists()),
        ("in the middle of writing a checkpoint", lambda: torn(run / "teacher.partial")),
        ("in the student's training", lambda: any(run.glob("student.partial/checkpoints/checkpoint-*/" + SEAL))),
        ("while candidates are judged", lambda: any(run.glob("quantize.partial/*.onnx"))),
        ("while the artifact is made", lambda: any(run.glob("artifacts/*"))),
    ]
    finished: dict[str, int] = {}
    for name, moment in moments:
        process = start(command)
        wait_until(process, moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = records(run)
        assert {stage: now.get(stage) for stage in finished} == finished, name
        finished = now
        if name.endswith("checkpoint"):
            was_torn = [path for path in run.glob("teacher.partial/checkpoints/*") if not (path / SEAL).exists()]
    last = start(command)
    _, printed = last.communicate(timeout=120)
    assert last.returncode == 0, printed
    assert {stage: records(run)[stage] for stage in finished} == finished
    assert load_manifest(run / "artifact").task.labels == ("no", "yes")
    assert was_torn
    teacher = json.loads((run / "teacher" / "stage.json").read_text())["metrics"]
    assert teacher["resumed_from"] > 0


def test_ctrl_c_says_how_to_go_on(command: list[str], tmp_path: Path) -> None:
    process = start(command)
    wait_until(process, lambda: any((tmp_path / "run").glob("teacher.partial/checkpoints/checkpoint-*/" + SEAL)))
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped by Ctrl-C" in printed
    assert "run the same command again to go on: kdc compress" in printed
    assert "Traceback" not in printed
