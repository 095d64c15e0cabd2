"""`kill -9` and Ctrl-C in the middle of a real run: the same command goes on, and no finished stage is repeated."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import tiny_runs

from kdc.artifact.folder import load_manifest
from kdc.pipeline.training.checkpoints import SEAL


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Arguments of a quick run with many checkpoints."""
    teacher = tiny_runs.base_model("bert", tmp_path / "teacher")
    tiny_runs.write_rows(tmp_path / "train.csv", 500, seed=1)
    tiny_runs.write_rows(tmp_path / "eval.csv", 60, seed=2)
    command = tiny_runs.command(tmp_path, teacher, "--set", "teacher.evaluations=12", "--set", "student.evaluations=12")
    return command[command.index("compress") :]


def wait_until(moment: Callable[[], bool], is_running: Callable[[], bool]) -> None:
    """Return at the moment; fail where the process ends before it."""
    deadline = time.monotonic() + 120
    while not moment():
        assert is_running()
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def torn(stage: Path) -> bool:
    """Whether a checkpoint is being written at this moment, after an earlier one was finished."""
    checkpoints = list(stage.glob("checkpoints/checkpoint-*"))
    return len(checkpoints) > 1 and any(not (checkpoint / SEAL).exists() for checkpoint in checkpoints)


def records(run: Path) -> dict[str, int]:
    """The finished stages, and when each was finished."""
    return {file.parent.name: file.stat().st_mtime_ns for file in run.glob("*/stage.json")}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_repeats_no_finished_stage(command: list[str], tmp_path: Path) -> None:
    run, stderr = tmp_path / "run", tmp_path / "stderr.txt"
    moments: list[tuple[str, Callable[[], bool]]] = [
        ("between stages", lambda: (run / "data" / "stage.json").exists()),
        ("in the middle of writing a checkpoint", lambda: torn(run / "teacher.partial")),
        ("in the student's training", lambda: any(run.glob("student.partial/checkpoints/checkpoint-*/" + SEAL))),
        ("while candidates are judged", lambda: any(run.glob("quantize.partial/*.onnx"))),
        ("while the artifact is made", lambda: any(run.glob("artifacts/*"))),
    ]
    finished: dict[str, int] = {}
    for name, moment in moments:
        process = forked.start(command, stderr)
        wait_until(moment, process.is_alive)
        process.kill()
        process.join()
        now = records(run)
        assert {stage: now.get(stage) for stage in finished} == finished, name
        finished = now
        if name.endswith("checkpoint"):
            was_torn = [path for path in run.glob("teacher.partial/checkpoints/*") if not (path / SEAL).exists()]
    last = forked.start(command, stderr)
    last.join(timeout=120)
    assert last.exitcode == 0, stderr.read_text()
    assert {stage: records(run)[stage] for stage in finished} == finished
    assert load_manifest(run / "artifact").task.labels == ("no", "yes")
    assert was_torn
    teacher = json.loads((run / "teacher" / "stage.json").read_text())["metrics"]
    assert teacher["resumed_from"] > 0


def test_ctrl_c_says_how_to_go_on(command: list[str], tmp_path: Path) -> None:
    process = forked.start(command, tmp_path / "stderr.txt")
    checkpoint = "teacher.partial/checkpoints/checkpoint-*/" + SEAL
    wait_until(lambda: any((tmp_path / "run").glob(checkpoint)), process.is_alive)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(timeout=60)
    printed = (tmp_path / "stderr.txt").read_text(encoding="utf-8")
    assert process.exitcode == 1
    assert "stopped by Ctrl-C" in printed
    assert "run this again to resume: kdc compress" in printed
    assert "Traceback" not in printed
