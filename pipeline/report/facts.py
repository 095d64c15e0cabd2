"""The facts of a finished run, as `report.json` holds them.

Scores and differences are points, times are seconds or milliseconds as named, sizes are bytes.
"""

from typing import Any

from pydantic import Field

from kdc.artifact.decision import Abstention, LabelSets, OperatingPoint, SliceFigures
from kdc.artifact.manifest import Kind, Lineage
from kdc.pipeline.config.labelled import Description
from kdc.pipeline.quality.calibration import Reliability
from kdc.pipeline.results.artifact import Pair, WholeJudgement
from kdc.pipeline.results.base import Result, Scores
from kdc.pipeline.results.data import Lengths
from kdc.pipeline.results.training import History, StudentCosts, Trial

SCHEMA = 1
Interval = tuple[float, float]
Matrix = tuple[tuple[int, ...], ...]
Answer = str | float


class TaskFacts(Result):
    name: str
    kind: Kind
    labels: tuple[str, ...]
    metric: str  # that decides
    columns: tuple[str, ...]  # text columns


class ModelFacts(Result):
    """On the evaluation rows. None: not measured, or not trained."""

    metrics: Scores  # points by metric
    collapsed: bool  # gives one answer
    interval: Interval  # 95 %
    kept_percent: float | None  # of the teacher's metric; None if that is not above 0
    kept_above_chance_percent: float | None = None  # of the teacher's lead over the majority; None without a lead
    difference: float  # deciding metric minus the teacher's
    difference_interval: Interval  # 95 %, paired by row
    trainable_parameters: int | None
    training_seconds: float | None
    runtime: str | None = None  # with the device
    parameters: int | None = None
    size_bytes: int | None = None  # model file and tokenizer.json
    latency_p50_ms: float | None = None  # for one row, tokenising included
    latency_p95_ms: float | None = None
    latency_mean_ms: float | None = None
    rows_per_second: float | None = None  # in batches of 32
    share_of_products: float | None = None  # see `products.share_of_products`
    peak_memory_bytes: int | None = None


class TrainingFacts(History):
    best_step: int
    steps: int


class CalibrationFacts(Result):
    temperature: float
    before: Reliability
    after: Reliability


class DecisionFacts(Result):
    """Curves over thresholds, on the evaluation rows."""

    point: OperatingPoint
    thresholds: tuple[float, ...]
    precision: tuple[float | None, ...]  # None without rows
    recall: tuple[float | None, ...]  # None without rows
    given: tuple[float, ...]  # share of rows that get the label


class AbstentionFacts(Result):
    abstain: Abstention
    teacher: tuple[tuple[float, float], ...]  # (share of surest rows, accuracy), of the teacher
    student: tuple[tuple[float, float], ...]  # of the served student


class CascadeFacts(Result):
    second: str
    taken: bool  # whether the artifact has it
    pair: Pair  # on the tuning set
    share: float  # of rows for the second model
    score: float  # of both models
    curve: tuple[tuple[float, float], ...]  # (share, score)


class LengthFacts(Lengths):
    cut: int
    truncated: int


class QuotedRow(Result):
    text: str  # shortened
    text_pair: str | None
    label: Answer
    teacher: Answer
    student: Answer
    confidence: float | None  # the student's, 0 to 1; None for regression


class Disagreements(Result):
    count: int | None  # None for regression, where answers always differ
    teacher_right: int | None = None
    student_right: int | None = None
    rows: tuple[QuotedRow, ...]  # the most confident; for regression, the largest differences


class CandidateFacts(Result):
    measured: dict[str, StudentCosts]  # by student, untrained
    kept: tuple[str, ...]  # that can keep the contract
    trials: tuple[Trial, ...]  # short trainings
    chosen: str


class Origin(Lineage):
    commands: tuple[str, ...]  # oldest first
    rows: dict[str, int]  # by tokenised split
    created: str
    artifact_sha256: str  # of the manifest
    stage_seconds: dict[str, float]


class Facts(Result):
    verdict: str = ""
    notes: tuple[str, ...] = ()
    schema_number: int = Field(alias="schema")  # BaseModel has `schema`
    task: TaskFacts
    served: str  # variant that a CPU loads ("fp32", "int8" or "cascade")
    models: dict[str, ModelFacts]
    training: dict[str, TrainingFacts]  # by model; none for a given fine-tuned teacher
    # rows by true label (down) and answer (across), of "teacher" and served "student"; None with many classes
    confusion: dict[str, Matrix] | None
    calibration: CalibrationFacts | None  # None for regression
    decisions: tuple[DecisionFacts, ...] = ()
    abstention: AbstentionFacts | None = None
    sets: LabelSets | None = None
    slices: tuple[SliceFigures, ...] = ()
    cascade: CascadeFacts | None = None  # None without a second model or its answers
    lengths: LengthFacts  # of training rows
    disagreements: Disagreements
    contract: WholeJudgement | None
    candidates: CandidateFacts | None  # None if no contract limits costs
    where: Origin
    replaced: Description | None = None  # the large model that labelled the training table

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)
