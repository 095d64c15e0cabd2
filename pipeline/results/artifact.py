"""Results of the stages `export` to `package`."""

from typing import Annotated

from pydantic import Field, PlainSerializer

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.decision import LabelSets
from kdc.pipeline.results.base import Result, Scores, StageResult, Table

# Defaults are written too, as in the manifest.
WholeJudgement = Annotated[Judgement, PlainSerializer(lambda judgement: judgement.model_dump(mode="json"))]


class ExportResult(StageResult):
    STAGE = "export"

    exporter: str
    fp32_parity: float  # largest logit difference to the merged model
    # largest probability difference to fp32; text: why it is missing; None: not requested
    fp16_parity: float | str | None = None


class Int8Measurement(Result):
    """On the tuning set. The entry "fp32" has only timings."""

    static: bool = False  # fixed activation ranges
    graph: str = ""  # equal for candidates that do the same work
    nodes: dict[str, int] = Field(default_factory=dict)  # layer counts
    failed: str | None = None
    tune: Scores | None = None
    label_changes: int = 0  # rows with another label than fp32
    parity: float | None = None  # largest probability difference to fp32
    mean_difference: float = 0.0  # of probability
    # Rows alone against batches of 16, for winners only.
    max_probability_difference: float | None = None
    label_flips: int = 0  # rows
    compared_rows: int = 0
    batch_invariant: bool | None = None
    latency_p50_ms: float | None = None  # of one row
    latency_p95_ms: float | None = None
    latency_mean_ms: float | None = None
    rows_per_second: float = 0.0  # in batches of 32
    latency_against_fp32: float = 0.0  # ratio of median latencies


class Int8Choice(StageResult):
    chosen: str | None = None  # that a CPU loads; None: fp32
    winner: str | None = None  # whose file is kept, chosen or not
    int8: bool  # whether a file is kept
    note: str = ""


class QuantizeResult(Int8Choice):
    STAGE = "quantize"

    temperature: float  # divides logits; 1 after stage `merge` divided the weights
    candidates: dict[str, Int8Measurement] = Field(default_factory=dict)  # also "fp32"; empty without int8


class UncutResult(StageResult):
    STAGE = "uncut"

    fp32_parity: float | None = None  # largest logit difference to torch; None: no graph
    int8: str | None = None  # candidate whose file is kept
    note: str = ""  # why there is no graph, or no good int8


class Pair(Result):
    """A cascade on the tuning set."""

    first: str  # student's variant
    second: str  # number format
    temperature: float  # divides the second model's logits
    answered_from: float  # student's least confidence to answer
    share: float  # of rows for the second model
    score: float
    first_score: float
    second_score: float
    wanted: float  # least score
    rows_per_second: float  # estimated from each model alone
    second_rows_per_second: float


class CascadeResult(StageResult):
    STAGE = "cascade"

    second: str = ""
    source: str = ""  # "teacher", or SHA-256 of an artifact's manifest
    best: Pair | None = None
    variants: dict[str, Pair] = Field(default_factory=dict)  # empty without gain
    note: str = ""


class EvaluateResult(StageResult):
    STAGE = "evaluate"

    table: Table
    notes: tuple[str, ...] = ()
    rows: dict[str, int] = Field(default_factory=dict)  # by evaluation split


class PackageResult(StageResult):
    STAGE = "package"

    artifact: str  # relative to the run directory
    sha256: str  # of the manifest
    providers: dict[str, str]  # variants by provider
    table: Table  # from stage `evaluate`
    metric: str  # that decides
    contract: WholeJudgement | None = None  # None: not requested
    sets: LabelSets | None = None
    notes: tuple[str, ...] = ()
    example: str = ""  # `kdc try`'s arguments, shell-quoted

    @property
    def failed(self) -> bool:
        return self.contract is not None and self.contract.verdict == "fail"
