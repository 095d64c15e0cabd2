"""What the last stages and a whole run hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_serializer

from kdc.artifact.contract.judgement import Judgement
from kdc.pipeline.results.base import Result, StageResult, Table


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
    rows: dict[str, int] = Field(default_factory=dict)


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
    settings: dict[str, Any] = Field(default_factory=dict)
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
