"""The command line in fresh processes: what it prints, its exit codes, and what people get when things go wrong."""

import csv
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import bag_models
import pytest
import tiny_runs
from conftest import Finished
from tiny_runs import kdc

import kdc as public
from kdc import cli
from kdc.artifact.contract.terms import Limits
from kdc.pipeline.run import STAGES
from kdc.tools.labelled import evaluate_artifact


def own_data(folder: Path, *more: str) -> list[str]:
    return ["compress", "--train", str(folder / "train.csv"), "--text", "first", "--out", str(folder / "run"), *more]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder with training rows and nothing else."""
    tiny_runs.write_rows(tmp_path / "train.csv", 400, seed=1)
    return tmp_path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'transformers', 'datasets', 'onnxruntime', 'numpy', 'pydantic')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tiny_runs.ROOT)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert "compress" in done.stdout


def test_inspect_imports_no_torch(finished: Finished) -> None:
    code = (
        "import sys, cli\n"
        f"try: cli.app(['inspect', {str(finished.artifact)!r}])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tiny_runs.ROOT)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert "all hashes match" in done.stdout


def test_try_prints_every_label_best_first(finished: Finished) -> None:
    done = kdc("try", str(finished.artifact), "w1 w7", "w9")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("yes")
    assert second.startswith("no")


def test_try_as_json(finished: Finished) -> None:
    answer = json.loads(kdc("try", str(finished.artifact), "w2 w7", "w9", "--json", "--variant", "fp32").stdout)
    assert answer["scores"][0]["label"] == "no"
    assert sum(entry["score"] for entry in answer["scores"]) == pytest.approx(1)
    assert answer["variant"] == "fp32"


def test_try_of_one_text_on_a_pair_task_says_what_it_takes(finished: Finished) -> None:
    done = kdc("try", str(finished.artifact), "w1 w7")
    assert done.returncode == 2
    assert "two texts a row (first, second)" in done.stderr


def test_evaluate_finds_what_the_artifact_promises(finished: Finished) -> None:
    done = kdc("evaluate", str(finished.artifact), "--data", str(finished.folder / "eval.csv"), "--json")
    found = json.loads(done.stdout)
    assert found["rows"] == 90
    assert found["metrics"] == found["promised"]
    assert found["interval"][0] <= found["metrics"]["accuracy"] <= found["interval"][1]


def test_evaluate_reads_a_table_in_another_dialect(finished: Finished, tmp_path: Path) -> None:
    with (finished.folder / "eval.csv").open(newline="", encoding="utf-8") as source:
        rows = list(csv.reader(source))
    with (tmp_path / "eval.csv").open("w", newline="", encoding="utf-16") as stream:
        csv.writer(stream, delimiter=";").writerows(rows)
    usual = evaluate_artifact(finished.artifact, finished.folder / "eval.csv", columns={})
    columns = {"delimiter": ";", "encoding": "utf-16"}
    assert evaluate_artifact(finished.artifact, tmp_path / "eval.csv", columns=columns).metrics == usual.metrics


def test_evaluate_counts_groups_of_rows_as_verify_does(finished: Finished) -> None:
    file = finished.folder / "eval.csv"
    judged = public.verify(finished.artifact, contract=public.Contract(limits=Limits(max_drop=1.0)), data=file)
    assert judged.quality is not None
    assert evaluate_artifact(finished.artifact, file, columns={}).groups == judged.quality.groups


def test_inspect_finds_a_changed_file(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.artifact, tmp_path / "artifact")
    with (tmp_path / "artifact" / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3")
    done = kdc("inspect", str(tmp_path / "artifact"))
    assert done.returncode == 1
    assert "model.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_label_of_an_artifact_moves_the_cursor_of_a_terminal(tmp_path: Path) -> None:
    task = bag_models.SINGLE.model_copy(
        update={"name": "mood\x1b[2J", "labels": ("\x1b]0;owned\x07", "so\u202eso", "gut")}
    )
    artifact = bag_models.write_artifact(tmp_path / "artifact", task)
    (tmp_path / "in.csv").write_text("sentence\nw1\n")
    table = ["predict", str(artifact), str(tmp_path / "in.csv"), str(tmp_path / "out.csv")]
    for command in (
        ["inspect", str(artifact)],
        ["try", str(artifact), "w1"],
        ["try", str(artifact), "w1", "w2"],
        table,
    ):
        done = kdc(*command)
        shown = done.stdout + done.stderr
        assert "mood" in shown or "owned" in shown
        assert not set(shown) & set("\x1b\x07\u202e")


def test_inspect_of_no_artifact_is_wrong_input(tmp_path: Path) -> None:
    done = kdc("inspect", str(tmp_path))
    assert done.returncode == 2
    assert "there is no artifact here" in done.stderr


def test_json_tells_a_program_what_was_refused(tmp_path: Path) -> None:
    done = kdc("inspect", str(tmp_path), "--json")
    refused = json.loads(done.stdout)
    assert refused["exit_code"] == done.returncode == 2
    assert refused["error"]["code"] == "wrong_input"
    assert set(refused["error"]) == {"code", "what", "given", "remedy"}
    assert f"error: {refused['error']['what']}" in done.stderr


def test_help_of_from_names_every_stage_in_order() -> None:
    names = cli._STAGES.replace(" or ", ", ").split(", ")
    assert names == [stage.name for stage in STAGES]


def test_json_is_the_only_thing_on_stdout(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "run", tmp_path / "run", symlinks=True)
    arguments = tiny_runs.arguments(
        finished.folder, finished.teacher, "--set", "run.controls=true", "--set", "export.teacher=true", "--json"
    )
    arguments[arguments.index("--out") + 1] = str(tmp_path / "run")
    done = kdc(*arguments)
    result = json.loads(done.stdout)
    assert all(stage["skipped"] for stage in result["stages"].values())
    assert "already done" in done.stderr


def test_tasks_lists_the_nine_of_glue_and_the_built_in_one() -> None:
    names = list(json.loads(kdc("tasks", "--json").stdout))
    assert names == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "pydocs"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--label", "lable"], ["lable", "label"]),
        (["--text", "frist"], ["frist", "first"]),
        (["--set", "student.epoch=3"], ["did you mean student.epochs"]),
        (["--set", "run.recipe=worst", "--set", "run.seed=-1"], ["run.recipe", "run.seed", "2 wrong settings"]),
        (["--until", "distil"], ["no such stage", "student"]),
        (["--config", "none.toml"], ["cannot read the config file"]),
        (["--teacher", "/none/such"], ["/none/such"]),
        (["--student", "layers:9"], ["no such layers"]),
    ],
)
def test_wrong_input_exits_with_2_and_says_what_to_do(rows: Path, more: list[str], words: list[str]) -> None:
    teacher = tiny_runs.base_model("bert", rows / "teacher")
    quick = [part for item in tiny_runs.QUICK for part in ("--set", item)]
    done = kdc(*own_data(rows, "--teacher", str(teacher), *quick, *more))
    assert done.returncode == 2, done.stderr
    for word in words:
        assert word in done.stderr
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_that_is_not_known_names_the_nearest() -> None:
    done = kdc("compress", "--task", "qnil", "--family", "minilm")
    assert done.returncode == 2
    assert "did you mean `--task qnli`" in done.stderr


def test_no_task_and_no_data_is_wrong_input() -> None:
    done = kdc("compress")
    assert done.returncode == 2
    assert "no task and no data" in done.stderr


def test_a_mistake_in_the_data_names_file_and_line(rows: Path) -> None:
    teacher = tiny_runs.base_model("bert", rows / "teacher")
    with (rows / "train.csv").open("a", encoding="utf-8") as file:
        file.write("w1,w2,\n")
    done = kdc(*own_data(rows, "--teacher", str(teacher)))
    assert done.returncode == 2
    assert "train.csv:402" in done.stderr


def test_an_unreachable_hub_says_how_to_go_on_without(tmp_path: Path) -> None:
    done = kdc("compress", "--task", "qnli", "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "--data" in done.stderr
    assert "pydocs" in done.stderr


def test_a_run_on_local_inputs_makes_no_network_call(finished: Finished, tmp_path: Path) -> None:
    """Every socket that is not local raises in the child, and the hub's address leads nowhere."""
    guard = tmp_path / "sitecustomize.py"
    guard.write_text(
        "import socket\n"
        "original = socket.socket.connect\n"
        "def connect(self, address):\n"
        "    if self.family != socket.AF_UNIX: raise SystemExit(f'network call to {address}')\n"
        "    return original(self, address)\n"
        "socket.socket.connect = connect\n"
        "def lookup(*args, **kwargs): raise SystemExit(f'name lookup of {args}')\n"
        "socket.getaddrinfo = lookup\n"
    )
    arguments = tiny_runs.arguments(finished.folder, finished.teacher, "--until", "student")
    arguments[arguments.index("--out") + 1] = str(tmp_path / "run")
    done = kdc(*arguments, HF_HUB_OFFLINE="0", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    # Nor does it repeat what libraries say to programmers, or draw their progress bars beside its own lines.
    assert [line for line in done.stderr.splitlines() if "Warning" in line or "%|" in line] == []
    probe = subprocess.run(
        [sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 9))"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "name lookup" in probe.stderr  # the guard itself works
    assert socket.AF_INET


def test_a_full_disk_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import kdc.pipeline.run
    from kdc.common.errors import KdcError
    from kdc.pipeline import compress as session
    from kdc.pipeline.config.resolve import resolve

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kdc.pipeline.run, "compress", fail)
    config = resolve(flags={"run": {"out": tmp_path, "family": "minilm"}, "data": {"task": "pydocs"}}, sets={}, file={})
    with pytest.raises(KdcError, match="the disk is full") as caught:
        session.compress_for_people(config, command="kdc compress --task pydocs")
    assert "run this again to resume" in str(caught.value)
