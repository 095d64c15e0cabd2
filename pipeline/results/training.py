"""What the stages hand on that choose, train and merge the models: `candidates` to `merge`, and `controls`."""

from collections.abc import Callable
from typing import Any

from pydantic import model_serializer, model_validator

from kdc.artifact.contract.terms import Costs
from kdc.pipeline.results.base import Points, Result, Scores, StageResult


class NotMeasured(Result):
    """A precision of an untrained student that could not be had."""

    failed: str  # why


class StudentCosts(Result):
    """One student that could come out, measured untrained."""

    parameters: int  # weights of its model
    # precision ("fp32", "int8", "fp16") to what it costs, or why that is not known
    variants: dict[str, Costs | NotMeasured]
    int8_4_bits: Costs | None = None  # int8 with token vectors of 4 bits, where the bits were not chosen by hand
    fewer_pieces: "StudentCosts | None" = None  # with a smaller vocabulary, where a contract's size may ask for it


class CandidatesResult(StageResult):
    """Stage `candidates`."""

    STAGE = "candidates"

    # student (an id, a path, "layers:0,1,2", or "teacher") to what it costs, in the order of measuring
    candidates: dict[str, StudentCosts]


class Trial(Result):
    """One short training of the search."""

    student: str  # what was trained: an id, a path, or "layers:0,1,2"; or "teacher", which needs no training
    steps: int  # updates of the weights
    parameters: int  # weights of its model
    score: float  # the deciding metric on the tuning slice
    seconds: float  # seconds that the training took


class SearchResult(StageResult):
    """Stage `search`."""

    STAGE = "search"

    student: str  # what gets the full training, or "teacher", which needs none
    trials: tuple[Trial, ...] = ()  # the short trainings, in order


class History(Result):
    """The curves of one training."""

    loss: Points  # mean training loss since the point before
    score: Points  # the deciding metric on the tuning slice, at each look at it
    tune_loss: Points  # the loss on the tuning slice, at each look at it


class TrainingSummary(Result):
    """What one training reports."""

    best_score: float  # the deciding metric on the tuning slice, at `best_step`
    best_step: int  # the step whose weights were kept, see `TrainSettings.kept_step`
    steps: int  # updates in all
    resumed_from: int = 0  # the step that the training went on from; 0 where it began anew
    train_rows: int = 0  # rows that were trained on
    rows_per_second: float  # rows a second while training
    seconds: float  # seconds since the training began, or went on
    trainable_parameters: int  # weights that were trained
    history: History  # curves of the training
    learning_rate: float  # the highest one
    head_learning_rate: float  # the highest one of what starts at random
    precision: str  # number format: "fp32" or "bf16"
    threads: int | None = None  # threads at its end; None on CUDA
    peak_memory_bytes: int | None = None  # most bytes taken on the device; None without CUDA


class ModelResult(StageResult):
    """One model as the tuning slice finds it, and how it was trained. In JSON the training's fields stand beside the
    others."""

    tune: Scores  # metrics on the tuning slice; the first one decides
    majority: Scores  # the same of the answer that is right most often (for regression: the mean)
    constant: bool  # whether the model gives every row the same answer
    chance: float  # how likely such a score is for answers that know nothing of the labels, within (0, 1]
    parameters: int | None = None  # weights of the model that is kept, adapters merged; None: not counted
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
    def _flatten_training(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        values = handler(self)
        return (values.pop("training", None) or {}) | values


class BaselinesResult(StageResult):
    """Stage `baselines`. Their names: "majority", "tfidf", and "probe" where there is an encoder to probe."""

    STAGE = "baselines"

    tune: dict[str, Scores]  # metrics on the tuning slice, by baseline
    best: str  # the one whose deciding metric is highest there
    train_rows: int  # training rows that they were fitted to, at most `baselines.max_rows`
    # how the probe takes a pair: "together", or "apart"; "" where the rows are no pairs, None without a probe
    probe_form: str | None = None


class Standing(Result):
    """A teacher beside the best baseline, by the deciding metric on the tuning slice."""

    baseline: str  # name of the baseline
    teacher_score: float  # points of the teacher
    baseline_score: float  # points of the baseline
    interval: tuple[float, float]  # 95 % interval of the teacher's minus the baseline's, paired by row

    @property
    def is_shown(self) -> bool:
        """Whether the teacher is better beyond the interval."""
        return self.interval[0] > 0


class Attempt(Result):
    """One way to make a teacher, and what came of it."""

    how: str  # "fine-tuned", "fine-tuned from the probe's head", or "the probe"
    score: float  # the deciding metric on the tuning slice


class TeacherResult(ModelResult):
    """Stage `teacher`: the first teacher, which a student may be cut from."""

    STAGE = "teacher"

    others: tuple[ModelResult, ...] = ()  # further teachers, whose logits are averaged with its own
    # what was tried for the first teacher, in order, where fine-tuning alone did not beat the baselines; the best of
    # these is the teacher
    attempts: tuple[Attempt, ...] = ()

    def scores(self, metric: str) -> list[float]:
        """A metric of every teacher on the tuning slice, the first teacher's first."""
        return [teacher.tune[metric] for teacher in (self, *self.others)]


class TargetsResult(StageResult):
    """Stage `targets`."""

    STAGE = "targets"

    rows: int  # rows that have logits
    # rows that were answered before the stage was cut off; None with several teachers or a black box
    resumed_from: int | None = None
    weights: tuple[float, ...] | None = None  # shares of several teachers, in their order; their sum is 1
    # each teacher's logits are divided by its temperature, then averaged; None with one teacher
    temperatures: tuple[float, ...] | None = None
    temperature: float | None = None  # divisor of all logits; None where they were not calibrated
    standing: Standing | None = None  # the teacher beside the best baseline; None where there are no baselines


class StudentResult(ModelResult):
    """Stage `student`."""

    STAGE = "student"


class MergeResult(StageResult):
    """Stage `merge`. Differences are the largest of any logit on the compared rows."""

    STAGE = "merge"

    max_difference: float  # between the merged model and the one with adapters
    tolerance: float  # largest difference that was allowed between these two
    difference_from_untrained: float  # between the merged model and the student before training


class ControlsResult(StageResult):
    """Stage `controls`; no model where they were not asked for."""

    STAGE = "controls"

    student_without_kd: ModelResult | None = None  # the same student trained on the labels alone
    # the same, its step kept by the metric; or by its loss, where the student's own is kept by the metric
    student_without_kd_by_score: ModelResult | None = None
    student_without_kd_by_loss: ModelResult | None = None
    student_without_unlabeled: ModelResult | None = None  # the same student, distilled on the labelled rows alone
    teacher_lora: ModelResult | None = None  # the teacher fine-tuned through adapters
