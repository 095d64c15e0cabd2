"""The Pareto picture: metric against latency, size as area, of all candidates that were measured for a contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdc.artifact.contract.decision import missed_costs
from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Costs
from kdc.pipeline.report.drawing import FIRST, INK, SECOND, SOFT, svg
from kdc.pipeline.report.facts import CandidateFacts

_AREA = 12.0  # points squared a MB
_LEAST_AREA = 30.0
_FAR = 4.0  # a limit of more than so many times the slowest candidate's latency is written, not drawn


def pareto(candidates: CandidateFacts, judgement: Judgement, *, teacher: float, artifact: float) -> str:
    """Draw the candidates, the artifact and the contract.

    Students that were tried are hollow and at their score on the tuning slice after a short training; untrained ones
    are at the bottom, because their metric is not known. The artifact is filled and at its score on the evaluation
    rows. The limits of the contract are lines.

    Args:
        candidates: the students.
        judgement: of the artifact.
        teacher, artifact: scores on the evaluation rows, in points.
    """
    limits = judgement.contract.limits
    points = _points(candidates, judgement)
    tried = {trial.student: trial.score for trial in candidates.trials}
    slowest = max([judgement.costs.latency_ms, *(costs.latency_ms for _, costs in points.values())])
    heights = [*tried.values(), teacher, artifact, teacher - (limits.max_drop or 0.0)]
    floor = min(heights) - 0.15 * max(1.0, max(heights) - min(heights))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        by_latency = sorted(points, key=lambda student: (points[student][1].latency_ms, student))
        for rank, student in enumerate(by_latency):
            costs = points[student][1]
            place = (costs.latency_ms, tried.get(student, floor))
            colour = FIRST if student in candidates.kept else SOFT
            axes.scatter(*place, s=_area(costs), facecolors="none", edgecolors=colour)
            _write(axes, _short(student), place, 9 + 13 * (rank % 2), INK if student in tried else SOFT)
        place = (judgement.costs.latency_ms, artifact)
        axes.scatter(*place, s=_area(judgement.costs), color=SECOND)
        _write(axes, f"the artifact, {judgement.variant}", place, -20, INK)
        axes.axhline(teacher, color=SOFT, linestyle=":")
        axes.annotate("teacher", (1, teacher), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=SOFT)
        if limits.max_latency_ms is not None:
            _draw_latency_limit(axes, limits.max_latency_ms, slowest)
        if limits.max_drop is not None:
            axes.axhline(teacher - limits.max_drop, color=SECOND, linestyle="--")
        axes.set_xlim(left=0)
        axes.margins(y=0.2)
        at = judgement.contract.at
        axes.set_title("What could keep the contract (dashed); area is size")
        axes.set_xlabel(f"milliseconds, p{at.percentile:g} of a call with {at.batch} row{'s' * (at.batch > 1)}")
        axes.set_ylabel("points" if points.keys() <= tried.keys() else "points (at the bottom: not trained)")

    return svg("pareto", _words(points, tried, candidates.chosen, judgement), (9, 4), draw)


def _points(candidates: CandidateFacts, judgement: Judgement) -> dict[str, tuple[str, Costs]]:
    """By student the precision with the fewest missed limits, of these the fastest, with its costs."""
    points = {}
    for student, measured in candidates.measured.items():
        precisions = [(name, costs) for name, costs in measured.variants.items() if isinstance(costs, Costs)]
        if precisions:
            points[student] = min(
                precisions, key=lambda each: (len(missed_costs(judgement.contract, each[1])), each[1].latency_ms)
            )
    return points


def _area(costs: Costs) -> float:
    return max(_LEAST_AREA, _AREA * costs.size_mb)


def _write(axes: Axes, text: str, place: tuple[float, float], above: float, colour: str) -> None:
    """Write a text so many points above a place."""
    how: dict[str, Any] = {"xytext": (0, above), "textcoords": "offset points", "ha": "center", "color": colour}
    axes.annotate(text, place, **how)


def _draw_latency_limit(axes: Axes, limit: float, slowest: float) -> None:
    if limit <= _FAR * slowest:
        axes.axvline(limit, color=SECOND, linestyle="--")
        return
    axes.set_xlim(right=1.25 * slowest)  # a line far away would press all points against the axis
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


def _short(student: str) -> str:
    """A short name: the depth of a student that is cut from the teacher, the last part of a checkpoint's name."""
    if not student.startswith("layers:"):
        return student.rsplit("/", 1)[-1]
    depth = student.count(",") + 1
    return f"{depth} layer{'s' * (depth > 1)}"


def _words(
    points: Mapping[str, tuple[str, Costs]], tried: Mapping[str, float], chosen: str, judgement: Judgement
) -> str:
    parts = [
        f"{_short(student)} in {name}: {costs.latency_ms:.2f} ms, {costs.size_mb:.1f} MB"
        + (f", {tried[student]:.1f} points after a short training" if student in tried else "")
        for student, (name, costs) in points.items()
    ]
    return f"Candidates for the contract: {'; '.join(parts)}. Chosen: {_short(chosen)}; {judgement.verdict}."
