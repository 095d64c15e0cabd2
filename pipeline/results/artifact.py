"""What the stages hand on that make the artifact of the trained student: `export` to `package`."""

from typing import Annotated

from pydantic import Field, PlainSerializer

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.decision import LabelSets
from kdc.pipeline.results.base import Result, Scores, StageResult, Table

# As in the manifest: with its defaults.
WholeJudgement = Annotated[Judgement, PlainSerializer(lambda judgement: judgement.model_dump(mode="json"))]


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
    # Rows alone and in batches of 16 are compared for the candidate that is to be kept; of others these four are unset.
    max_probability_difference: float | None = None  # the largest difference of a row's probability between the two
    label_flips: int = 0  # rows whose label differs between the two
    compared_rows: int = 0  # rows that were compared
    batch_invariant: bool | None = None  # whether these differences count as none
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
    contract: WholeJudgement | None = None  # the contract, and how the artifact keeps it; None where nothing was asked
    sets: LabelSets | None = None  # sets of labels, with how they do on the evaluation rows; None where there are none
    notes: tuple[str, ...] = ()  # sentences for the person who watches
    example: str = ""  # arguments for `kdc try`, quoted for a shell

    @property
    def failed(self) -> bool:
        """Whether the artifact does not keep its contract: it is then kept apart, and nothing points at it."""
        return self.contract is not None and self.contract.verdict == "fail"
