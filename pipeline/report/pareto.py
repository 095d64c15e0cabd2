"""The Pareto picture: metric against latency, size as area, of all candidates that were measured for a contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from kdc.artifact.contract.decision import missed_costs
from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Costs
from kdc.pipeline.report.drawing import FIRST, INK, SECOND, SOFT, svg

_AREA = 12.0  # points squared a MB
_LEAST_AREA = 30.0
_FAR = 4.0  # a limit so many times the slowest candidate's latency is told, not drawn


def pareto(candidates: Mapping[str, Any], judgement: Judgement, *, teacher: float, artifact: float) -> str:
    """Tried students (hollow: after a short training, on the tuning slice), untrained ones (on the axis: their metric
    is not known), the artifact (filled, on the evaluation rows), and the contract as lines.

    Args:
        candidates: as the report's facts have them.
        judgement: of the artifact.
        teacher, artifact: scores on the evaluation rows, in points.
    """
    limits, at = judgement.contract.limits, judgement.contract.at
    points = {student: _cheapest(found, judgement) for student, found in candidates["measured"].items()}
    tried = {trial["student"]: trial["score"] for trial in candidates["trials"]}
    heights = [*tried.values(), teacher, artifact, teacher - (limits.max_drop or 0.0)]
    latencies = [judgement.costs.latency_ms, *(costs.latency_ms for _, costs in points.values() if costs is not None)]
    floor = min(heights) - 0.15 * max(1.0, max(heights) - min(heights))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        measured = sorted((costs.latency_ms, student) for student, (_, costs) in points.items() if costs is not None)
        for rank, (_, student) in enumerate(measured):
            costs = points[student][1]
            assert costs is not None
            area = max(_LEAST_AREA, _AREA * costs.size_mb)
            known = student in tried
            colour = FIRST if student in candidates["kept"] else SOFT
            axes.scatter([costs.latency_ms], [tried.get(student, floor)], s=area, facecolors="none", edgecolors=colour)
            place = (costs.latency_ms, tried.get(student, floor))
            axes.annotate(
                _short(student),
                place,
                xytext=(0, 9 + 13 * (rank % 2)),
                textcoords="offset points",
                ha="center",
                color=INK if known else SOFT,
            )
        area = max(_LEAST_AREA, _AREA * judgement.costs.size_mb)
        axes.scatter([judgement.costs.latency_ms], [artifact], s=area, color=SECOND)
        axes.annotate(
            f"the artifact, {judgement.variant}",
            (judgement.costs.latency_ms, artifact),
            xytext=(0, -20),
            textcoords="offset points",
            ha="center",
            color=INK,
        )
        axes.axhline(teacher, color=SOFT, linestyle=":")
        axes.annotate("teacher", (1, teacher), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=SOFT)
        limit = limits.max_latency_ms
        if limit is not None and limit <= _FAR * max(latencies):
            axes.axvline(limit, color=SECOND, linestyle="--")
        elif limit is not None:  # drawn, it would press all points against the axis
            axes.set_xlim(right=1.25 * max(latencies))
            axes.annotate(
                f"the limit is at {limit:g} ms",
                (1, 0),
                xycoords="axes fraction",
                xytext=(-4, 4),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=SECOND,
            )
        if limits.max_drop is not None:
            axes.axhline(teacher - limits.max_drop, color=SECOND, linestyle="--")
        axes.set_xlim(left=0)
        axes.margins(y=0.2)
        axes.set_title("What could keep the contract (dashed); area is size")
        axes.set_xlabel(f"milliseconds, p{at.percentile:g} of a call with {at.batch} row{'s' * (at.batch > 1)}")
        axes.set_ylabel("points" if points.keys() <= tried.keys() else "points (at the bottom: not trained)")

    return svg("pareto", _told(points, tried, candidates["chosen"], judgement), (9, 4), draw)


def _cheapest(found: Mapping[str, Any], judgement: Judgement) -> tuple[str, Costs | None]:
    """The precision with the fewest misses, then the least latency."""
    made = {name: Costs(**costs) for name, costs in found["variants"].items() if "failed" not in costs}
    if not made:
        return "", None
    name = min(made, key=lambda each: (len(missed_costs(judgement.contract, made[each])), made[each].latency_ms))
    return name, made[name]


def _short(student: str) -> str:
    """A cut by its depth, a checkpoint by its name."""
    if not student.startswith("layers:"):
        return student.rsplit("/", 1)[-1]
    depth = student.count(",") + 1
    return f"{depth} layer{'s' * (depth > 1)}"


def _told(
    points: Mapping[str, tuple[str, Costs | None]], tried: Mapping[str, float], chosen: str, judgement: Judgement
) -> str:
    parts = [
        f"{_short(student)} in {name}: {costs.latency_ms:.2f} ms, {costs.size_mb:.1f} MB"
        + (f", {tried[student]:.1f} points after a short training" if student in tried else "")
        for student, (name, costs) in points.items()
        if costs is not None
    ]
    return f"Candidates for the contract: {'; '.join(parts)}. Chosen: {_short(chosen)}; {judgement.verdict}."
