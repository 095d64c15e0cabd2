"""What can be asked of an artifact, under which conditions, and what is measured of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["pass", "fail", "not shown"]
Evidence = Literal["interval", "point"]
LONGEST = 8192  # tokens of a row
EXIT_CODES: dict[str, int] = {"pass": 0, "fail": 3, "not shown": 4}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limits(Section):
    """What must hold; None asks for nothing.

    Attributes:
        max_latency_ms: of one call, under the conditions.
        min_rows_per_s: in batches of 32 rows.
        max_size_mb: of the ONNX file and `tokenizer.json`.
        max_drop: points of the task's metric that the student may be below its teacher.
    """

    max_latency_ms: float | None = Field(default=None, gt=0)
    min_rows_per_s: float | None = Field(default=None, gt=0)
    max_size_mb: float | None = Field(default=None, gt=0)
    max_drop: float | None = Field(default=None, ge=0, le=200)

    @property
    def any(self) -> bool:
        """Whether anything is asked."""
        return any(value is not None for value in self.model_dump().values())


class Conditions(Section):
    """Under which latency and rows a second are measured.

    Attributes:
        length: tokens of each row; None takes the evaluation rows as they are.
        batch: rows of a call whose latency counts.
        percentile: of the calls' latencies.
        threads: of a forward pass; None takes all that the process may use.
    """

    length: int | None = Field(default=None, ge=3, le=LONGEST)
    batch: int = Field(default=1, ge=1, le=4096)
    percentile: float = Field(default=95, gt=0, le=99.9)
    threads: int | None = Field(default=None, ge=1, le=1024)


class Contract(Section):
    """What is asked, and what counts as shown.

    Attributes:
        limits, at: what must hold, and under which conditions.
        evidence: "interval": the interval's lower end must keep to `max_drop`; "point": the difference itself.
        confidence: of the interval.
    """

    limits: Limits = Limits()
    at: Conditions = Conditions()
    evidence: Evidence = "interval"
    confidence: float = Field(default=0.95, gt=0.5, le=0.99)


class Costs(Section):
    """What was measured of one model under the conditions, in the units of `Limits`."""

    latency_ms: float = Field(gt=0)
    rows_per_s: float = Field(gt=0)
    size_mb: float = Field(gt=0)


class Quality(Section):
    """The student beside its teacher on the same evaluation rows.

    Attributes:
        metric: the task's deciding one.
        teacher, student: in points.
        difference: student minus teacher.
        interval: of the difference, at the contract's confidence: by a paired bootstrap, and at least as wide as so
            few rows can tell (`kdc.artifact.contract.decision.unseen`).
        rows: compared.
        rows_needed: about so many would show that the drop keeps to the limit, with a power of 80 %, if the true
            difference is the one that was found; None where no number would, or none is needed.
    """

    metric: str
    teacher: float
    student: float
    difference: float
    interval: tuple[float, float]
    rows: int
    rows_needed: int | None = None
