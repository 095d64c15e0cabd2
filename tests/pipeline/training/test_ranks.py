"""Two processes that train together (gloo, on the CPU), started by torchrun as people do it, or forked as it would
start them, which saves importing torch three times."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pytest
import tiny_runs

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.training import ranks
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.checkpoints import SEAL

# No dropout, whose masks are the only thing that two processes draw differently; whole batches only.
EXACT = (
    "student.lora.dropout=0",
    "teacher.epochs=2",
    "student.epochs=2",
    "student.min_steps=20",
    "student.allow_majority=true",
)
_TRAIN_ROWS, _TUNE_ROWS = 320, 300


def inputs(folder: Path) -> Path:
    teacher = tiny_runs.base_model("bert", folder / "teacher", hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    tiny_runs.write_rows(folder / "train.csv", _TRAIN_ROWS + _TUNE_ROWS, seed=1)
    tiny_runs.write_rows(folder / "eval.csv", 60, seed=2)
    return teacher


def start(folder: Path, teacher: Path, *more: str) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node 2 -m kdc compress ...`."""
    program, *arguments = tiny_runs.command(folder, teacher, *more)
    launcher = [program, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        launcher + arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def together(folder: Path, teacher: Path, *more: str) -> list[subprocess.CompletedProcess[str]]:
    """The two processes that torchrun would start, run to their end."""
    arguments = tiny_runs.command(folder, teacher, *more)[3:]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def run(rank: int) -> subprocess.CompletedProcess[str]:
        return tiny_runs.kdc(*arguments, **shared, RANK=str(rank), LOCAL_RANK=str(rank))

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def sets(*items: str) -> list[str]:
    return [part for item in items for part in ("--set", item)]


def metrics(run: Path, stage: str) -> dict[str, Any]:
    return json.loads((run / stage / "stage.json").read_text(encoding="utf-8"))["metrics"]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    teacher = inputs(tmp_path)
    alone = tiny_runs.config_for(tmp_path, teacher, *EXACT, flags={"run.out": tmp_path / "alone"})
    tiny_runs.compress(alone, until="student")
    leader, helper = together(tmp_path, teacher, *sets(*EXACT), "--until", "merge", "--json")
    assert (leader.returncode, helper.returncode) == (0, 0), leader.stderr + helper.stderr
    assert "merge" in json.loads(leader.stdout)["stages"]  # it goes on alone, and prints the result
    assert helper.stdout == ""
    for stage in ("teacher", "student"):
        one, two = metrics(tmp_path / "alone", stage), metrics(tmp_path / "run", stage)
        assert (two["steps"], two["train_rows"]) == (one["steps"], _TRAIN_ROWS)
        # Batches, order and rates are the same; sums of floats are not.
        np.testing.assert_allclose(two["history"]["loss"], one["history"]["loss"], rtol=1e-2)
    one, two = (np.load(tmp_path / name / "targets" / "logits.npy") for name in ("alone", "run"))
    np.testing.assert_allclose(two, one, atol=0.05 * np.abs(one).max())
    assert {path.name for path in (tmp_path / "alone").iterdir()} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


@pytest.mark.slow
def test_a_lost_process_stops_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    teacher, more = inputs(tmp_path), [*sets("teacher.evaluations=12", "teacher.epochs=12"), "--until", "teacher"]
    process = start(tmp_path, teacher, *more)
    checkpoints = tmp_path / "run" / "teacher.partial" / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(checkpoints.glob("checkpoint-*/" + SEAL)):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.001)
    helper = next(child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1")
    helper.send_signal(signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "another process of this run was lost; finished stages and checkpoints are kept" in told
    assert "run this again to resume: torchrun --nproc-per-node 2 -m kdc compress" in told
    leader, helper = together(tmp_path, teacher, *more)
    assert (leader.returncode, helper.returncode) == (0, 0), leader.stderr + helper.stderr
    assert metrics(tmp_path / "run", "teacher")["resumed_from"] > 0
    assert metrics(tmp_path / "run", "teacher")["tune"]["accuracy"] > 90


def test_wrong_input_is_told_once(tmp_path: Path) -> None:
    teacher = inputs(tmp_path)
    (tmp_path / "eval.csv").write_text("first,second,label\na,b,perhaps\n", encoding="utf-8")
    leader, helper = together(tmp_path, teacher)
    assert leader.returncode == 2
    told = leader.stderr + helper.stderr
    assert told.count("remedy") == 1, told
    assert "perhaps" in told


def test_rows_are_sent_as_names_of_files_on_a_disk_that_hosts_see_under_other_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All teacher's logits may be larger than memory: another process maps the same file."""
    here, there = tmp_path / "here", tmp_path / "there"
    tokens = datasets.Dataset.from_dict({"row": [7, 3], "input_ids": [[1], [2]], "length": [1, 1]})
    tokens.save_to_disk(here / "data" / "tokens-student" / "train")
    np.save(here / "logits.npy", np.arange(200_000, dtype=np.float32).reshape(-1, 2))
    monkeypatch.chdir(here)
    data = PreparedData(
        Path("data"),
        Task(name="t", kind="classification", labels=("no", "yes"), text="text", label="label", metrics=("accuracy",)),
    )
    sent = pickle.dumps(Rows.read(data, "student", ["train"], Path("logits.npy")))
    assert len(sent) < 10_000
    here.rename(there)
    monkeypatch.chdir(there)
    received = pickle.loads(sent)
    assert [row["teacher_logits"].tolist() for row in (received[0], received[1])] == [[14, 15], [6, 7]]


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    ranks.check_batches({"student.batch_size": 30}, 2)
    with pytest.raises(InputError, match=r"student\.batch_size=32"):
        ranks.check_batches({"student.batch_size": 30}, 4)


def test_a_process_that_was_not_launched_with_others_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch systems set some of torchrun's variables for every process."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    ranks.join("cpu")
    assert (ranks.rank(), ranks.size()) == (0, 1)


def test_a_process_that_tells_of_a_loss_is_not_cut_off_by_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher stops all processes when one is lost; its signal may come while another tells how to go on."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_: None)
    monkeypatch.setattr("torch.distributed.new_group", lambda **_: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ranks.join("cpu")
        with pytest.raises(ranks.Lost):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_gradient_checkpointing_trains_to_the_same(tmp_path: Path) -> None:
    teacher = inputs(tmp_path)
    histories = []
    for name in ("false", "true"):
        changes = [f"{section}.gradient_checkpointing={name}" for section in ("teacher", "student")]
        config = tiny_runs.config_for(tmp_path, teacher, *EXACT, *changes, flags={"run.out": tmp_path / name})
        tiny_runs.compress(config, until="student")
        histories.append(metrics(tmp_path / name, "student")["history"]["loss"])
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-3)
    assert sys.modules["torch"].is_grad_enabled()
