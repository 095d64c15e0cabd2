"""What each stage hands on: one frozen model a stage, whose JSON is kept in the stage's folder under "metrics".

A stage returns its model, `rundir/folders.py` writes it, and `Run.result(StudentResult)` reads it again. Fields that
older versions of kdc wrote and that are no longer known are ignored, so that their run directories can still be read.

Scores are points (0 to 100; correlations -100 to 100), by the name of the metric. Times are seconds unless the name
says milliseconds, sizes are bytes unless the name says megabytes.
"""

from kdc.pipeline.results.base import Points, Result, Scores, StageResult, Table
from kdc.pipeline.results.data import DataReport, DataResult, Lengths, SplitCounts, TokenCounts
from kdc.pipeline.results.graphs import ExportResult, Int8Choice, Int8Measurement, QuantizeResult
from kdc.pipeline.results.models import (
    ControlsResult,
    History,
    MergeResult,
    ModelResult,
    StudentResult,
    TargetsResult,
    TeacherResult,
    TrainingSummary,
)
from kdc.pipeline.results.run import CompressResult, EvaluateResult, PackageResult, StageRecord
from kdc.pipeline.results.students import CandidatesResult, NotMeasured, SearchResult, StudentCosts, Trial

__all__ = [
    "CandidatesResult",
    "CompressResult",
    "ControlsResult",
    "DataReport",
    "DataResult",
    "EvaluateResult",
    "ExportResult",
    "History",
    "Int8Choice",
    "Int8Measurement",
    "Lengths",
    "MergeResult",
    "ModelResult",
    "NotMeasured",
    "PackageResult",
    "Points",
    "QuantizeResult",
    "Result",
    "Scores",
    "SearchResult",
    "SplitCounts",
    "StageRecord",
    "StageResult",
    "StudentCosts",
    "StudentResult",
    "Table",
    "TargetsResult",
    "TeacherResult",
    "TokenCounts",
    "TrainingSummary",
    "Trial",
]
