"""What each stage hands on: one frozen model a stage, whose JSON is kept in the stage's folder under "metrics".

A stage returns its model, `rundir/folders.py` writes it, and `Run.result(StudentResult)` reads it again. Fields that
older versions of kdc wrote and that are no longer known are ignored, so that their run directories can still be read.

Scores are points (0 to 100; correlations -100 to 100), by the name of the metric. Times are seconds unless the name
says milliseconds, sizes are bytes unless the name says megabytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_serializer,
    model_validator,
)

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Costs
from kdc.artifact.manifest import Scalar

Scores = dict[str, float]
Table = dict[str, dict[str, Scalar]]  # of the evaluation, as in the manifest: model -> column -> value
Points = list[tuple[int, float]]  # of a curve: the step, and the value there


class Result(BaseModel):
    """A part of what a stage hands on. Its JSON holds the fields that were set."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """The fields that were set, as plain JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


class StageResult(Result):
    """What one stage hands on.

    Attributes:
        headline: one line for the person who watches.
    """

    STAGE: ClassVar[str]  # the stage that returns it, whose folder holds it

    headline: str = ""

    @property
    def line(self) -> str:
        """What the progress output says of the finished stage; "" where there is nothing to say."""
        return self.headline


class Lengths(Result):
    """A histogram of rows by their length in tokens, before they are cut.

    Attributes:
        width: tokens that one bin spans.
        counts: rows by bin: bin i holds those of i * width tokens and more; the last one all that are longer still.
    """

    width: int
    counts: tuple[int, ...]


class TokenCounts(Result):
    """One tokenised split.

    Attributes:
        rows: how many there are.
        tokens: of all rows together, after the cut.
        truncated: rows that were longer than the cut.
        lengths: rows by length before the cut.
    """

    rows: int
    tokens: int
    truncated: int
    lengths: Lengths


class SplitCounts(Result):
    """One split of the rows.

    Attributes:
        rows: how many there are.
        labels: rows by label; only for classification with labels.
    """

    rows: int
    labels: dict[str, int] | None = None


class DataReport(Result):
    """What was read and how it was split; also written to `data/report.json`.

    Attributes:
        kind: what the label column holds.
        splits: by name.
        held_out: training rows that became the evaluation split, because no evaluation rows were given.
        unused_train_rows: training rows that no split holds (`data.max_train_rows`).
        duplicates: counts of rows whose text stands elsewhere too, by where.
        skipped: rows left out by split, because the published file is known to be broken there.
        warnings: sentences for the person who watches.
    """

    kind: str = ""
    splits: dict[str, SplitCounts] = {}
    held_out: int = 0
    unused_train_rows: int = 0
    duplicates: dict[str, int] = {}
    skipped: dict[str, int] = {}
    warnings: tuple[str, ...] = ()


class DataResult(StageResult):
    """Stage `data`. A role is whose tokenizer was used: "teacher", "teacher-2", ..., "student".

    Attributes:
        max_length: tokens after which a row is cut, by role.
        tokens: what was tokenised, by role and split.
        report: what was read.
    """

    STAGE = "data"

    max_length: dict[str, int]
    tokens: dict[str, dict[str, TokenCounts]]
    report: DataReport = DataReport()


class NotMeasured(Result):
    """A precision of an untrained student that could not be had.

    Attributes:
        failed: why.
    """

    failed: str


class StudentCosts(Result):
    """One student that could come out, measured untrained.

    Attributes:
        parameters: of its model.
        variants: precision ("fp32", "int8", "fp16") to what it costs, or why that is not known.
    """

    parameters: int
    variants: dict[str, Costs | NotMeasured]


class CandidatesResult(StageResult):
    """Stage `candidates`.

    Attributes:
        candidates: student (an id, a path, or "layers:0,1,2") to what it costs, in the order of measuring.
    """

    STAGE = "candidates"

    candidates: dict[str, StudentCosts]


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


class Trial(Result):
    """One short training of the search.

    Attributes:
        student: what was trained: an id, a path, or "layers:0,1,2".
        steps: for how long.
        parameters: of its model.
        score: the deciding metric on the tuning slice.
        seconds: that it took.
    """

    student: str
    steps: int
    parameters: int
    score: float
    seconds: float


class SearchResult(StageResult):
    """Stage `search`.

    Attributes:
        student: what gets the full training.
        trials: the short trainings, in order.
    """

    STAGE = "search"

    student: str
    trials: tuple[Trial, ...] = ()


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


class ExportResult(StageResult):
    """Stage `export`.

    Attributes:
        exporter: what made the graph.
        fp32_parity: largest difference of a logit to the merged model.
        fp16_parity: largest difference of a probability to fp32; a sentence that says why there is no fp16 graph;
            None where none was asked for.
    """

    STAGE = "export"

    exporter: str
    fp32_parity: float
    fp16_parity: float | str | None = None

    @property
    def fp16_difference(self) -> float | None:
        """`fp16_parity` where there is an fp16 graph, else None."""
        return None if isinstance(self.fp16_parity, str) else self.fp16_parity


