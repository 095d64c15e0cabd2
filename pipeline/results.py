"""What each stage hands on: one frozen model a stage, whose JSON is kept in the stage's folder under "metrics".

A stage returns its model, `rundir/folders.py` writes it, and `Run.result(StudentResult)` reads it again. Fields that
older versions of kdc wrote and that are no longer known are ignored, so that their run directories can still be read.

Scores are points (0 to 100; correlations -100 to 100), by the name of the metric. Times are seconds unless the name
says milliseconds, sizes are bytes unless the name says megabytes.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_serializer, model_validator

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Costs
from kdc.artifact.decision import LabelSets
from kdc.artifact.manifest import Scalar

Scores = dict[str, float]
Table = dict[str, dict[str, Scalar]]  # evaluation: model -> column -> value, as in the manifest
Points = list[tuple[int, float]]  # points of a curve: the step, and the value there


class Result(BaseModel):
    """A part of what a stage hands on. Its JSON holds the fields that were set."""

    # A metric or a loss may be NaN; in JSON it stays one, since null could not be read as a number again.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), ser_json_inf_nan="constants")

    def to_json(self) -> dict[str, Any]:
        """The fields that were set, as plain JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


class StageResult(Result):
    """What one stage hands on."""

    STAGE: ClassVar[str]  # the stage that returns it, whose folder holds it

    headline: str = ""  # one line for the person who watches

    @property
    def line(self) -> str:
        """What the progress output says of the finished stage; "" where there is nothing to say."""
        return self.headline


class Lengths(Result):
    """A histogram of rows by their length in tokens, before they are cut."""

    width: int  # tokens that one bin spans
    # rows by bin: bin i holds those of i * width tokens and more; the last one all that are longer still
    counts: tuple[int, ...]


class TokenCounts(Result):
    """One tokenised split."""

    rows: int  # how many there are
    tokens: int  # tokens of all rows together, after the cut
    truncated: int  # rows that were longer than the cut
    lengths: Lengths  # rows by length before the cut


class SplitCounts(Result):
    """One split of the rows."""

    rows: int  # how many there are
    labels: dict[str, int] | None = None  # rows by label; only for classification with labels


class DataReport(Result):
    """What was read and how it was split; also written to `data/report.json`."""

    kind: str = ""  # what the label column holds
    splits: dict[str, SplitCounts] = Field(default_factory=dict)  # counts of rows, by split
    held_out: int = 0  # training rows that became the evaluation split, because no evaluation rows were given
    unused_train_rows: int = 0  # training rows that no split holds (`data.max_train_rows`)
    unused_unlabeled_rows: int = 0  # the same of the unlabelled ones (`data.max_unlabeled_rows`)
    duplicates: dict[str, int] = Field(default_factory=dict)  # counts of rows whose text stands elsewhere too, by where
    # rows left out by split, because the published file is known to be broken there
    skipped: dict[str, int] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # sentences for the person who watches


class DataResult(StageResult):
    """Stage `data`. A role is whose tokenizer was used: "teacher", "teacher-2", ..., "student"."""

    STAGE = "data"

    max_length: dict[str, int]  # tokens after which a row is cut, by role
    tokens: dict[str, dict[str, TokenCounts]]  # what was tokenised, by role and split
    report: DataReport = DataReport()  # what was read


class NotMeasured(Result):
    """A precision of an untrained student that could not be had."""

    failed: str  # why


class StudentCosts(Result):
    """One student that could come out, measured untrained."""

    parameters: int  # weights of its model
    # precision ("fp32", "int8", "fp16") to what it costs, or why that is not known
    variants: dict[str, Costs | NotMeasured]


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
    learning_rate: float | None = None  # the highest one; None: an older kdc kept none
    head_learning_rate: float | None = None  # the highest one of what starts at random; None: likewise
    precision: str | None = None  # number format: "fp32" or "bf16"; None: an older kdc kept none
    threads: int | None = None  # threads at its end; None on CUDA
    peak_memory_bytes: int | None = None  # most bytes taken on the device; None without CUDA


class ModelResult(StageResult):
    """One model as the tuning slice finds it, and how it was trained. In JSON the training's fields stand beside the
    others."""

    tune: Scores  # metrics on the tuning slice; the first one decides
    majority: Scores  # the same of the answer that is right most often (for regression: the mean)
    constant: bool  # whether the model gives every row the same answer
    # how likely such a score is for answers that know nothing of the labels, within (0, 1]; None: of an older kdc
    chance: float | None = None
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
    # what the logits of each of them are divided by before; None with one teacher, and of an older kdc
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
    student_without_kd_by_score: ModelResult | None = None  # the same, its step kept by the metric in place of its loss
    student_without_unlabeled: ModelResult | None = None  # the same student, distilled on the labelled rows alone
    teacher_lora: ModelResult | None = None  # the teacher fine-tuned through adapters


class ExportResult(StageResult):
    """Stage `export`."""

    STAGE = "export"

    exporter: str  # what made the graph
    fp32_parity: float  # largest difference of a logit to the merged model
    # largest difference of a probability to fp32; a sentence that says why there is no fp16 graph; None where none was
    # asked for
    fp16_parity: float | str | None = None


