"""What stages `export` and `quantize` hand on."""

from __future__ import annotations

from pydantic import Field

from kdc.pipeline.results.base import Result, Scores, StageResult


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
    nodes: dict[str, int] = Field(default_factory=dict)
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
    candidates: dict[str, Int8Measurement] = Field(default_factory=dict)

    @property
    def best(self) -> Int8Measurement | None:
        """What was measured of the candidate whose file is kept."""
        return None if self.winner is None else self.candidates[self.winner]