class Int8Measurement(Result):
    """One int8 candidate on the tuning slice. fp32, to which they are compared, has only the timings.

    Attributes:
        static: whether its activation ranges are fixed; dynamic ones make a row's answer depend on its neighbours.
        graph: which layers are computed how; candidates with the same text do the same work.
        nodes: counts of layers, as `kdc.pipeline.graphs.int8.quantise` returns them.
        failed: why it could not be made or run; then nothing else was measured.
        tune: metrics on the tuning slice.
        label_changes: rows whose label is not fp32's.
        parity: largest difference of a probability to fp32.
        mean_difference: mean difference of a probability to fp32.
        max_probability_difference: largest difference of a row's probability alone and in a batch of 16.
        label_flips: rows whose label differs between the two.
        compared_rows: rows that were compared alone and in a batch.
        batch_invariant: whether these differences count as none.
        latency_p50_ms, latency_p95_ms: of one row at a time.
        rows_per_second: in batches of 32.
        latency_against_fp32: its median latency divided by that of fp32.
    """

    static: bool = False
    graph: str = ""
    nodes: dict[str, int] = {}
    failed: str | None = None
    tune: Scores | None = None
    label_changes: int = 0
    parity: float | None = None
    mean_difference: float = 0.0
    max_probability_difference: float | None = None
    label_flips: int = 0
    compared_rows: int = 0
    batch_invariant: bool = False
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    rows_per_second: float = 0.0
    latency_against_fp32: float = 0.0


class Int8Choice(StageResult):
    """Which int8 candidate is kept.

    Attributes:
        chosen: the candidate that a CPU loads; None: it loads fp32.
        winner: the candidate whose file is kept for people who want it, chosen or not; None: there is none.
        int8: whether there is such a file.
        note: what a person should know of the choice; "" where all is well.
    """

    chosen: str | None = None
    winner: str | None = None
    int8: bool
    note: str = ""


class QuantizeResult(Int8Choice):
    """Stage `quantize`.

    Attributes:
        temperature: logits are divided by it before softmax or sigmoid; fitted on the tuning slice.
        candidates: by name, and the timings of "fp32"; empty where int8 was not asked for.
    """

    STAGE = "quantize"

    temperature: float
    candidates: dict[str, Int8Measurement] = {}

    @property
    def best(self) -> Int8Measurement | None:
        """What was measured of the candidate whose file is kept."""
        return None if self.winner is None else self.candidates[self.winner]


class ControlsResult(StageResult):
    """Stage `controls`; neither model where they were not asked for.

    Attributes:
        student_without_kd: the same student trained on the labels alone.
        teacher_lora: the teacher fine-tuned through adapters.
    """

    STAGE = "controls"

    student_without_kd: ModelResult | None = None
    teacher_lora: ModelResult | None = None


class EvaluateResult(StageResult):
    """Stage `evaluate`.

    Attributes:
        table: model ("teacher", "student", "merged", "fp32", "int8", ...) to its metrics and costs.
        notes: sentences on what could not be measured.
        rows: of each evaluation split.
    """

    STAGE = "evaluate"

    table: Table
    notes: tuple[str, ...] = ()
    rows: dict[str, int] = {}


class PackageResult(StageResult):
    """Stage `package`.

    Attributes:
        artifact: the artifact's folder, seen from the run directory.
        sha256: of its manifest.
        providers: execution provider to the variant that it loads.
        table: of stage `evaluate`.
        metric: the deciding one.
        contract: the contract, and how the artifact keeps it; None where nothing was asked.
        notes: sentences for the person who watches.
        example: arguments for `kdc try`, quoted for a shell.
    """

    STAGE = "package"

    artifact: str
    sha256: str
    providers: dict[str, str]
    table: Table
    metric: str
    contract: Judgement | None = None
    notes: tuple[str, ...] = ()
    example: str = ""

    @property
    def failed(self) -> bool:
        """Whether the artifact does not keep its contract: it is then kept apart, and nothing points at it."""
        return self.contract is not None and self.contract.verdict == "fail"

    @field_serializer("contract")
    def _whole_contract(self, contract: Judgement | None) -> Any:
        return None if contract is None else contract.model_dump(mode="json")  # as in the manifest: with its defaults


class StageRecord(Result):
    """A stage's `stage.json`, and whether it was skipped this time.

    Attributes:
        skipped: whether it was done before.
        stage: its name.
        fingerprint: of its settings and of the stages that it builds on.
        settings: what it depends on, beside those stages.
        metrics: the JSON of its result; `Run.result` gives it typed.
        seconds: that it took, when it was done.
        peak_memory_bytes: of the process meanwhile.
    """

    skipped: bool
    stage: str
    fingerprint: str
    settings: dict[str, Any] = {}
    metrics: dict[str, Any]
    seconds: float = 0.0
    peak_memory_bytes: int | None = None


class CompressResult(Result):
    """What a whole run comes to: what `kdc compress --json` prints.

    Attributes:
        out: the run directory.
        stages: the stages that were run or skipped, by name; empty in a process that only helped another one train.
        artifact: the artifact's folder; None where the run stopped before the last stage.
        result: what the last stage handed on: metrics, contract, notes; None likewise.
        report: the page about the run; None likewise, and where none was written.
    """

    out: Path
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    artifact: Path | None = None
    result: PackageResult | None = None
    report: Path | None = None

    @property
    def metrics(self) -> Table:
        """The evaluation's table, model -> column -> value; empty where the run stopped before the last stage."""
        return {} if self.result is None else self.result.table

    @property
    def verdict(self) -> Literal["pass", "fail", "not shown"] | None:
        """Whether the contract is kept; None where there is none, or the run stopped before it was judged."""
        contract = None if self.result is None else self.result.contract
        return None if contract is None else contract.verdict
