"""A stage's record (`stage.json` in its folder), how it is read, and the results of a whole run and of a frontier."""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from kdc.common.errors import KdcError
from kdc.pipeline.quality.frontier import FrontierFacts
from kdc.pipeline.results.artifact import PackageResult
from kdc.pipeline.results.base import Result, StageResult, Table

RECORD = "stage.json"  # file in the folder of a stage that is done
AnyResult = TypeVar("AnyResult", bound=StageResult)


class StageRecord(Result):
    """A stage's `stage.json`, and whether it was skipped this time."""

    skipped: bool  # whether the stage was done before
    stage: str  # name of the stage
    fingerprint: str  # hash of its settings and of the stages that it builds on
    settings: dict[str, Any] = Field(default_factory=dict)  # what it depends on, beside the stages before it
    metrics: dict[str, Any]  # the JSON of its result; `Run.result` gives it typed
    seconds: float = 0.0  # seconds that the stage took when it was done
    peak_memory_bytes: int | None = None  # most resident bytes of the process during the stage


class CompressResult(Result):
    """A whole run, as `kdc compress --json` prints it."""

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


class FrontierResult(Result):
    """A frontier, as `kdc compress --frontier --json` prints it."""

    out: Path  # the first point's run directory
    page: Path
    facts: FrontierFacts

    def artifact(self, student: str) -> Path:
        """The folder of a point's artifact.

        Raises:
            KeyError: no point is of this student.
        """
        return self.out / {point.student: point.artifact for point in self.facts.points}[student]


def read_record(folder: Path) -> StageRecord | None:
    """The record of a stage that was done before; None if its folder is not complete.

    Raises:
        KdcError: the record is damaged.
    """
    file = folder / RECORD
    if not file.exists():
        return None
    try:
        return StageRecord(skipped=True, **json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise KdcError(
            "the record of a stage is damaged", given=file, remedy=f"remove the folder {folder} and run again"
        ) from error


def read_result(root: Path, kind: type[AnyResult]) -> AnyResult:
    """The result of a finished stage of a run directory, e.g. `read_result(root, StudentResult)`.

    Raises:
        KdcError: the stage's record is missing, damaged, or of another version.
    """
    record = read_record(root / kind.STAGE)
    if record is None:
        raise KdcError(
            f"stage {kind.STAGE} is not done in this run directory",
            given=root,
            remedy="run the same `kdc compress` again: it does what is missing",
        )
    try:
        return kind.model_validate(record.metrics)
    except ValueError as error:
        raise KdcError(
            "the record of a stage is damaged, or of another version of kdc",
            given=root / kind.STAGE / RECORD,
            remedy=f"run `kdc compress` again with --from {kind.STAGE}",
        ) from error
