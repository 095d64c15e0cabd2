"""The report's plots: facts in, inline SVG out. `names` are short names of models; others are called as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from kdc.pipeline.report.drawing import FIRST, INK, PAPER, SECOND, SERIES, SOFT, svg
from kdc.pipeline.report.facts import CalibrationFacts, ConfusionFacts, LengthFacts, Matrix, ModelFacts, TrainingFacts

_MARKS = "osD^"
_MOST_NUMBERS = 12  # classes up to which a confusion matrix shows its counts


def curves(training: Mapping[str, TrainingFacts], metric: str, names: Mapping[str, str]) -> str:
    """Loss and the tuning slice's metric over the steps of each training; a dot marks the step that was kept."""
    best = {name: dict(curve.score)[curve.best_step] for name, curve in training.items()}

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for place, (name, curve) in enumerate(training.items()):
            colour, label = SERIES[place % len(SERIES)], names.get(name, name)
            left.plot(*_columns(curve.loss), color=colour, label=label)
            right.plot(*_columns(curve.score), color=colour, label=label)
            right.plot([curve.best_step], [best[name]], "o", color=colour)
        _label(left, "Training loss (with KD, the distillation loss)", "step", "loss")
        _label(right, f"{metric} on the tuning slice", "step", "points")
        right.legend()

    words = ", ".join(
        f"{names.get(name, name)} {best[name]:.1f} at step {curve.best_step}" for name, curve in training.items()
    )
    return svg("curves", f"Loss and {metric} over training steps. Kept: {words}.", (9, 3.4), draw)


def trade_offs(models: Mapping[str, ModelFacts], metric: str, names: Mapping[str, str]) -> str:
    """The metric with its interval against latency, and against size."""
    # Adapters and merged weights answer the same: one mark is enough.
    shown = {
        name: (model, model.size_bytes / 1e6)
        for name, model in models.items()
        if name != "student" and model.size_bytes is not None
    }

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for place, (name, (model, size_mb)) in enumerate(shown.items()):
            colour, mark = SERIES[place % len(SERIES)], _MARKS[place // len(SERIES) % len(_MARKS)]
            for axes, x in ((left, model.latency_p50_ms), (right, size_mb)):
                if x is not None:
                    axes.plot([x, x], model.interval, color=colour, alpha=0.6)
                    axes.plot([x], [model.metrics[metric]], mark, color=colour, label=names.get(name, name))
        for axes in (left, right):
            axes.margins(x=0.1)
            axes.set_xlim(left=0)
        _label(left, "Against latency", "milliseconds for one row (p50)", metric)
        _label(right, "Against size", "MB, model file and tokenizer", metric)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=7)

    words = "; ".join(
        f"{names.get(name, name)} {model.metrics[metric]:.1f}, "
        + (f"{model.latency_p50_ms:.2f} ms, " if model.latency_p50_ms else "")
        + f"{size_mb:.1f} MB"
        for name, (model, size_mb) in shown.items()
    )
    return svg("trade-offs", f"{metric} against latency and size: {words}.", (9, 3.8), draw)


def confusion(counts: ConfusionFacts, labels: Sequence[str], served: str) -> str:
    """Confusion matrices of teacher and student side by side; shade is the share of the true label's rows."""
    classes = len(labels)
    width = 4.5 if classes <= _MOST_NUMBERS else 5.5

    def panel(axes: Axes, matrix: Matrix, title: str, colour: str) -> None:
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
        panel(left, counts.teacher, "Teacher", FIRST)
        panel(right, counts.student, f"Student, {served}", SECOND)

    right = [sum(matrix[place][place] for place in range(classes)) for matrix in (counts.teacher, counts.student)]
    words = (
        f"Confusion matrices. Of {sum(map(sum, counts.teacher))} rows the teacher has {right[0]} right, the student "
        f"{right[1]}."
    )
    return svg("confusion", words, (2 * width, width * 0.85), draw)


def reliability(calibration: CalibrationFacts) -> str:
    """Accuracy by confidence, without and with the temperature; the diagonal is where confidence is honest."""
    before, after = calibration.before, calibration.after

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, shown, title in ((left, before, "Without temperature"), (right, after, "As served")):
            rows = sum(each.rows for each in shown.bins)
            axes.plot([0, 1], [0, 1], "--", color=SOFT)
            axes.plot([each.confidence for each in shown.bins], [each.accuracy for each in shown.bins], color=SECOND)
            for each in shown.bins:
                size = 4 + 16 * (each.rows / rows) ** 0.5
                axes.plot([each.confidence], [each.accuracy], "o", color=SECOND, markersize=size, alpha=0.6)
            axes.set(xlim=(0, 1.02), ylim=(0, 1.05))
            _label(axes, f"{title}: ECE {100 * shown.ece:.1f} %", "confidence", "share that is right")

    words = (
        f"Reliability: expected calibration error {100 * before.ece:.1f} % without temperature, "
        f"{100 * after.ece:.1f} % with {calibration.temperature:.2f}. Dots grow with their rows."
    )
    return svg("reliability", words, (9, 3.6), draw)


def lengths(lengths: LengthFacts) -> str:
    """Training rows by tokens before the cut, and the cut."""
    width, counts, cut = lengths.width, lengths.counts, lengths.cut

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(counts))
        axes.bar([width * (place + 0.5) for place in places], counts, width=0.9 * width, color=FIRST)
        axes.axvline(cut, color=SECOND)
        axes.annotate(f" cut at {cut}", (cut, 1), xycoords=("data", "axes fraction"), va="top", color=SECOND)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _label(axes, "Length of training rows", f"tokens (the last bar: {width * (len(counts) - 1)} and more)", "rows")

    words = f"Lengths of {sum(counts)} training rows: {lengths.truncated} are longer than {cut} tokens and are cut."
    return svg("lengths", words, (9, 2.8), draw)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
