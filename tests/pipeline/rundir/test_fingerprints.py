"""What a stage's fingerprint depends on: what its result depends on, and nothing else."""

import csv
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import config_for

from kdc.common import machine
from kdc.pipeline.config.settings import Config
from kdc.pipeline.rundir import fingerprints
from kdc.pipeline.rundir.fingerprints import answered_rows, as_json, fingerprint_of, labelled_rows, this_machine
from kdc.pipeline.rundir.fingerprints import training as depends_on

WINDOWS = ("long.mode=windows",)


def written(path: Path, text: str = "w1") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("first", "second", "label"), (text, "w3", "yes")])
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows and two teachers."""
    for name in ("train.csv", "eval.csv", "more.csv"):
        written(tmp_path / name, name)
    for name in ("teacher", "other"):
        (tmp_path / name).mkdir()
        about = {"model_type": "bert", "num_hidden_layers": 2, "name": name}
        (tmp_path / name / "config.json").write_text(json.dumps(about))
    return tmp_path


def config(folder: Path, *sets: str, **flags: Any) -> Config:
    named = {name.replace("__", "."): value for name, value in flags.items()}
    return config_for(folder, folder / "teacher", *sets, flags=named)


def test_a_fingerprint_is_the_hash_of_plain_json() -> None:
    """Would catch a fingerprint that another release of kdc makes otherwise: it would redo every finished run."""
    text = '[2, "teacher", {"a": 1, "b": 2}, ["f"]]'
    assert fingerprint_of("teacher", {"b": 2, "a": 1}, ["f"]) == hashlib.sha256(text.encode()).hexdigest()


def test_settings_compare_equal_after_they_were_read_from_a_file() -> None:
    settings = as_json({"path": Path("a/b"), "names": ("x", "y")})
    assert settings == json.loads(json.dumps(settings)) == {"path": "a/b", "names": ["x", "y"]}


def test_what_the_teacher_is_not_trained_on_leaves_its_rows_as_they_are(folder: Path) -> None:
    """Would catch a teacher that is trained again, for hours, after a change of student or unlabelled rows."""
    before = labelled_rows(config(folder))
    (folder / "teacher").rename(folder / "moved")
    more = {"data__unlabeled": folder / "more.csv", "teacher__model": str(folder / "moved"), "student__model": "conv"}
    more["data__slices"] = ["language"]
    assert labelled_rows(config(folder, "data.max_unlabeled_rows=7", **more)) == before


@pytest.mark.parametrize(
    "change",
    [
        ("run.seed=5",),
        ("data.max_length=9",),
        ("teacher.more=other",),
        WINDOWS,
        ("the file",),
        ("the teacher",),
    ],
)
def test_what_the_teacher_is_trained_on_changes_its_rows(
    folder: Path, change: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = labelled_rows(config(folder))
    if change == ("the file",):
        written(folder / "train.csv", "w2")
    elif change == ("the teacher",):
        (folder / "teacher" / "config.json").write_text("{}")
    assert labelled_rows(config(folder, *(each for each in change if "=" in each))) != before


def test_settings_of_windows_redo_nothing_if_texts_are_cut(folder: Path) -> None:
    cut = config(folder)
    assert "long" not in labelled_rows(cut).keys() | depends_on(cut, cut.teacher)


def test_how_windows_are_joined_concerns_the_training_alone(folder: Path) -> None:
    one, other = (config(folder, *WINDOWS, f"long.join={join}") for join in ("mean", "max"))
    assert labelled_rows(one) == labelled_rows(other)
    assert depends_on(one, one.teacher) != depends_on(other, other.teacher)


def test_the_teacher_answers_unlabelled_rows_too(folder: Path) -> None:
    before, files = answered_rows(config(folder)), {"data__unlabeled": folder / "more.csv"}
    more = answered_rows(config(folder, **files))
    assert before != more != answered_rows(config(folder, "data.max_unlabeled_rows=7", **files))
    assert answered_rows(config(folder, student__model="conv")) == before
    assert before["seed"] == labelled_rows(config(folder))["seed"]


@pytest.mark.parametrize("change", ["hours=3", "allow_majority=true", "vocabulary=all"])
def test_how_long_a_student_may_take_and_how_it_is_judged_trains_it_no_second_time(folder: Path, change: str) -> None:
    before, now = config(folder), config(folder, f"student.{change}")
    assert before.student != now.student
    assert depends_on(now, now.student) == depends_on(before, before.student)


@pytest.mark.parametrize(
    "change",
    [
        "student.vocabulary=auto",
        "student.alpha=0.4",
        "student.model=layers:0",
        "run.seed=5",
        "run.precision=bf16",
        "long.mode=windows",
    ],
)
def test_what_a_student_is_made_by_trains_it_again(folder: Path, change: str) -> None:
    before, now = config(folder), config(folder, change)
    assert depends_on(now, now.student) != depends_on(before, before.student)


def test_a_teachers_files_decide_and_not_their_place(folder: Path) -> None:
    """Nor do further teachers, each of which is trained by itself."""
    first = config(folder)
    before = depends_on(first, first.teacher)
    (folder / "teacher").rename(folder / "moved")
    moved = config(folder, "teacher.more=other", "teacher.hours=3", teacher__model=str(folder / "moved"))
    assert depends_on(moved, moved.teacher) == before
    other = config(folder, teacher__model=str(folder / "other"))
    assert depends_on(other, other.teacher) != before


def test_a_machine_is_its_cpu_its_cores_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu", lambda: SimpleNamespace(model="Pentium"))
    monkeypatch.setattr(machine, "cores", lambda: SimpleNamespace(usable=3))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Voodoo")
    assert this_machine("cpu") == {"machine": ["Pentium", 3, None]}
    assert this_machine("cuda") == {"machine": ["Pentium", 3, "Voodoo"]}
    assert fingerprints.gpu_name("cpu") is None
