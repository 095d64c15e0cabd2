"""A frontier: what each of several students keeps and what it costs, and which of them no other one beats."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from kdc.pipeline.quality.intervals import Ends
from kdc.pipeline.results.base import Result


class Point(Result):
    """One artifact on the curve, in the precision that it serves in."""

    student: str  # as --student names it
    artifact: str  # its folder, relative to the first run directory
    sha256: str  # of its manifest
    variant: str  # "fp32", "int8", "cascade", ...
    score: float  # points of the deciding metric on the evaluation rows
    interval: Ends  # of that
    difference: float  # points above the teacher
    difference_interval: Ends  # of that, paired by row
    latency_p50_ms: float  # milliseconds of a call with one row, tokenising included
    latency_p95_ms: float
    latency_interval: Ends | None  # of the p50, by rounds
    rows_per_second: float  # in batches of 32
    rows_interval: Ends | None  # of that, by rounds
    size_mb: float  # of the ONNX file and tokenizer.json, in MB
    parameters: int | None
    training_seconds: float | None  # None for what was not trained


class Left(Result):
    """A student that did not become a point."""

    student: str
    why: str


class FrontierFacts(Result):
    """The points, and what they are compared with. All intervals of scores hold at once with 95 %."""

    schema_version: Literal[1] = 1
    task: str
    metric: str  # the one that decides
    rows: int  # of the evaluation
    groups: int  # that are independent
    teacher: float  # points of the fine-tuned teacher in torch
    floors: dict[str, float]  # points of the baselines, by name
    points: tuple[Point, ...]
    left: tuple[Left, ...]
    cpu: str
    threads: int  # of a forward pass
    device: str  # "cpu" or "cuda"

    def is_of(self, sha256s: Sequence[str], left: Sequence[Left], where: Mapping[str, Any]) -> bool:
        """Whether these are the facts of these artifacts, measured there."""
        same_place = all(getattr(self, name) == value for name, value in where.items())
        return same_place and [point.sha256 for point in self.points] == list(sha256s) and self.left == tuple(left)


# What a point may be the best at: title, its cost (less is better), and how the cost is written.
COSTS: dict[str, tuple[Callable[[Point], float], str]] = {
    "latency": (lambda point: point.latency_p50_ms, "milliseconds for one row (p50)"),
    "throughput": (lambda point: -point.rows_per_second, "rows a second, in batches of 32"),
    "size": (lambda point: point.size_mb, "MB, model file and tokenizer"),
}


def front(points: Sequence[Point], cost: Callable[[Point], float]) -> list[Point]:
    """The points that no other one beats: none has at least their score at no more cost, and is better in one of the
    two. The cheapest stands first."""

    def is_beaten(point: Point) -> bool:
        return any(
            other.score >= point.score
            and cost(other) <= cost(point)
            and (other.score, -cost(other)) != (point.score, -cost(point))
            for other in points
        )

    return sorted((point for point in points if not is_beaten(point)), key=cost)
