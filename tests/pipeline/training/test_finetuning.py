"""What the settings of a student make of its training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdc.common.errors import InputError
from kdc.pipeline.config import metrics
from kdc.pipeline.config.tasks import custom_task, find_task
from kdc.pipeline.config.training_settings import StudentSettings, TeacherSettings, TrainSettings
from kdc.pipeline.training import finetuning
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
    assert not asked.each_window


def test_a_teacher_learns_from_labels_and_keeps_its_best_metric(objective: Any) -> None:
    settings = TeacherSettings()
    assert (objective(settings).alpha, settings.kept_step) == (0.0, "score")


@pytest.mark.parametrize(
    ("logits", "unlabeled", "has", "splits"),
    [
        ("targets.npy", True, True, ["train", "unlabeled"]),
        ("targets.npy", True, False, ["train"]),
        ("targets.npy", False, True, ["train"]),
        (None, True, True, ["train"]),
    ],
)
def test_unlabelled_rows_are_trained_on_with_a_teachers_logits_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logits: str | None, unlabeled: bool, has: bool, splits: list[str]
) -> None:
    """Rows without labels have nothing else to learn from; and a control leaves them out."""
    read: list[Any] = []
    given: list[Any] = []

    def rows(data: Any, role: str, splits: list[str], teacher_logits: Path | None) -> Any:
        read.append((role, splits, teacher_logits))
        return Nothing()

    monkeypatch.setattr(finetuning, "Rows", SimpleNamespace(read=rows))
    monkeypatch.setattr(finetuning, "settle", lambda environment, *given, **more: environment)
    monkeypatch.setattr(finetuning, "train", lambda *given_to, **more: given.append(more))
    monkeypatch.setattr(Nothing, "has", lambda self, split: has)
    path = tmp_path / logits if logits else None
    finetuning.fine_tune(
        None,
        StudentSettings(min_steps=0, epochs=1, window_loss="each"),
        Nothing(),  # type: ignore[arg-type]
        Environment(seed=0),
        role="student",
        pad_id=3,
        checkpoints=tmp_path,
        progress=lambda *given, **more: None,
        new_modules=("classifier",),
        teacher_logits=path,
        unlabeled=unlabeled,
    )
    assert read == [("student", splits, path), ("student", ["tune"], path)]
    (asked,) = given
    assert asked["plan"].steps == 320 / 32
    assert (asked["plan"].new_modules, asked["pad_id"], asked["objective"].each_window) == (("classifier",), 3, True)


class Labelled:
    """A task's training and tuning rows that have these labels."""

    def __init__(self, labels: list[Any], kind: Any = "classification", names: tuple[str, ...] = ("a", "b")) -> None:
        self.labels, self.task = labels, custom_task("t", "text", None, "label", kind, names)

    def tokens(self, role: str, split: str) -> Any:
        return {"label": self.labels}

    def rows(self, split: str) -> Any:
        assert split == "tune"
        return {"label": self.labels}

    def groups(self, split: str) -> Any:
        return np.arange(len(self.labels))


@pytest.mark.parametrize(
    ("setting", "labels", "kind", "weights"),
    [
        ("none", [0, 1], "classification", None),
        ("balanced", [0, 0, 0, 1], "classification", (2 / 3, 2)),
        ("balanced", [0, 0], "classification", (1, 2)),  # a class without rows weighs as if it had one
        ("balanced", [[1, 1], [1, 0], [1, 0]], "multilabel", (2 / 3, 2)),
        ({"b": 3.0}, [0, 0, 1], "classification", (3 / 5, 9 / 5)),
        ({"a": 1.0, "b": 1.0}, [0, 0, 1], "classification", (1, 1)),
    ],
)
def test_the_average_row_weighs_one(setting: Any, labels: list[Any], kind: str, weights: Any) -> None:
    found = finetuning.class_weights(setting, Labelled(labels, kind))  # type: ignore[arg-type]
    assert found == (None if weights is None else pytest.approx(weights))


def test_weights_that_a_task_cannot_have_are_refused() -> None:
    number = custom_task("t", "text", None, "label", "regression")
    classes = custom_task("t", "text", None, "label", "classification", ("a", "b"))
    some: tuple[str | dict[str, float], ...] = ("balanced", {"a": 1.0})
    finetuning.check_class_weights("none", number)
    finetuning.check_class_weights({"a": 2.0}, classes)
    finetuning.check_class_weights("balanced", classes)
    for setting in some:
        with pytest.raises(InputError, match="regression has no classes"):
            finetuning.check_class_weights(setting, number)
    with pytest.raises(InputError, match="does not have") as refused:
        finetuning.check_class_weights({"z": 1.0, "a": 1.0, "c": 1.0}, classes)
    assert (refused.value.given, refused.value.remedy) == ("c, z", "its labels: a, b")


def test_a_model_is_scored_beside_the_majority_and_chance() -> None:
    data = Labelled([0, 0, 0, 1] * 5)
    logits = np.eye(2)[[0, 0, 1, 1] * 5]
    result = finetuning.score_logits(logits, data)  # type: ignore[arg-type]
    assert (result.tune["accuracy"], result.majority["accuracy"], result.constant) == (75.0, 75.0, False)
    assert 0 < result.chance < 0.2
    assert finetuning.score_logits(logits[:, [0, 0]] * 0, data).constant  # type: ignore[arg-type]


def test_chance_is_of_the_metric_that_decides_and_of_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def chance(logits: Any, labels: Any, kind: str, name: str, *, groups: Any) -> float:
        asked.append((kind, name, groups.tolist()))
        return 0.25

    monkeypatch.setattr(metrics, "chance", chance)
    data = Labelled([0, 1, 1])
    assert data.task.metrics == ("macro_f1", "accuracy")
    assert finetuning.score_logits(np.eye(2)[[0, 1, 1]], data).chance == 0.25  # type: ignore[arg-type]
    assert asked == [("classification", "macro_f1", [0, 1, 2])]
