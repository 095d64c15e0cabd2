"""What the settings of a student make of its training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Finished

from kdc.pipeline.config.tasks import find_task
from kdc.pipeline.config.training_settings import StudentSettings, TeacherSettings, TrainSettings
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.training import finetuning, students
from kdc.pipeline.training.environment import Environment


class Nothing:
    """In place of rows."""

    parts = ()
    task = find_task("qnli")

    def __init__(self, parts: Any = ()) -> None:
        pass

    @staticmethod
    def read(*given: Any) -> Any:
        return Nothing()

    def has(self, split: str) -> bool:
        return False

    def groups(self, split: str) -> str:
        return f"groups of {split}"

    def __len__(self) -> int:
        return 320


@pytest.fixture
def objective(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The objective that a training with given settings is called with."""
    asked: dict[str, Any] = {}

    def train(*given: Any, objective: Any, groups: Any, **more: Any) -> None:
        asked["objective"] = objective
        assert groups == "groups of tune"  # else rows of one sentence would count as so many

    monkeypatch.setattr(finetuning, "train", train)
    monkeypatch.setattr(finetuning, "Rows", Nothing)
    monkeypatch.setattr(finetuning, "settle", lambda environment, *given, **more: environment)

    def of(settings: TrainSettings) -> Any:
        finetuning.fine_tune(
            None,
            settings,
            Nothing(),  # type: ignore[arg-type]
            Environment(seed=0),
            role="student",
            pad_id=0,
            checkpoints=tmp_path,
            progress=lambda *given, **more: None,
        )
        return asked["objective"]

    return of


def test_a_student_learns_by_its_settings_and_keeps_its_best_metric(objective: Any) -> None:
    """Would catch distillation that is switched off."""
    asked = objective(StudentSettings(alpha=0.7, temperature=3.0))
    assert (asked.alpha, asked.temperature, StudentSettings().kept_step) == (0.7, 3.0, "score")


def test_a_teacher_learns_from_labels_and_keeps_its_best_metric(objective: Any) -> None:
    settings = TeacherSettings()
    assert (objective(settings).alpha, settings.kept_step) == (0.0, "score")


@pytest.mark.parametrize(("dropout", "drops"), [(StudentSettings().dropout, False), ("own", True)])
def test_a_student_is_trained_without_dropout_unless_it_is_asked_for(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: Any, drops: bool
) -> None:
    """Would catch the checkpoint's own dropout under a student that is to copy its teacher's logits."""
    trained: list[Any] = []

    def caught(student: Any, *given: Any, **more: Any) -> None:
        trained.append(student)
        raise InterruptedError

    monkeypatch.setattr(students, "fine_tune", caught)
    run = Run(root=finished.folder / "run", config=finished.config)
    settings = finished.config.student.model_copy(update={"dropout": dropout})
    origin, out = run.origin_of(settings), tmp_path / "student"
    with pytest.raises(InterruptedError):
        students.distil(settings, origin, run.data(), None, out, run.environment, progress=run.progress)
    ids = torch.arange(4, 12)[None]
    first, second = (trained[0].train()(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second) is not drops
