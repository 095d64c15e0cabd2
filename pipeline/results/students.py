"""What is known of students before the full training: stages `candidates` and `search`."""

from kdc.artifact.contract.terms import Costs
from kdc.pipeline.results.base import Result, StageResult


class NotMeasured(Result):
    """A precision of an untrained student that could not be had."""

    failed: str  # why


class StudentCosts(Result):
    """One student that could come out, measured untrained."""

    parameters: int  # of its model
    # precision ("fp32", "int8", "fp16") to what it costs, or why that is not known
    variants: dict[str, Costs | NotMeasured]


class CandidatesResult(StageResult):
    """Stage `candidates`."""

    STAGE = "candidates"

    # student (an id, a path, or "layers:0,1,2") to what it costs, in the order of measuring
    candidates: dict[str, StudentCosts]


class Trial(Result):
    """One short training of the search."""

    student: str  # what was trained: an id, a path, or "layers:0,1,2"
    steps: int  # updates of the weights
    parameters: int  # of its model
    score: float  # the deciding metric on the tuning slice
    seconds: float  # seconds that the training took


class SearchResult(StageResult):
    """Stage `search`."""

    STAGE = "search"

    student: str  # what gets the full training
    trials: tuple[Trial, ...] = ()  # the short trainings, in order
