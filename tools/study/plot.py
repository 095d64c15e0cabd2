"""What each method keeps of full fine-tuning, task by task, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from kdc.pipeline.report.drawing import INK, SERIES, SOFT, svg
from kdc.tools.study.grid import Grid
from kdc.tools.study.summary import MethodSummary, columns

_MARKS = "os^D"


def kept_plot(grid: Grid, summaries: Sequence[MethodSummary]) -> str:
    """Dots of each method's score in percent of its family's fully fine-tuned teacher; missing scores leave gaps."""
    places = columns(grid.tasks)
    teachers = {summary.family: summary for summary in summaries if summary.method == "fft"}
    shares = {
        summary.label: [_share(summary, teachers[summary.family], place) for place in places]
        for summary in summaries
        if summary.method != "fft"
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.8 / max(1, len(shares))
        for number, (label, values) in enumerate(shares.items()):
            shift = (number - (len(shares) - 1) / 2) * width
            points = [(place + shift, value) for place, value in enumerate(values) if value is not None]
            mark, colour = _MARKS[number // len(SERIES) % len(_MARKS)], SERIES[number % len(SERIES)]
            axes.plot(
                [x for x, _ in points], [value for _, value in points], mark, color=colour, markersize=9, label=label
            )
            for x, value in points:
                axes.annotate(
                    f"{value:.0f}", (x, value), xytext=(0, 8), textcoords="offset points", ha="center", color=INK
                )
        axes.axhline(100, color=SOFT, linestyle="--")
        axes.margins(y=0.15)
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set_xticks(range(len(places)), places)
        axes.set_title("Kept of full fine-tuning")
        axes.set_ylabel("percent")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)

    words = "; ".join(
        f"{label}: " + ", ".join(f"{place} {_words(value)}" for place, value in zip(places, values, strict=True))
        for label, values in shares.items()
    )
    return svg(
        "kept", f"Percent of the fully fine-tuned teacher's score that each method keeps. {words}.", (9, 4), draw
    )


def _share(summary: MethodSummary, teacher: MethodSummary, place: str) -> float | None:
    score, base = summary.scores[place].mean, teacher.scores[place].mean
    return 100 * score / base if score is not None and base else None


def _words(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f}"
