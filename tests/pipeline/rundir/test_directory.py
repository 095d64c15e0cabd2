"""The run directory: nothing that no run made is replaced."""

import json
from pathlib import Path

import pytest
from tiny_runs import base_model, compress, config_for, write_rows

from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import Task, task_of
from kdc.pipeline.rundir.directory import claim
from kdc.pipeline.rundir.fingerprints import labelled_rows

STAGES = ("data", "teacher")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_for(tmp_path, tmp_path / "teacher")


def write(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "theirs",
    [
        "data/train.csv",
        "data.old/train.csv",
        "teacher.partial/model",
        "data",
        "artifact",
        "artifacts/a",
        "report.md",
        "commands.json",
        "teacher.kept/notes.txt",
        "config.json",
    ],
)
def test_a_directory_with_somebodys_own_files_is_refused_and_left_alone(
    config: Config, tmp_path: Path, theirs: str
) -> None:
    write(tmp_path / "out" / theirs, '{"run": 1}')
    before = files(tmp_path)
    with pytest.raises(InputError, match="that no run made") as caught:
        claim(tmp_path / "out", config.model_dump_json(indent=2), STAGES)
    assert str(tmp_path / "out" / theirs.split("/")[0]) in str(caught.value)
    assert files(tmp_path) == before


def test_other_files_beside_a_run_are_no_hindrance(config: Config, tmp_path: Path) -> None:
    write(tmp_path / "notes.txt")
    claim(tmp_path, config.model_dump_json(indent=2), STAGES)
    assert json.loads((tmp_path / "config.json").read_text())["student"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_goes_on_in_its_own_directory(config: Config, tmp_path: Path) -> None:
    claim(tmp_path, config.model_dump_json(indent=2), STAGES)
    for name in ("data/rows", "teacher.partial/model", "artifact", "report.html"):
        write(tmp_path / name)
    before = files(tmp_path)
    claim(tmp_path, config.model_dump_json(indent=2), STAGES)
    assert files(tmp_path) == before


def test_stages_that_were_copied_from_another_run_are_a_start(config: Config, tmp_path: Path) -> None:
    write(tmp_path / "data" / "stage.json")
    write(tmp_path / "teacher.kept" / "0123.json")
    (tmp_path / "teacher.partial").mkdir()  # killed before its mark was written
    claim(tmp_path, config.model_dump_json(indent=2), STAGES)
    assert sorted(files(tmp_path)) == ["config.json", "data/stage.json", "teacher.kept/0123.json"]


def test_a_run_whose_settings_were_cut_off_goes_on(config: Config, tmp_path: Path) -> None:
    write(tmp_path / "config.json", '{"run": {"ou')
    with pytest.raises(InputError, match="that no run made"):
        claim(tmp_path, config.model_dump_json(indent=2), STAGES)
    write(tmp_path / "data" / "stage.json")
    claim(tmp_path, config.model_dump_json(indent=2), STAGES)
    assert json.loads((tmp_path / "config.json").read_text())["student"]


def test_compress_does_not_replace_the_folder_that_its_rows_lie_in(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.csv", 60, seed=1)
    teacher = base_model("bert", tmp_path / "base", num_hidden_layers=2)
    flags = {"data.train": tmp_path / "data" / "train.csv", "data.eval": None, "run.out": tmp_path}
    before = files(tmp_path)
    with pytest.raises(InputError, match="that no run made"):
        compress(config_for(tmp_path, teacher, flags=flags), until="data")
    assert {name: text for name, text in files(tmp_path).items() if name != "run.lock"} == before


@pytest.mark.parametrize("folder", ["..", "."])
def test_a_run_is_never_named_after_a_way_up(tmp_path: Path, folder: str) -> None:
    flags = {"data.train": None, "data.data": Path(folder), "run.out": None}
    assert task_of(config_for(tmp_path, tmp_path, flags=flags).data).name == "task"


def test_a_run_by_another_metric_is_another_run(tmp_path: Path) -> None:
    """Would catch a finished run whose teacher was kept by macro F1 taken for one by accuracy, and own rows whose
    metric is forgotten once their kind is found."""
    write_rows(tmp_path / "train.csv", 60, seed=1)
    teacher = base_model("bert", tmp_path / "base", num_hidden_layers=2)
    flags = {"data.eval": None}
    first = config_for(tmp_path, teacher, flags=flags)
    other = config_for(tmp_path, teacher, flags=flags | {"data.metric": "matthews"})
    assert labelled_rows(first) | {"metric": "matthews"} == labelled_rows(other)
    compress(other, until="data")
    assert Task.load(tmp_path / "run" / "data" / "task.json").metrics[0] == "matthews"
    with pytest.raises(InputError, match="no such metric"):
        compress(config_for(tmp_path, teacher, flags=flags | {"data.metric": "pearson"}), until="data")
