"""Results of a stage, a run and a frontier."""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from kdc.common.errors import KdcError
from kdc.pipeline.quality.frontier import FrontierFacts
from kdc.pipeline.results.artifact import PackageResult
from kdc.pipeline.results.base import Result, StageResult, Table

RECORD = "stage.json"
AnyResult = TypeVar("AnyResult", bound=StageResult)


class StageRecord(Result):
    """A stage's `stage.json`."""

    skipped: bool
    stage: str
    fingerprint: str  # of settings and earlier stages
    settings: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any]
    seconds: float = 0.0  # of the finishing execution
    peak_memory_bytes: int | None = None  # resident, of the process


class CompressResult(Result):
    """As `kdc compress --json` prints it."""

    out: Path  # the run directory
    stages: dict[str, StageRecord] = Field(default_factory=dict)  # by name; empty on a helper rank
    artifact: Path | None = None  # None if the run stopped early
    result: PackageResult | None = None  # None likewise
    report: Path | None = None  # None if not written

    @property
    def metrics(self) -> Table:
        """The evaluation table; empty if the run stopped early."""
        return {} if self.result is None else self.result.table

    @property
    def verdict(self) -> Literal["pass", "fail", "not shown"] | None:
        """None if not judged."""
        contract = None if self.result is None else self.result.contract
        return None if contract is None else contract.verdict


class FrontierResult(Result):
    """As `kdc compress --frontier --json` prints it."""

    out: Path  # the first point's run directory
    page: Path
    facts: FrontierFacts

    def artifact(self, student: str) -> Path:
        """`KeyError` if left out."""
        return self.out / {point.student: point.artifact for point in self.facts.points}[student]


def read_record(folder: Path) -> StageRecord | None:
    """None if the folder is not complete.

    Raises:
        KdcError: damaged record.
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
    """Raises KdcError if the record is missing, damaged, or of another version."""
    record = read_record(root / kind.STAGE)
    if record is None:
        raise KdcError(
            f"stage {kind.STAGE} is not done in this run directory",
            given=root,
            remedy="run the same `kdc compress` again: it resumes the run",
        )
    try:
        return kind.model_validate(record.metrics)
    except ValueError as error:
        raise KdcError(
            "the record of a stage is damaged, or of another version of kdc",
            given=root / kind.STAGE / RECORD,
            remedy=f"run `kdc compress` again with --from {kind.STAGE}",
        ) from error