class Int8Measurement(Result):
    """One int8 candidate on the tuning slice. fp32, to which they are compared, has only the timings."""

    # whether its activation ranges are fixed; dynamic ones make a row's answer depend on its neighbours
    static: bool = False
    graph: str = ""  # which layers are computed how; candidates with the same text do the same work
    # counts of layers, as `kdc.pipeline.graphs.int8.quantise` returns them
    nodes: dict[str, int] = Field(default_factory=dict)
    failed: str | None = None  # why it could not be made or run; then nothing else was measured
    tune: Scores | None = None  # metrics on the tuning slice
    label_changes: int = 0  # rows whose label is not fp32's
    parity: float | None = None  # largest difference of a probability to fp32
    mean_difference: float = 0.0  # mean difference of a probability to fp32
    # largest difference of a row's probability alone and in a batch of 16
    max_probability_difference: float | None = None
    label_flips: int = 0  # rows whose label differs between the two
    compared_rows: int = 0  # rows that were compared alone and in a batch
    batch_invariant: bool = False  # whether these differences count as none
    latency_p50_ms: float | None = None  # median of calls with one row
    latency_p95_ms: float | None = None  # 95th percentile of calls with one row
    latency_mean_ms: float | None = None  # mean of the same
    rows_per_second: float = 0.0  # rows a second in batches of 32
    latency_against_fp32: float = 0.0  # median latency divided by that of fp32


class Int8Choice(StageResult):
    """Which int8 candidate is kept."""

    chosen: str | None = None  # the candidate that a CPU loads; None: it loads fp32
    # the candidate whose file is kept for people who want it, chosen or not; None: there is none
    winner: str | None = None
    int8: bool  # whether there is such a file
    note: str = ""  # what a person should know of the choice; "" where all is well


class QuantizeResult(Int8Choice):
    """Stage `quantize`."""

    STAGE = "quantize"

    temperature: float  # logits are divided by it before softmax or sigmoid; fitted on the tuning slice
    # measurements by name, and the timings of "fp32"; empty where int8 was not asked for
    candidates: dict[str, Int8Measurement] = Field(default_factory=dict)


class UncutResult(StageResult):
    """Stage `uncut`; empty where the student is the teacher itself."""

    STAGE = "uncut"

    fp32_parity: float | None = None  # largest difference of a logit to the teacher in torch; None: there is no graph
    int8: str | None = None  # the candidate whose file is kept; None: there is none
    note: str = ""  # why there is no graph, or no int8 that loses little enough


class Pair(Result):
    """A cascade as the tuning slice finds it."""

    first: str  # variant of the student
    second: str  # number format of the second model
    temperature: float  # the second model's logits are divided by it
    answered_from: float  # the student answers a row from this sureness on
    share: float  # of the rows, those that go on to the second model
    score: float  # of both together, points of the deciding metric
    first_score: float  # the student's alone
    second_score: float  # the second model's alone
    wanted: float  # the least score that was asked for
    rows_per_second: float  # of both together, by what each of them takes alone
    second_rows_per_second: float  # of the second model alone


class CascadeResult(StageResult):
    """Stage `cascade`; without variants where no second model gains anything."""

    STAGE = "cascade"

    second: str = ""  # what the second model is
    source: str = ""  # "teacher", or the SHA-256 of its artifact's manifest
    best: Pair | None = None  # what was found; None where there can be no second model
    variants: dict[str, Pair] = Field(default_factory=dict)  # by name, those that the artifact may have
    note: str = ""  # what came of it, for the person who watches


class EvaluateResult(StageResult):
    """Stage `evaluate`."""

    STAGE = "evaluate"

    table: Table  # model ("teacher", "student", "merged", "fp32", "int8", ...) to its metrics and costs
    notes: tuple[str, ...] = ()  # sentences on what could not be measured
    rows: dict[str, int] = Field(default_factory=dict)  # number of rows, by evaluation split


class PackageResult(StageResult):
    """Stage `package`."""

    STAGE = "package"

    artifact: str  # the artifact's folder, seen from the run directory
    sha256: str  # the manifest's
    providers: dict[str, str]  # execution provider to the variant that it loads
    table: Table  # the table of stage `evaluate`
    metric: str  # the deciding one
    contract: Judgement | None = None  # the contract, and how the artifact keeps it; None where nothing was asked
    sets: LabelSets | None = None  # sets of labels, with how they do on the evaluation rows; None where there are none
    notes: tuple[str, ...] = ()  # sentences for the person who watches
    example: str = ""  # arguments for `kdc try`, quoted for a shell

    @property
    def failed(self) -> bool:
        """Whether the artifact does not keep its contract: it is then kept apart, and nothing points at it."""
        return self.contract is not None and self.contract.verdict == "fail"

    @field_serializer("contract")
    def _whole_contract(self, contract: Judgement | None) -> Any:
        return None if contract is None else contract.model_dump(mode="json")  # as in the manifest: with its defaults
