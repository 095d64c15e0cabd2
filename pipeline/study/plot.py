"""What each method keeps of full fine-tuning, task by task, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from pipeline.report.drawing import SERIES, SOFT, svg
from pipeline.study.grid import Grid
from pipeline.study.tables import Line, columns


def kept_plot(grid: Grid, found: Sequence[Line]) -> str:
    """Bars of each method's score in percent of its family's fully fine-tuned teacher; missing scores leave gaps."""
    places = columns(grid.tasks)
    whole = {line.family: line for line in found if line.method == "fft"}
    others = [line for line in found if line.method != "fft"]
    shares = {line.label: [_share(line, whole[line.family], place) for place in places] for line in others}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.8 / max(1, len(shares))
        for number, (label, values) in enumerate(shares.items()):
            at = [place + (number - (len(shares) - 1) / 2) * width for place in range(len(places))]
            heights = [value if value is not None else 0.0 for value in values]
            colour = SERIES[number % len(SERIES)]
            axes.bar(at, heights, width=0.9 * width, color=colour, alpha=1 - 0.4 * (number // len(SERIES)), label=label)
        drawn = [value for values in shares.values() for value in values if value is not None]
        axes.axhline(100, color=SOFT, linestyle="--")
        axes.set_ylim(bottom=max(0.0, min(drawn, default=100.0) - 5))
        axes.set_xticks(range(len(places)), places)
        axes.set_title("Kept of full fine-tuning")
        axes.set_ylabel("percent")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)

    told = "; ".join(
        f"{label}: " + ", ".join(f"{place} {_words(value)}" for place, value in zip(places, values, strict=True))
        for label, values in shares.items()
    )
    return svg("kept", f"Percent of the fully fine-tuned teacher's score that each method keeps. {told}.", (9, 4), draw)


def _share(line: Line, whole: Line, place: str) -> float | None:
    mine, theirs = line.scores[place].mean, whole.scores[place].mean
    return 100 * mine / theirs if mine is not None and theirs else None


def _words(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f}"
