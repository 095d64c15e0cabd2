"""The report's plots: plain numbers in, inline SVG out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from kdc.pipeline.report.drawing import FIRST, INK, PAPER, SECOND, SERIES, SOFT, svg

_MARKS = "osD^"
_MOST_NUMBERS = 12  # classes up to which a confusion matrix shows its counts


def curves(training: Mapping[str, Mapping[str, Any]], metric: str, names: Mapping[str, str]) -> str:
    """Loss and the tuning slice's metric over the steps of each training; the step that was kept is a dot."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for place, (name, run) in enumerate(training.items()):
            colour = SERIES[place % len(SERIES)]
            left.plot(*_columns(run["loss"]), color=colour, label=names.get(name, name))
            steps, scores = _columns(run["score"])
            right.plot(steps, scores, color=colour, label=names.get(name, name))
            right.plot([run["best_step"]], [dict(zip(steps, scores, strict=True))[run["best_step"]]], "o", color=colour)
        _label(left, "Training loss (with KD, the distillation loss)", "step", "loss")
        _label(right, f"{metric} on the tuning slice", "step", "points")
        right.legend()

    best = ", ".join(
        f"{names.get(name, name)} {dict(map(tuple, run['score']))[run['best_step']]:.1f} at step {run['best_step']}"
        for name, run in training.items()
    )
    return svg("curves", f"Loss and {metric} over training steps. Kept: {best}.", (9, 3.4), draw)


def trade_offs(models: Mapping[str, Mapping[str, Any]], metric: str, names: Mapping[str, str]) -> str:
    """Metric with its interval against latency, and against size."""

    def panel(axes: Axes, key: str, scale: float, title: str, unit: str) -> None:
        for place, (name, model) in enumerate(shown.items()):
            if model.get(key) is None:
                continue
            x, score = model[key] * scale, model["metrics"][metric]
            colour, mark = SERIES[place % len(SERIES)], _MARKS[place // len(SERIES) % len(_MARKS)]
            axes.plot([x, x], model["interval"], color=colour, alpha=0.6)
            axes.plot([x], [score], mark, color=colour, label=names.get(name, name))
        axes.margins(x=0.1)
        axes.set_xlim(left=0)
        _label(axes, title, unit, metric)

    # Adapters and merged weights answer the same: one mark is enough.
    shown = {name: model for name, model in models.items() if name != "student" and "size_bytes" in model}

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        panel(left, "latency_p50_ms", 1, "Against latency", "milliseconds for one row (p50)")
        panel(right, "size_bytes", 1e-6, "Against size", "MB, model file and tokenizer")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=7)

    told = "; ".join(
        f"{names.get(name, name)} {model['metrics'][metric]:.1f}, "
        + (f"{model['latency_p50_ms']:.2f} ms, " if model.get("latency_p50_ms") else "")
        + f"{model['size_bytes'] / 1e6:.1f} MB"
        for name, model in shown.items()
    )
    return svg("trade-offs", f"{metric} against latency and size: {told}.", (9, 3.8), draw)


def confusion(counts: Mapping[str, list[list[int]]], labels: Sequence[str], served: str) -> str:
    """Confusion matrices of teacher and student side by side; shade is the share of the true label's rows."""
    classes = len(labels)
    width = 4.5 if classes <= _MOST_NUMBERS else 5.5

    def panel(axes: Axes, matrix: list[list[int]], title: str, colour: str) -> None:
        for row, line in enumerate(matrix):
            for column, count in enumerate(line):
                share = count / max(1, sum(line))
                axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, alpha=share, edgecolor="none"))
                if classes <= _MOST_NUMBERS:
                    ink = PAPER if share > 0.6 else INK
                    axes.text(column + 0.5, row + 0.5, str(count), ha="center", va="center", color=ink)
        axes.set(xlim=(0, classes), ylim=(classes, 0), aspect="equal")
        axes.grid(visible=False)
        places = [place + 0.5 for place in range(classes)]
        axes.set_xticks(places, labels, rotation=0 if classes <= 3 else 90)
        axes.set_yticks(places, labels)
        _label(axes, title, "answer", "true label")

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        panel(left, counts["teacher"], "Teacher", FIRST)
        panel(right, counts["student"], f"Student, {served}", SECOND)

    right = {name: sum(matrix[place][place] for place in range(classes)) for name, matrix in counts.items()}
    total = sum(map(sum, counts["teacher"]))
    told = (
        f"Confusion matrices. Of {total} rows the teacher has {right['teacher']} right, the student {right['student']}."
    )
    return svg("confusion", told, (2 * width, width * 0.85), draw)


def reliability(calibration: Mapping[str, Any]) -> str:
    """Accuracy by confidence, without and with the temperature; the diagonal is a confidence that is honest."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, key, title in ((left, "before", "Without temperature"), (right, "after", "As served")):
            bins = calibration[key]["bins"]
            rows = sum(each["rows"] for each in bins)
            axes.plot([0, 1], [0, 1], "--", color=SOFT)
            axes.plot([each["confidence"] for each in bins], [each["accuracy"] for each in bins], color=SECOND)
            for each in bins:
                size = 4 + 16 * (each["rows"] / rows) ** 0.5
                axes.plot([each["confidence"]], [each["accuracy"]], "o", color=SECOND, markersize=size, alpha=0.6)
            axes.set(xlim=(0, 1.02), ylim=(0, 1.05))
            _label(axes, f"{title}: ECE {100 * calibration[key]['ece']:.1f} %", "confidence", "share that is right")

    told = (
        f"Reliability: expected calibration error {100 * calibration['before']['ece']:.1f} % without temperature, "
        f"{100 * calibration['after']['ece']:.1f} % with {calibration['temperature']:.2f}. Dots grow with their rows."
    )
    return svg("reliability", told, (9, 3.6), draw)


def lengths(found: Mapping[str, Any]) -> str:
    """Training rows by tokens before the cut, and the cut."""
    width, counts, cut = found["width"], found["counts"], found["cut"]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(counts))
        axes.bar([width * (place + 0.5) for place in places], counts, width=0.9 * width, color=FIRST)
        axes.axvline(cut, color=SECOND)
        axes.annotate(f" cut at {cut}", (cut, 1), xycoords=("data", "axes fraction"), va="top", color=SECOND)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _label(axes, "Length of training rows", f"tokens (the last bar: {width * (len(counts) - 1)} and more)", "rows")

    told = f"Lengths of {sum(counts)} training rows: {found['truncated']} are longer than {cut} tokens and are cut."
    return svg("lengths", told, (9, 2.8), draw)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _columns(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]
