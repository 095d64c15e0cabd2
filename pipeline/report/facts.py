"""What a finished run shows, as frozen models: their JSON is `report.json`, which holds the fields that were set.

Scores and differences are points, times are seconds or milliseconds as their names say, sizes are bytes.
"""

from typing import Any

from pydantic import Field

from kdc.artifact.decision import Abstention, LabelSets, OperatingPoint
from kdc.artifact.manifest import Kind, Lineage
from kdc.pipeline.quality.calibration import Reliability
from kdc.pipeline.results.artifact import Pair, WholeJudgement
from kdc.pipeline.results.base import Result, Scores
from kdc.pipeline.results.data import Lengths
from kdc.pipeline.results.training import History, StudentCosts, Trial

SCHEMA = 1
Interval = tuple[float, float]  # its lower and upper end
Matrix = tuple[tuple[int, ...], ...]
Answer = str | float  # names of labels; a number for regression


class TaskFacts(Result):
    """The task; its name, kind and labels are those of the manifest."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metric: str  # the one that decides
    columns: tuple[str, ...]  # names of the column of the text, or of both texts


class ModelFacts(Result):
    """One model on the evaluation rows. A value is None without a measurement, or without a training of its own."""

    metrics: Scores  # points by name of the metric
    collapsed: bool  # whether it gives all rows one answer
    interval: Interval  # 95 % interval of the deciding metric
    kept_percent: float | None  # the deciding metric in percent of the teacher's; None where the teacher's is 0
    # the same of what both have above the majority; None where the teacher has nothing above it
    kept_above_chance_percent: float | None = None
    difference: float  # the deciding metric minus the teacher's
    difference_interval: Interval  # 95 % interval of that, paired by row
    trainable_parameters: int | None  # parameters that its training changed
    training_seconds: float | None  # seconds that its training took
    runtime: str | None = None  # what ran it, and on what device
    parameters: int | None = None  # how many it has
    size_bytes: int | None = None  # bytes of the model's file and of tokenizer.json
    latency_p50_ms: float | None = None  # median for one row, tokenising included
    latency_p95_ms: float | None = None  # 95th percentile for one row, tokenising included
    latency_mean_ms: float | None = None  # mean for one row, tokenising included
    rows_per_second: float | None = None  # throughput in batches of 32 rows
    peak_memory_bytes: int | None = None  # most memory of a process that loads it and answers


class TrainingFacts(History):
    """The curves of one training, the step whose weights were kept, and the number of steps."""

    best_step: int
    steps: int


class CalibrationFacts(Result):
    """The served student's confidence beside its accuracy, without the manifest's temperature and with it."""

    temperature: float
    before: Reliability
    after: Reliability


class DecisionFacts(Result):
    """A label's operating point, and what other thresholds do on the evaluation rows, by the model that is served."""

    point: OperatingPoint
    thresholds: tuple[float, ...]  # at which the three are measured, 0 to 1
    precision: tuple[float | None, ...]  # None where no row gets the label
    recall: tuple[float | None, ...]  # None where no row has it
    given: tuple[float, ...]  # share of all rows that get it


class AbstentionFacts(Result):
    """Which rows the artifact answers, and what answering more of the evaluation rows, or fewer, does."""

    abstain: Abstention
    # shares of the rows, the surest first, and the shares of these that are answered rightly, by the teacher
    teacher: tuple[tuple[float, float], ...]
    student: tuple[tuple[float, float], ...]  # the same by the student that is served


class CascadeFacts(Result):
    """What a second model does for the rows that the student is not sure of."""

    second: str  # what the second model is
    taken: bool  # whether the artifact has it
    pair: Pair  # as the tuning slice finds it
    share: float  # of the evaluation rows, those that go on
    score: float  # of both models on the evaluation rows
    curve: tuple[tuple[float, float], ...]  # share of the evaluation rows that go on, and the score with so many


class LengthFacts(Lengths):
    """The student's training rows by tokens before the cut, where they are cut, and how many are."""

    cut: int
    truncated: int


class QuotedRow(Result):
    """A row on which teacher and student differ. Long texts are shortened."""

    text: str
    text_pair: str | None
    label: Answer  # the truth
    teacher: Answer  # the teacher's answer
    student: Answer  # the student's answer
    confidence: float | None  # the student's in its answer, within [0, 1]; None for regression


class Disagreements(Result):
    """The rows on which teacher and student differ."""

    count: int | None  # how many; None for regression, where answers always differ
    teacher_right: int | None = None  # on how many of them the teacher is right; None for regression
    student_right: int | None = None  # on how many of them the student is right; None for regression
    # those of which the student is most confident; for regression the largest differences
    rows: tuple[QuotedRow, ...]


class CandidateFacts(Result):
    """The students that could come out."""

    measured: dict[str, StudentCosts]  # what each costs untrained, by student
    kept: tuple[str, ...]  # those that can keep the contract
    trials: tuple[Trial, ...]  # short trainings of some of them
    chosen: str  # the student of the run


class Origin(Lineage):
    """Where and how the artifact was made; `packages` begins with kdc."""

    commands: tuple[str, ...]  # the commands that made the run, the oldest first
    rows: dict[str, int]  # rows of each tokenised split
    created: str  # when
    artifact_sha256: str  # SHA-256 of the artifact's manifest
    stage_seconds: dict[str, float]  # seconds that each stage took, in the order in which they ended


class Facts(Result):
    """All facts of a run."""

    # in a sentence or two: what was compressed, what was kept, how much smaller and faster it is
    verdict: str = ""
    notes: tuple[str, ...] = ()  # what a person should know of teacher, int8 and what was not measured
    schema_number: int = Field(alias="schema")  # "schema" in JSON, a name that BaseModel has for something else
    task: TaskFacts
    served: str  # the variant that a CPU loads ("fp32" or "int8")
    models: dict[str, ModelFacts]  # models by name, in the table's order
    training: dict[str, TrainingFacts]  # curves by model; nothing of a teacher that was brought along fine-tuned
    # counts of rows by true label (down) and answer (across), of the "teacher" and of the "student" that is served;
    # None except for classification with few classes
    confusion: dict[str, Matrix] | None
    calibration: CalibrationFacts | None  # None for regression
    decisions: tuple[DecisionFacts, ...] = ()  # of the labels that have a threshold of their own
    abstention: AbstentionFacts | None = None  # None where all rows are answered
    sets: LabelSets | None = None  # sets of labels that hold the true one; None where there are none
    cascade: CascadeFacts | None = None  # None where no second model was looked for, or its answers are not kept
    lengths: LengthFacts  # how long the training rows are
    disagreements: Disagreements  # where the teacher and the served student differ
    contract: WholeJudgement | None  # the judgement of the artifact; None where no contract was asked for
    candidates: CandidateFacts | None  # None where no contract limits the costs
    where: Origin

    def to_json(self) -> dict[str, Any]:
        """The fields that were set, as plain JSON values."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)
