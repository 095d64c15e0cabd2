"""Results of stages up to `merge`, and of `controls`. Scores are on the tuning set."""

from collections.abc import Callable
from typing import Any

from pydantic import model_serializer, model_validator

from kdc.artifact.contract.terms import Costs
from kdc.pipeline.results.base import Points, Result, Scores, StageResult


class NotMeasured(Result):
    failed: str


class StudentCosts(Result):
    parameters: int
    variants: dict[str, Costs | NotMeasured]  # by precision
    int8_4_bits: Costs | None = None  # with token embeddings in 4 bits, unless bits are set
    fewer_pieces: "StudentCosts | None" = None  # with a smaller vocabulary, if the contract limits size


class CandidatesResult(StageResult):
    STAGE = "candidates"

    candidates: dict[str, StudentCosts]  # in the order of measuring


class Trial(Result):
    student: str  # "teacher" is not trained
    steps: int  # weight updates
    parameters: int
    score: float
    seconds: float


class SearchResult(StageResult):
    STAGE = "search"

    student: str  # to train fully, or "teacher"
    trials: tuple[Trial, ...] = ()


class History(Result):
    loss: Points  # means between points
    score: Points
    tune_loss: Points


class TrainingSummary(Result):
    best_score: float
    best_step: int  # whose weights were kept; see `TrainSettings.kept_step`
    steps: int
    planned_steps: int = 0  # more than `steps` if patience or time ended it
    resumed_from: int = 0  # 0: not resumed
    train_rows: int = 0
    rows_per_second: float
    seconds: float  # since it began or resumed
    trainable_parameters: int
    history: History
    learning_rate: float  # highest
    head_learning_rate: float  # highest, of random weights
    precision: str  # "fp32" or "bf16"
    threads: int | None = None  # at the end; None on CUDA
    peak_memory_bytes: int | None = None  # None without CUDA


class ModelResult(StageResult):
    """JSON has the training's fields beside the others."""

    tune: Scores  # the first metric decides
    majority: Scores  # of the most frequent label, or the mean
    constant: bool  # one answer for all
    chance: float  # p-value of the score, in (0, 1]
    parameters: int | None = None  # with merged adapters; None: not counted
    training: TrainingSummary | None = None  # None for a fine-tuned teacher or a black box

    @property
    def line(self) -> str:
        return "tuning set " + ", ".join(f"{name} {value:.1f}" for name, value in self.tune.items())

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
    STAGE = "baselines"

    tune: dict[str, Scores]  # "majority", "tfidf", and "probe" with an encoder
    best: str
    train_rows: int
    probe_form: str | None = None  # "together" or "apart"; "" without pairs


class BaselineComparison(Result):
    baseline: str
    teacher_score: float
    baseline_score: float
    interval: tuple[float, float]  # 95 %, teacher minus baseline, paired by row

    @property
    def is_shown(self) -> bool:
        return self.interval[0] > 0


class LabelErrorsResult(StageResult):
    STAGE = "label_errors"

    errors: int
    rows: int  # training rows


class Attempt(Result):
    how: str  # "fine-tuned", "fine-tuned from the probe's head", or "the probe"
    score: float


class TeacherResult(ModelResult):
    STAGE = "teacher"

    others: tuple[ModelResult, ...] = ()  # logits are averaged
    # if fine-tuning alone did not beat the baselines; the best is the teacher
    attempts: tuple[Attempt, ...] = ()

    def scores(self, metric: str) -> list[float]:
        return [teacher.tune[metric] for teacher in (self, *self.others)]


class TargetsResult(StageResult):
    STAGE = "targets"

    rows: int  # with logits
    weights: tuple[float, ...] | None = None  # of several teachers, with sum 1
    temperatures: tuple[float, ...] | None = None  # divide logits before averaging; None: one teacher
    temperature: float | None = None  # divides all logits; None: not calibrated
    baseline_comparison: BaselineComparison | None = None


class StudentResult(ModelResult):
    STAGE = "student"


class MergeResult(StageResult):
    """Differences are the largest of any logit."""

    STAGE = "merge"

    max_difference: float  # from the model with adapters
    tolerance: float  # of `max_difference`
    difference_from_untrained: float  # from the untrained student
    temperature: float | None = None  # divides the saved last layer; None: it cannot


class ControlsResult(StageResult):
    STAGE = "controls"

    student_without_kd: ModelResult | None = None  # trained on labels only
    # with the rule for the kept step that the student does not use
    student_without_kd_by_score: ModelResult | None = None
    student_without_kd_by_loss: ModelResult | None = None
    student_without_unlabeled: ModelResult | None = None
    teacher_lora: ModelResult | None = None
