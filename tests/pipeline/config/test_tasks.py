"""Tasks on disk."""

import json
from pathlib import Path

from kdc.pipeline.config.tasks import TASKS, Task


def test_a_task_is_read_as_it_was_written(tmp_path: Path) -> None:
    TASKS["mnli"].save(tmp_path / "task.json")
    assert Task.load(tmp_path / "task.json") == TASKS["mnli"]


def test_a_task_of_a_run_directory_of_an_older_version_is_read(tmp_path: Path) -> None:
    document = TASKS["wnli"].model_dump(mode="json") | {"allow_majority": True}
    (tmp_path / "task.json").write_text(json.dumps(document))
    assert Task.load(tmp_path / "task.json") == TASKS["wnli"]
