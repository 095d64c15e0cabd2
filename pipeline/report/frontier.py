"""The page of a frontier: `frontier.html` (one file, no outside requests), `frontier.json` and `frontier.md`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from kdc.artifact.inspection import BASELINES, labels_in_words, share
from kdc.common.files import write_whole
from kdc.common.tables import number
from kdc.pipeline.packaging.markup import render
from kdc.pipeline.quality.frontier import COSTS, FrontierFacts, Point, front
from kdc.pipeline.report.drawing import FIRST, INK, SECOND, SOFT, styled, svg, write
from kdc.pipeline.report.plots import short_name
from kdc.pipeline.rundir.directory import FRONTIER

_WIDE = 100  # a cost's range, above which ticks are powers of ten


def write_frontier(root: Path, facts: FrontierFacts) -> None:
    """The facts come last, as the sign that all files exist."""
    folder = Path(__file__).parent
    values = {"facts": facts, "title": f"{facts.task}: the whole curve", "rows": table(facts), "floors": _floors(facts)}
    values["labels"] = labels_in_words(facts.labels)
    write_whole(root / f"{FRONTIER}.md", render(folder / f"{FRONTIER}.md", **values))
    write_whole(root / f"{FRONTIER}.html", render(folder / f"{FRONTIER}.html", figure=curve(facts), **values))
    write_whole(root / f"{FRONTIER}.json", json.dumps(facts.model_dump(mode="json"), indent=2, ensure_ascii=False))


def read_facts(root: Path) -> FrontierFacts | None:
    """None without a page."""
    try:
        facts = FrontierFacts.model_validate_json((root / f"{FRONTIER}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if (root / f"{FRONTIER}.html").exists() else None


def table(facts: FrontierFacts) -> list[list[str]]:
    """Best first, after a header."""
    fronts = {name: front(facts.points, cost) for name, (cost, _) in COSTS.items()}
    costs = ["p50 ms", "p95 ms", "rows/s", "MB", "training s"]
    lines = [["student", facts.metric, "interval", "kept %", "to the teacher", *costs, "on the front of"]]
    for point in _by_score(facts):
        low, high = point.difference_interval
        best = [name for name, members in fronts.items() if point in members]
        lines.append(
            [
                f"{point.student}, {point.variant}",
                number(point.score),
                f"{point.interval[0]:.1f} to {point.interval[1]:.1f}",
                number(share(point.score, facts.teacher)),
                f"{point.difference:+.1f} ({low:+.1f} to {high:+.1f})",
                number(point.latency_p50_ms, 2),
                number(point.latency_p95_ms, 2),
                number(point.rows_per_second, 0),
                number(point.size_mb),
                number(point.training_seconds, 0),
                ", ".join(best) or "-",
            ]
        )
    return lines


def _by_score(facts: FrontierFacts) -> list[Point]:
    return sorted(facts.points, key=lambda point: (-point.score, point.latency_p50_ms))


def _floors(facts: FrontierFacts) -> str:
    scores = [f"{BASELINES[name]} {score:.1f}" for name, score in facts.floors.items()]
    return ", ".join([f"teacher {facts.teacher:.1f}", *scores])


@styled
def curve(facts: FrontierFacts) -> str:
    """The score against each cost (logarithmic). Lines join the front."""
    figure = Figure(figsize=(9, 8.2))
    parts = figure.subplot_mosaic([["latency", "names"], ["throughput", "size"]], height_ratios=[1.15, 1])
    by_score = _by_score(facts)
    ranks = {point.student: rank for rank, point in enumerate(by_score, 1)}
    for name, (cost, words) in COSTS.items():
        _draw(parts[name], facts, cost, words, ranks)
        parts[name].set_title(f"Against {name}")
    names = parts["names"]
    names.set_axis_off()
    step = min(0.075, 0.97 / len(by_score))
    for rank, point in enumerate(by_score, 1):
        name = f"{short_name(point.student)}, {point.variant}"
        for along, side, text in ((0.12, "right", str(rank)), (0.15, "left", name)):
            written = names.text(along, 1 - step * rank, text, ha=side, transform=names.transAxes, color=INK)
            written.set_in_layout(False)
    words = "; ".join(
        f"{short_name(point.student)} in {point.variant} {point.score:.1f} points, {point.latency_p50_ms:.2f} ms, "
        f"{point.rows_per_second:.0f} rows a second, {point.size_mb:.1f} MB"
        for point in facts.points
    )
    return svg(figure, "curve", f"{facts.metric} against latency, throughput and size: {words}. {_floors(facts)}.")


def _draw(
    axes: Axes, facts: FrontierFacts, cost: Callable[[Point], float], words: str, ranks: Mapping[str, int]
) -> None:
    best = front(facts.points, cost)
    axes.plot([abs(cost(point)) for point in best], [point.score for point in best], color=SECOND, alpha=0.5)
    for order, point in enumerate(sorted(facts.points, key=cost)):
        place = (abs(cost(point)), point.score)
        colour = SECOND if point in best else FIRST
        axes.plot([place[0]] * 2, point.interval, color=colour, alpha=0.6)
        axes.plot(*place, "o", color=colour)
        aside = 10 if order % 2 else -10  # neighbours would overlap
        write(axes, str(ranks[point.student]), place, above=-4, aside=aside)
    scores = {"teacher": facts.teacher} | facts.floors
    # Scores may be equal, so the probe's name is moved. The majority is too far below.
    for name, along in (("teacher", 0.0), ("tfidf", 0.0), ("probe", 0.3)):
        if name in scores:
            axes.axhline(scores[name], color=SOFT, linestyle=":")
            words_at: Any = {"xycoords": ("axes fraction", "data"), "va": "bottom", "color": SOFT, "fontsize": 8}
            axes.annotate(BASELINES.get(name, name), (along, scores[name]), **words_at)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.1)
    costs = [abs(cost(point)) for point in facts.points]
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if max(costs) > _WIDE * min(costs) else (1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=words, ylabel=facts.metric)
