"""What is known of students before the full training: stages `candidates` and `search`."""

from __future__ import annotations

from kdc.artifact.contract.terms import Costs
from kdc.pipeline.results.base import Result, StageResult


class NotMeasured(Result):
    """A precision of an untrained student that could not be had.

    Attributes:
        failed: why.
    """

    failed: str


class StudentCosts(Result):
    """One student that could come out, measured untrained.

    Attributes:
        parameters: of its model.
        variants: precision ("fp32", "int8", "fp16") to what it costs, or why that is not known.
    """

    parameters: int
    variants: dict[str, Costs | NotMeasured]


class CandidatesResult(StageResult):
    """Stage `candidates`.

    Attributes:
        candidates: student (an id, a path, or "layers:0,1,2") to what it costs, in the order of measuring.
    """

    STAGE = "candidates"

    candidates: dict[str, StudentCosts]


class Trial(Result):
    """One short training of the search.

    Attributes:
        student: what was trained: an id, a path, or "layers:0,1,2".
        steps: for how long.
        parameters: of its model.
        score: the deciding metric on the tuning slice.
        seconds: that it took.
    """

    student: str
    steps: int
    parameters: int
    score: float
    seconds: float


class SearchResult(StageResult):
    """Stage `search`.

    Attributes:
        student: what gets the full training.
        trials: the short trainings, in order.
    """

    STAGE = "search"

    student: str
    trials: tuple[Trial, ...] = ()
