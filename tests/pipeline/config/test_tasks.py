"""Tasks on disk."""

from pathlib import Path

import pytest

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import TASKS, Task, custom_task, decided_by


def test_a_task_is_read_as_it_was_written(tmp_path: Path) -> None:
    TASKS["mnli"].save(tmp_path / "task.json")
    assert Task.load(tmp_path / "task.json") == TASKS["mnli"]


@pytest.mark.parametrize(
    ("task", "metric", "expected"),
    [
        (TASKS["sst2"], None, ("accuracy",)),
        (TASKS["sst2"], "f1", ("f1", "accuracy")),
        (TASKS["mrpc"], "f1", ("f1", "accuracy")),
        (
            custom_task("own", "text", None, "label", "classification", tuple("abc")),
            "accuracy",
            ("accuracy", "macro_f1"),
        ),
    ],
)
def test_the_metric_that_was_asked_for_decides(task: Task, metric: str | None, expected: tuple[str, ...]) -> None:
    assert decided_by(task, metric).metrics == expected
    assert decided_by(task, metric).info().metric == expected[0]


@pytest.mark.parametrize(
    ("task", "metric", "remedy"),
    [
        (TASKS["stsb"], "accuracy", "--metric pearson or spearman"),
        (
            custom_task("own", "text", None, "label", "multilabel", ("a", "b")),
            "f1",
            "--metric macro_f1 or accuracy",
        ),
        (TASKS["mnli"], "f1", "--metric macro_f1 or accuracy or matthews"),  # of which class, of three?
    ],
)
def test_a_metric_that_the_task_has_not_is_refused_with_those_that_it_has(task: Task, metric: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        decided_by(task, metric)
    assert f"given: {metric}" in str(caught.value)
    assert remedy in str(caught.value)
