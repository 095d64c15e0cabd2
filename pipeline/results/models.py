"""What the stages that train or answer with a model hand on: teacher, targets, student, merge, controls."""

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from kdc.pipeline.results.base import Points, Result, Scores, StageResult


class History(Result):
    """The curves of one training."""

    loss: Points  # mean training loss since the point before
    score: Points  # the deciding metric on the tuning slice, at each look at it
    tune_loss: Points  # the loss on the tuning slice, at each look at it


class TrainingSummary(Result):
    """What one training reports."""

    best_score: float  # the deciding metric on the tuning slice at the step whose weights were kept
    best_step: int  # that step
    steps: int  # updates in all
    resumed_from: int = 0  # the step that the training went on from; 0 where it began anew
    train_rows: int = 0  # rows that were trained on
    rows_per_second: float  # while training
    seconds: float  # seconds since the training began, or went on
    trainable_parameters: int  # weights that were trained
    history: History  # its curves
    peak_memory_bytes: int | None = None  # of the device, on CUDA only


class ModelResult(StageResult):
    """One model as the tuning slice finds it, and how it was trained. In JSON the training's fields stand beside the
    others."""

    tune: Scores  # metrics on the tuning slice; the first one decides
    majority: Scores  # the same of the answer that is right most often (for regression: the mean)
    constant: bool  # whether the model gives every row the same answer
    parameters: int | None = None  # of the model that is kept, adapters merged; None where that was not counted
    # None where nothing was trained: a teacher that came fine-tuned, or a black box
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
    """Stage `teacher`: the first teacher, which a student may be cut from."""

    STAGE = "teacher"

    others: tuple[ModelResult, ...] = ()  # further teachers, whose logits are averaged with its own

    def scores(self, metric: str) -> list[float]:
        """A metric of every teacher on the tuning slice, the first teacher's first."""
        return [teacher.tune[metric] for teacher in (self, *self.others)]


class TargetsResult(StageResult):
    """Stage `targets`."""

    STAGE = "targets"

    rows: int  # rows that have logits
    # rows that were answered before the stage was cut off; None with several teachers or a black box
    resumed_from: int | None = None
    weights: tuple[float, ...] | None = None  # of several teachers, in their order; their sum is 1
    temperature: float | None = None  # that all logits were divided by; None where they were not calibrated


class StudentResult(ModelResult):
    """Stage `student`."""

    STAGE = "student"


class MergeResult(StageResult):
    """Stage `merge`. Differences are the largest of any logit on the compared rows."""

    STAGE = "merge"

    max_difference: float  # between the merged model and the one with adapters
    tolerance: float  # that it keeps to
    difference_from_untrained: float  # between the merged model and the student before training


class ControlsResult(StageResult):
    """Stage `controls`; neither model where they were not asked for."""

    STAGE = "controls"

    student_without_kd: ModelResult | None = None  # the same student trained on the labels alone
    teacher_lora: ModelResult | None = None  # the teacher fine-tuned through adapters
