"""What stages `export` and `quantize` hand on."""

from pydantic import Field

from kdc.pipeline.results.base import Result, Scores, StageResult


class ExportResult(StageResult):
    """Stage `export`."""

    STAGE = "export"

    exporter: str  # what made the graph
    fp32_parity: float  # largest difference of a logit to the merged model
    # largest difference of a probability to fp32; a sentence that says why there is no fp16 graph; None where none was
    # asked for
    fp16_parity: float | str | None = None

    @property
    def fp16_difference(self) -> float | None:
        """`fp16_parity` where there is an fp16 graph, else None."""
        return None if isinstance(self.fp16_parity, str) else self.fp16_parity


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
    latency_p50_ms: float | None = None  # of one row at a time
    latency_p95_ms: float | None = None  # of one row at a time
    rows_per_second: float = 0.0  # in batches of 32
    latency_against_fp32: float = 0.0  # its median latency divided by that of fp32


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
    # by name, and the timings of "fp32"; empty where int8 was not asked for
    candidates: dict[str, Int8Measurement] = Field(default_factory=dict)

    @property
    def best(self) -> Int8Measurement | None:
        """What was measured of the candidate whose file is kept."""
        return None if self.winner is None else self.candidates[self.winner]
