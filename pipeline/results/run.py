"""What the last stages and a whole run hand on."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_serializer

from kdc.artifact.contract.judgement import Judgement
from kdc.pipeline.results.base import Result, StageResult, Table


class EvaluateResult(StageResult):
    """Stage `evaluate`."""

    STAGE = "evaluate"

    table: Table  # model ("teacher", "student", "merged", "fp32", "int8", ...) to its metrics and costs
    notes: tuple[str, ...] = ()  # sentences on what could not be measured
    rows: dict[str, int] = Field(default_factory=dict)  # of each evaluation split


class PackageResult(StageResult):
    """Stage `package`."""

    STAGE = "package"

    artifact: str  # the artifact's folder, seen from the run directory
    sha256: str  # of its manifest
    providers: dict[str, str]  # execution provider to the variant that it loads
    table: Table  # of stage `evaluate`
    metric: str  # the deciding one
    contract: Judgement | None = None  # the contract, and how the artifact keeps it; None where nothing was asked
    notes: tuple[str, ...] = ()  # sentences for the person who watches
    example: str = ""  # arguments for `kdc try`, quoted for a shell

    @property
    def failed(self) -> bool:
        """Whether the artifact does not keep its contract: it is then kept apart, and nothing points at it."""
        return self.contract is not None and self.contract.verdict == "fail"

    @field_serializer("contract")
    def _whole_contract(self, contract: Judgement | None) -> Any:
        return None if contract is None else contract.model_dump(mode="json")  # as in the manifest: with its defaults


class StageRecord(Result):
    """A stage's `stage.json`, and whether it was skipped this time."""

    skipped: bool  # whether it was done before
    stage: str  # its name
    fingerprint: str  # of its settings and of the stages that it builds on
    settings: dict[str, Any] = Field(default_factory=dict)  # what it depends on, beside those stages
    metrics: dict[str, Any]  # the JSON of its result; `Run.result` gives it typed
    seconds: float = 0.0  # seconds that the stage took when it was done
    peak_memory_bytes: int | None = None  # most resident bytes of the process during the stage


class CompressResult(Result):
    """What a whole run comes to: what `kdc compress --json` prints."""

    out: Path  # the run directory
    # the stages that were run or skipped, by name; empty in a process that only helped another one train
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    artifact: Path | None = None  # the artifact's folder; None where the run stopped before the last stage
    result: PackageResult | None = None  # what the last stage handed on: metrics, contract, notes; None likewise
    report: Path | None = None  # the page about the run; None likewise, and where none was written

    @property
    def metrics(self) -> Table:
        """The evaluation's table, model -> column -> value; empty where the run stopped before the last stage."""
        return {} if self.result is None else self.result.table

    @property
    def verdict(self) -> Literal["pass", "fail", "not shown"] | None:
        """Whether the contract is kept; None where there is none, or the run stopped before it was judged."""
        contract = None if self.result is None else self.result.contract
        return None if contract is None else contract.verdict
