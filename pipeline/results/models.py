"""What the stages that train or answer with a model hand on: teacher, targets, student, merge, controls."""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from kdc.pipeline.results.base import Points, Result, Scores, StageResult


class History(Result):
    """The curves of one training.

    Attributes:
        loss: mean training loss since the point before.
        score: the deciding metric on the tuning slice, at each look at it.
        tune_loss: the loss there.
    """

    loss: Points
    score: Points
    tune_loss: Points


class TrainingSummary(Result):
    """What one training reports.

    Attributes:
        best_score: the deciding metric on the tuning slice at the step whose weights were kept.
        best_step: that step.
        steps: updates in all.
        resumed_from: the step that the training went on from; 0 where it began anew.
        train_rows: rows that were trained on.
        rows_per_second: while training.
        seconds: since it began or went on.
        trainable_parameters: weights that were trained.
        history: its curves.
        peak_memory_bytes: of the device, on CUDA only.
    """

    best_score: float
    best_step: int
    steps: int
    resumed_from: int = 0
    train_rows: int = 0
    rows_per_second: float
    seconds: float
    trainable_parameters: int
    history: History
    peak_memory_bytes: int | None = None


class ModelResult(StageResult):
    """One model as the tuning slice finds it, and how it was trained. In JSON the training's fields stand beside the
    others.

    Attributes:
        tune: metrics on the tuning slice; the first one decides.
        majority: the same of the answer that is right most often (for regression: the mean).
        constant: whether the model gives every row the same answer.
        parameters: of the model that is kept, adapters merged; None where that was not counted.
        training: None where nothing was trained: a teacher that came fine-tuned, or a black box.
    """

    tune: Scores
    majority: Scores
    constant: bool
    parameters: int | None = None
    training: TrainingSummary | None = None

    @property
    def line(self) -> str:
        """The metrics of the tuning slice."""
        return "tuning slice " + ", ".join(f"{name} {value:.1f}" for name, value in self.tune.items())

    @model_validator(mode="before")
    @classmethod
    def _nest_training(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "history" not in values:
            return values
        names = values.keys() & TrainingSummary.model_fields.keys()
        others = {name: value for name, value in values.items() if name not in names}
        return others | {"training": {name: values[name] for name in names}}

    @model_serializer(mode="wrap")
    def _flatten_training(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        return (values.pop("training", None) or {}) | values


class TeacherResult(ModelResult):
    """Stage `teacher`: the first teacher, which a student may be cut from.

    Attributes:
        others: further teachers, whose logits are averaged with its own.
    """

    STAGE = "teacher"

    others: tuple[ModelResult, ...] = ()

    def scores(self, metric: str) -> list[float]:
        """A metric of every teacher on the tuning slice, the first teacher's first."""
        return [teacher.tune[metric] for teacher in (self, *self.others)]


class TargetsResult(StageResult):
    """Stage `targets`.

    Attributes:
        rows: that have logits.
        resumed_from: rows that were answered before the stage was cut off; None with several teachers or a black box.
        weights: of several teachers, in their order; their sum is 1.
        temperature: that all logits were divided by; None where they were not calibrated.
    """

    STAGE = "targets"

    rows: int
    resumed_from: int | None = None
    weights: tuple[float, ...] | None = None
    temperature: float | None = None


class StudentResult(ModelResult):
    """Stage `student`."""

    STAGE = "student"


class MergeResult(StageResult):
    """Stage `merge`. Differences are the largest of any logit on the compared rows.

    Attributes:
        max_difference: between the merged model and the one with adapters.
        tolerance: that it keeps to.
        difference_from_untrained: between the merged model and the student before training.
    """

    STAGE = "merge"

    max_difference: float
    tolerance: float
    difference_from_untrained: float


class ControlsResult(StageResult):
    """Stage `controls`; neither model where they were not asked for.

    Attributes:
        student_without_kd: the same student trained on the labels alone.
        teacher_lora: the teacher fine-tuned through adapters.
    """

    STAGE = "controls"

    student_without_kd: ModelResult | None = None
    teacher_lora: ModelResult | None = None
