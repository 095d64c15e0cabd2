"""The frontier: students that no other beats in score and cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from kdc.pipeline.quality.intervals import Ends
from kdc.pipeline.results.base import Result


class Point(Result):
    student: str  # as --student names it
    artifact: str  # folder, relative to the first run directory
    sha256: str  # of its manifest
    variant: str  # "fp32", "int8", "cascade", ...
    score: float  # points on the evaluation rows
    interval: Ends  # of `score`
    difference: float  # points above the teacher
    difference_interval: Ends  # of `difference`, paired by row
    latency_p50_ms: float  # one row, tokenising included
    latency_p95_ms: float
    latency_interval: Ends | None  # of the p50 over rounds
    rows_per_second: float  # in batches of 32
    rows_interval: Ends | None
    size_mb: float  # ONNX file and tokenizer.json
    parameters: int | None
    training_seconds: float | None  # None if not trained


class Left(Result):
    student: str
    why: str


class FrontierFacts(Result):
    """The intervals of all scores and differences hold jointly, with 95 % confidence."""

    schema_version: Literal[1] = 1
    task: str
    metric: str  # of `score`
    labels: str | None = None  # see `Lineage`
    rows: int  # evaluation rows
    groups: int  # independent groups of rows
    teacher: float  # points, in torch
    floors: dict[str, float]  # points of baselines, by name
    points: tuple[Point, ...]
    left: tuple[Left, ...]  # students without a point
    cpu: str
    threads: int  # of a forward pass
    device: str  # "cpu" or "cuda"

    def is_of(self, sha256s: Sequence[str], left: Sequence[Left], where: Mapping[str, Any]) -> bool:
        same_place = all(getattr(self, name) == value for name, value in where.items())
        return same_place and [point.sha256 for point in self.points] == list(sha256s) and self.left == tuple(left)


# By name. Less is better.
COSTS: dict[str, tuple[Callable[[Point], float], str]] = {
    "latency": (lambda point: point.latency_p50_ms, "milliseconds for one row (p50)"),
    "throughput": (lambda point: -point.rows_per_second, "rows a second, in batches of 32"),
    "size": (lambda point: point.size_mb, "MB, model file and tokenizer"),
}


def front(points: Sequence[Point], cost: Callable[[Point], float]) -> list[Point]:
    """The points that no other beats, cheapest first."""

    def is_beaten(point: Point) -> bool:
        return any(
            other.score >= point.score
            and cost(other) <= cost(point)
            and (other.score, -cost(other)) != (point.score, -cost(point))
            for other in points
        )

    return sorted((point for point in points if not is_beaten(point)), key=cost)
