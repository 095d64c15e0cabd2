"""Figures by slice of the evaluation rows, and how often a slice is called worse than all rows."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from kdc.artifact.decision import Abstention, SliceFigures, slice_notes, slice_table
from kdc.artifact.manifest import TaskInfo
from kdc.pipeline.config.metrics import METRICS
from kdc.pipeline.quality.intervals import difference, score_interval
from kdc.pipeline.quality.judging import EvaluationAnswers
from kdc.pipeline.quality.slices import chances, holm, slice_figures

MOOD = TaskInfo(name="mood", kind="classification", labels=("bad", "good"), metric="macro_f1")


class World:
    """Answers of a student and a teacher to rows of a few languages."""

    def __init__(self, sizes: dict[str, int], right: dict[str, float], *, group_size: int = 1, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.languages = np.repeat([*sizes], [*sizes.values()]).astype(object)
        rows = len(self.languages)
        self.labels = generator.integers(0, 2, rows)
        self.groups = np.arange(rows) // group_size
        shares = np.array([right[language] for language in self.languages])
        student = generator.random(self.groups.max() + 1)[self.groups] < shares  # groups are right or wrong as a whole
        self.student = np.eye(2)[np.where(student, self.labels, 1 - self.labels)]
        self.teacher = np.eye(2)[np.where(generator.random(rows) < 0.9, self.labels, 1 - self.labels)]

    def figures(
        self, task: TaskInfo = MOOD, names: tuple[str, ...] = ("macro_f1", "accuracy")
    ) -> dict[str, SliceFigures]:
        students, slices = {"int8": self.student, "teacher": self.teacher}, {"language": self.languages}
        answers = EvaluationAnswers([], self.labels, students, self.groups, slices=slices)
        return {part.name: part for part in slice_figures(answers, "int8", task, names, 1.0)}


def test_figures_are_those_of_the_slices_rows_alone() -> None:
    world = World({"de": 80, "en": 120}, {"de": 0.7, "en": 0.9}, group_size=2)
    figures, rows = world.figures(), world.languages == "de"
    part, truth, answers = figures["language=de"], world.labels[rows], world.student[rows].argmax(1)
    assert [*figures] == ["all rows", "language=en", "language=de"]
    assert part.rows == 80
    assert part.metrics["accuracy"] == pytest.approx(100 * accuracy_score(truth, answers), abs=1e-4)
    assert part.metrics["macro_f1"] == pytest.approx(100 * f1_score(truth, answers, average="macro"), abs=1e-4)
    others = f1_score(truth, world.teacher[rows].argmax(1), average="macro")
    assert part.difference == pytest.approx(part.metrics["macro_f1"] - 100 * others, abs=1e-3)
    how: Any = {"labels": truth, "kind": "classification", "metric": "macro_f1", "groups": world.groups[rows]}
    assert part.interval == score_interval(world.student[rows], **how)
    assert part.difference_interval == difference(world.student[rows], world.teacher[rows], **how).interval
    assert figures["all rows"].metrics["accuracy"] == pytest.approx(
        100 * accuracy_score(world.labels, world.student.argmax(1)), abs=1e-4
    )


def test_few_independent_rows_get_no_figures() -> None:
    """Would catch thirty rows of one user that count as thirty."""
    figures = World({"de": 29, "fr": 30, "en": 200}, dict.fromkeys(("de", "fr", "en"), 0.9)).figures()
    assert (figures["language=de"].metrics, figures["language=de"].chance) == ({}, None)
    assert figures["language=fr"].metrics
    assert not World({"fr": 58, "en": 200}, {"fr": 0.9, "en": 0.9}, group_size=2).figures()["language=fr"].metrics


def test_a_slice_without_the_labels_that_a_metric_needs_gets_no_figures() -> None:
    """Would catch an F1 of 0, "worse beyond chance", if no row of a slice has the label."""
    world = World({"de": 100, "en": 100}, {"de": 1.0, "en": 1.0})
    world.labels[:100] = 0
    world.student[:100] = (1.0, 0.0)
    assert world.figures(names=("f1",))["language=de"].metrics == {}
    assert world.figures(names=("accuracy",))["language=de"].metrics == {"accuracy": 100.0}


def test_the_other_values_of_a_column_are_one_slice() -> None:
    sizes = {f"c{number:02}": 60 - number for number in range(25)}
    figures = World(sizes, dict.fromkeys(sizes, 0.8)).figures(names=("accuracy",))
    assert [*figures][1:] == [*(f"language=c{number:02}" for number in range(20)), "language: 5 other values"]
    assert figures["language: 5 other values"].rows == sum([*sizes.values()][20:])


def test_a_bad_slice_is_told_and_others_are_not() -> None:
    figures = World({"de": 100, "en": 300, "fr": 100}, {"de": 0.6, "en": 0.9, "fr": 0.9}).figures()
    assert [part.name for part in figures.values() if part.is_worse] == ["language=de"]
    (note,) = slice_notes([*figures.values()])
    assert note.startswith(f"language=de: macro_f1 {figures['language=de'].metrics['macro_f1']:.1f}, below ")


def test_an_abstaining_model_tells_what_it_answers_in_a_slice() -> None:
    world = World({"de": 50, "en": 100}, {"de": 0.8, "en": 0.9})
    world.student *= np.where(world.languages == "de", 0.1, 9.0)[:, None]  # unsure of all German rows
    task = MOOD.model_copy(update={"abstain": Abstention(threshold=0.9, aim="fixed")})
    answered = {name: part.answered for name, part in world.figures(task).items()}
    assert answered["language=de"] is not None
    assert answered["language=en"] is not None
    assert (answered["language=de"].coverage.hits, answered["language=en"].coverage.hits) == (0, 100)
    header, *lines = slice_table([*world.figures(task).values()])
    assert [line[header.index("answered %")].split()[0] for line in lines] == ["66.7", "100.0", "0.0"]


def test_columns_that_nobody_fills_are_left_out_of_the_table() -> None:
    header, *_ = slice_table([*World({"de": 50, "en": 100}, {"de": 0.8, "en": 0.9}).figures().values()])
    assert header == [
        "slice",
        "rows",
        "macro_f1",
        "95 % interval",
        "accuracy",
        "against the teacher",
        "worse than all rows",
    ]
    assert slice_table([]) == []


def test_holms_correction() -> None:
    """The example of Holm's rule by hand: 4 x 0.01, then 3 x 0.02, 2 x 0.03, and never less than before."""
    assert holm(np.array([0.03, 0.01, 0.5, 0.02])) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("group_sizes", [[1] * 240, [1, 2, 3, 9] * 16, [12] * 20])
def test_equally_good_slices_are_called_worse_in_one_world_of_twenty(group_sizes: list[int]) -> None:
    """Would catch a test that takes rows of one group for independent: it calls a slice worse in half of the worlds."""
    alarms, worlds, generator = 0, 200, np.random.default_rng(1)
    groups = np.repeat(np.arange(len(group_sizes)), group_sizes)
    for _ in range(worlds):
        right = (generator.random(len(group_sizes)) < 0.7)[groups]
        slice_of = generator.integers(0, 3, len(group_sizes))[groups]
        inside = np.stack([slice_of == place for place in range(3)])
        score = METRICS["accuracy"].scorer(np.ones(len(right), int), right.astype(int))
        alarms += holm(chances(score, inside, groups)).min() <= 0.05
    assert alarms <= 20  # of 10 expected at most; more in 1 of 500 tests
