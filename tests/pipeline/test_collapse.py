"""A model that learned nothing fails the run, and says what to try; weights of classes; plans of steps."""

import numpy as np
import pytest

from kdc.common.errors import KdcError
from kdc.pipeline.config.tasks import custom_task, find_task
from kdc.pipeline.config.training_settings import StudentSettings
from kdc.pipeline.results.training import ModelResult
from kdc.pipeline.stages.evaluate import check_served
from kdc.pipeline.stages.merge import check_merge
from kdc.pipeline.training.environment import Environment
from kdc.pipeline.training.finetuning import check_learned, plan_for

TASK = find_task("qnli")


def summary(score: float, floor: float, *, constant: bool = False) -> ModelResult:
    return ModelResult(tune={"accuracy": score}, majority={"accuracy": floor}, constant=constant, chance=0.001)


def test_a_student_that_beats_the_majority_passes() -> None:
    assert check_learned(summary(60, 51), TASK, who="student", allow=False, remedy="") is None


@pytest.mark.parametrize(
    ("result", "words"),
    [(summary(51, 51), "does not beat the majority"), (summary(60, 51, constant=True), "every text the same answer")],
)
def test_a_student_that_learned_nothing_fails_the_run(result: ModelResult, words: str) -> None:
    with pytest.raises(KdcError, match=words) as caught:
        check_learned(result, TASK, who="student", allow=False, remedy="train longer")
    assert "train longer" in str(caught.value)


def test_where_the_majority_is_allowed_it_only_warns() -> None:
    warning = check_learned(summary(51, 51), TASK, who="student", allow=True, remedy="")
    assert warning is not None
    assert "majority" in warning


def test_a_score_that_chance_reaches_in_a_twentieth_of_cases_is_the_last_that_passes() -> None:
    def checked(chance: float) -> str | None:
        result = summary(60, 51).model_copy(update={"chance": chance})
        return check_learned(result, TASK, who="teacher", allow=True, remedy="")

    assert checked(0.05) is None
    assert checked(0.055) == (
        "the teacher is not shown to be better than chance on the tuning set "
        "(accuracy 60.0, majority 51.0; chance answers do as well in 5.5 % of cases)"
    )


def test_only_wnli_allows_the_majority_by_preset() -> None:
    from kdc.pipeline.config.resolve import resolve

    allowed = [
        name
        for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "pydocs")
        if resolve(flags={"data": {"task": name}}, sets={}, file={}).student.allow_majority
    ]
    assert allowed == ["wnli"]


def test_a_student_trains_its_minimum_of_steps_whatever_the_epochs_say() -> None:
    plan = plan_for(StudentSettings(epochs=1, min_steps=400), 320, Environment(seed=0))
    assert plan.steps >= 400


def test_the_last_step_is_a_step_that_is_looked_at() -> None:
    for rows in (100, 999, 12_345):
        plan = plan_for(StudentSettings(epochs=3, min_steps=0), rows, Environment(seed=0))
        assert plan.steps % plan.evaluate_every == 0
        assert 3 * rows / 32 <= plan.steps <= 3 * (rows / 32 + 1) + 8


@pytest.mark.parametrize(
    ("rows", "epochs", "min_steps", "evaluations", "steps", "every"),
    [
        (320, 3.0, 0, 5, 15, 3),  # 64 rows an update: 5 an epoch
        (321, 3.0, 0, 5, 20, 4),  # a part of an update is one: 18, and rounded up to whole looks
        (320, 0.5, 0, 5, 3, 1),  # 2.5
        (320, 3.0, 17, 5, 20, 4),
        (64, 1.0, 0, 8, 1, 1),
    ],
)
def test_steps_are_counted_by_updates(
    rows: int, epochs: float, min_steps: int, evaluations: int, steps: int, every: int
) -> None:
    settings = StudentSettings(epochs=epochs, min_steps=min_steps, evaluations=evaluations, batch_size=32, accumulate=2)
    plan = plan_for(settings, rows, Environment(seed=0))
    assert (plan.steps, plan.evaluate_every) == (steps, every)


@pytest.mark.parametrize(
    ("rows", "patience", "every"),
    [(320, None, 50), (320, 3, 10), (320_000, 3, 3750), (640, 3, 20), (32, 3, 10)],
    ids=["no patience", "at most 40", "few passes", "20 passes", "tiny"],
)
def test_patience_counts_passes_over_the_rows(rows: int, patience: int | None, every: int) -> None:
    """Would catch a patience that ends a large table's training within its first pass."""
    settings = StudentSettings(epochs=3, min_steps=400, evaluations=8, batch_size=32, patience=patience)
    assert plan_for(settings, rows, Environment(seed=0)).evaluate_every == every


def test_a_merge_that_changes_answers_is_refused() -> None:
    logits = np.array([[1.0, -1.0]], dtype=np.float32)
    with pytest.raises(KdcError, match="differ from the trained student's"):
        check_merge(logits - 1, logits, logits + np.float32(1e-3))


def test_a_merge_that_lost_the_training_is_refused() -> None:
    logits = np.array([[1.0, -1.0]], dtype=np.float32)
    with pytest.raises(KdcError, match="did not change the student"):
        check_merge(logits, logits, logits)


def test_custom_tasks_are_decided_by_macro_f1() -> None:
    assert custom_task("x", "a", None, "b", "classification").metrics == ("macro_f1", "accuracy")


def test_an_engine_that_answers_otherwise_than_the_merged_model_is_refused() -> None:
    logits = np.array([[1.0, -1.0]], dtype=np.float32)
    check_served({"eval": logits}, {"eval": logits + np.float32(1e-4)})
    with pytest.raises(KdcError, match="differ from the merged model's"):
        check_served({"eval": logits}, {"eval": logits + np.float32(0.1)})
