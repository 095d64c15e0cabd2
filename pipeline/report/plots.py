"""The report's plots: facts in, inline SVG out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from kdc.artifact.contract.judgement import Judgement, missed_costs
from kdc.artifact.contract.terms import Costs
from kdc.pipeline.config.student_kinds import kind_of
from kdc.pipeline.quality.feasibility import costs_of
from kdc.pipeline.report import facts
from kdc.pipeline.report.drawing import FIRST, INK, PAPER, SECOND, SOFT, series, styled, svg, write

_NAMES = {
    "teacher_fp32": "teacher fp32",
    "teacher_int8": "teacher int8",
    "teacher_lora": "LoRA teacher",
    "student_without_kd": "without KD",
    "student_without_kd_by_score": "without KD, by score",
    "student_without_kd_by_loss": "without KD, by loss",
    "student_without_unlabeled": "without unlabelled texts",
}
_MOST_LABELS = 9  # with drawn thresholds
_MOST_NUMBERS = 12  # most classes of a matrix with counts
_AREA = 12.0  # points squared per MB
_LEAST_AREA = 30.0
_FAR = 4.0  # times the slowest latency; farther limits are words
_MANY = 12  # more names need seven lines


@styled
def curves(training: Mapping[str, facts.TrainingFacts], metric: str) -> str:
    """Marks show kept steps."""
    figure, words = Figure(figsize=(9, 3.4)), []
    left, right = figure.subplots(1, 2)
    for number, (name, curve) in enumerate(training.items()):
        (colour, mark), label, best = series(number), _NAMES.get(name, name), dict(curve.score)[curve.best_step]
        line = {"color": colour, "label": label, "linestyle": "-" if mark == series(0)[1] else "--"}
        left.plot(*zip(*curve.loss, strict=True), **line)
        right.plot(*zip(*curve.score, strict=True), **line)
        right.plot([curve.best_step], [best], mark, color=colour)
        words.append(f"{label} {best:.1f} at step {curve.best_step}")
    left.set(title="Training loss (with KD, the distillation loss)", xlabel="step", ylabel="loss")
    right.set(title=f"{metric} on the tuning set", xlabel="step", ylabel="points")
    right.legend()
    return svg(figure, "curves", f"Loss and {metric} over training steps. Kept: {', '.join(words)}.")


@styled
def trade_offs(models: Mapping[str, facts.ModelFacts], metric: str) -> str:
    figure, words = Figure(figsize=(9, 3.8)), list[str]()
    left, right = figure.subplots(1, 2)
    for name, model in models.items():
        if name == "student" or model.size_bytes is None:  # answers as the merged model does
            continue
        (colour, mark), label, score = series(len(words)), _NAMES.get(name, name), model.metrics[metric]
        latency, size_mb = model.latency_p50_ms, model.size_bytes / 1e6
        for axes, x in ((left, latency), (right, size_mb)):
            if x is not None:
                axes.plot([x, x], model.interval, color=colour, alpha=0.6)
                axes.plot([x], [score], mark, color=colour, label=label)
        words.append(f"{label} {score:.1f}, {f'{latency:.2f} ms, ' if latency else ''}{size_mb:.1f} MB")
    for axes in (left, right):
        axes.margins(x=0.1)
        axes.set_xlim(left=0)
    left.set(title="Against latency", xlabel="milliseconds for one row (p50)", ylabel=metric)
    right.set(title="Against size", xlabel="MB, model file and tokenizer", ylabel=metric)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return svg(figure, "trade-offs", f"{metric} against latency and size: {'; '.join(words)}.")


@styled
def confusion(counts: Mapping[str, facts.Matrix], labels: Sequence[str], served: str) -> str:
    teacher, student = counts["teacher"], counts["student"]
    width = 4.5 if len(labels) <= _MOST_NUMBERS else 5.5
    figure = Figure(figsize=(2 * width, width * 0.85))
    left, right = figure.subplots(1, 2)
    _draw_confusion(left, teacher, labels, FIRST)
    _draw_confusion(right, student, labels, SECOND)
    left.set_title("Teacher")
    right.set_title(f"Student, {served}")
    words = (
        f"Confusion matrices. Correct of {np.sum(teacher)} rows: teacher {np.trace(teacher)}, student "
        f"{np.trace(student)}."
    )
    return svg(figure, "confusion", words)


def _draw_confusion(axes: Axes, matrix: facts.Matrix, labels: Sequence[str], colour: str) -> None:
    classes = len(labels)
    for row, line in enumerate(matrix):
        for column, count in enumerate(line):
            share = count / max(1, sum(line))
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, alpha=share, edgecolor="none"))
            if classes <= _MOST_NUMBERS:
                ink = PAPER if share > 0.6 else INK
                axes.text(column + 0.5, row + 0.5, str(count), ha="center", va="center", color=ink)
    axes.set(xlim=(0, classes), ylim=(classes, 0), aspect="equal", xlabel="answer", ylabel="true label")
    axes.grid(visible=False)
    middles = np.arange(classes) + 0.5
    axes.set_xticks(middles, labels, rotation=0 if classes <= 3 else 90)
    axes.set_yticks(middles, labels)


@styled
def reliability(calibration: facts.CalibrationFacts) -> str:
    before, after = calibration.before, calibration.after
    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, part, title in ((left, before, "Without temperature"), (right, after, "As served")):
        rows = sum(one.rows for one in part.bins)
        axes.plot([0, 1], [0, 1], "--", color=SOFT)
        axes.plot([one.confidence for one in part.bins], [one.accuracy for one in part.bins], color=SECOND)
        for one in part.bins:
            size = 4 + 16 * (one.rows / rows) ** 0.5
            axes.plot([one.confidence], [one.accuracy], "o", color=SECOND, markersize=size, alpha=0.6)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.05))
        axes.set(title=f"{title}: ECE {100 * part.ece:.1f} %", xlabel="confidence", ylabel="accuracy")
    words = (
        f"Reliability: expected calibration error {100 * before.ece:.1f} % without temperature, "
        f"{100 * after.ece:.1f} % with {calibration.temperature:.2f}. Dots grow with their rows."
    )
    return svg(figure, "reliability", words)


@styled
def decisions(labels: Sequence[facts.DecisionFacts]) -> str:
    drawn, more = labels[:_MOST_LABELS], len(labels) - _MOST_LABELS
    columns = min(3, len(drawn))
    down = -(-len(drawn) // columns)
    figure = Figure(figsize=(9 if columns > 1 else 5, 0.6 + 2.6 * down))
    grid = figure.subplots(down, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(drawn) :]:
        axes.set_visible(False)
    for axes, label in zip(grid.flat, drawn, strict=False):
        curves = {"precision": label.precision, "recall": label.recall, "rows with the label": label.given}
        for number, (name, values) in enumerate(curves.items()):
            style = {"color": series(number)[0], "linestyle": ("-", "--", ":")[number], "label": name}
            axes.plot(label.thresholds, np.array(values, dtype=np.float64), **style)  # None is NaN, and not drawn
        axes.axvline(label.point.threshold, color=SOFT)
        if (rates := label.point.evaluation) is not None:
            for number, rate in enumerate((rates.precision, rates.recall)):
                axes.plot(2 * [label.point.threshold], (rate.low, rate.high), color=series(number)[0], linewidth=3)
        axes.set(title=f"{label.point.label}: {label.point.aim}", xlim=(0, 1), ylim=(0, 1.02))
    for axes in grid[-1]:
        axes.set_xlabel("threshold")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    chosen = ", ".join(f"{label.point.label} from {label.point.threshold:.3f}" for label in drawn)
    words = f"Precision, recall and share of rows over the threshold, on the evaluation rows. Chosen: {chosen}."
    words += f" {more} more labels are not drawn." if more > 0 else ""
    return svg(figure, "decisions", words)


@styled
def abstention(curves: facts.AbstentionFacts) -> str:
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots()
    for number, (name, curve) in enumerate((("teacher", curves.teacher), ("student, as served", curves.student))):
        axes.plot(*zip(*curve, strict=True), color=series(number)[0], linestyle=("--", "-")[number], label=name)
    chosen = curves.abstain.evaluation
    words = "Accuracy against the share of evaluation rows that are answered, most confident first."
    if chosen is not None and chosen.accuracy.value is not None and chosen.coverage.value is not None:
        share, accuracy, color = chosen.coverage, chosen.accuracy, series(1)[0]
        axes.plot([chosen.coverage.value] * 2, [accuracy.low, accuracy.high], color=color, linewidth=3)
        axes.plot([share.low, share.high], [chosen.accuracy.value] * 2, color=color, linewidth=3)
        words += f" Chosen, {curves.abstain.aim}: {share.text} % are answered, at {accuracy.text} % accuracy."
    axes.set(xlabel="share of rows that are answered", ylabel="accuracy", xlim=(0, 1.02))
    axes.legend(loc="lower left")
    return svg(figure, "abstention", words)


@styled
def cascade(both: facts.CascadeFacts, metric: str, *, teacher: facts.ModelFacts) -> str:
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    pair, shares = both.pair, [share for share, _ in both.curve]
    left.plot(shares, [score for _, score in both.curve], color=FIRST, label="both models")
    left.axhline(teacher.metrics[metric], color=SOFT, linestyle=":", label="teacher")
    seconds, alone = 1 / pair.rows_per_second, 1 / pair.second_rows_per_second
    first = seconds - pair.share * alone  # the student's seconds for a row
    right.plot(shares, [1 / (first + share * alone) for share in shares], color=FIRST, label="both models")
    right.axhline(pair.second_rows_per_second, color=SOFT, linestyle="--", label="the second model alone")
    for axes in (left, right):
        axes.axvline(both.share, color=SECOND, linestyle="-" if both.taken else ":")
        axes.set(xlabel="share of rows sent to the second model", xlim=(0, 1.02))
    left.set(title=f"{metric} on the evaluation rows", ylabel="points")
    right.set(title="Rows a second, estimated", ylabel="rows/s", yscale="log")
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    left.legend(loc="lower right")
    right.legend(loc="upper right")
    words = (
        f"A second model, {both.second}, for rows the student is unsure of: {100 * both.share:.0f} % of the "
        f"evaluation rows go to it; the pair scores {both.score:.1f} (the student alone {both.curve[0][1]:.1f}, the "
        f"second model alone {both.curve[-1][1]:.1f})."
    )
    return svg(figure, "cascade", words + ("" if both.taken else " It is not used, see the notes."))


@styled
def lengths(lengths: facts.LengthFacts) -> str:
    width, counts, cut = lengths.width, lengths.counts, lengths.cut
    figure = Figure(figsize=(9, 2.8))
    axes = figure.subplots()
    axes.bar(width * (np.arange(len(counts)) + 0.5), counts, width=0.9 * width, color=FIRST)
    axes.axvline(cut, color=SECOND)
    axes.annotate(f" cut at {cut}", (cut, 1), xycoords=("data", "axes fraction"), va="top", color=SECOND)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        title="Length of training rows",
        xlabel=f"tokens (the last bar: {width * (len(counts) - 1)} and more)",
        ylabel="rows",
    )
    words = f"Lengths of {sum(counts)} training rows: {lengths.truncated} are longer than {cut} tokens and are cut."
    return svg(figure, "lengths", words)


@styled
def pareto(candidates: facts.CandidateFacts, judgement: Judgement, *, teacher: float, artifact: float) -> str:
    limits, points = judgement.contract.limits, _points(candidates, judgement)
    scores = {trial.student: trial.score for trial in candidates.trials}
    tried, untried = points.keys() & scores.keys(), points.keys() - scores.keys()
    slowest = max([judgement.costs.latency_ms, *(costs.latency_ms for _, costs in points.values())])
    heights = [*scores.values(), teacher, artifact, teacher - (limits.max_drop or 0.0)]
    lines = 7 if len(untried) > _MANY else 4  # their names overlap
    floor = min(heights) - 0.09 * lines * max(1.0, max(heights) - min(heights))
    figure = Figure(figsize=(9, 5))
    axes = figure.subplots()
    for students, most_lines, ink in ((tried, 2, INK), (untried, lines, SOFT)):
        for rank, student in enumerate(sorted(students, key=lambda student: (points[student][1].latency_ms, student))):
            costs = points[student][1]
            place = (costs.latency_ms, scores.get(student, floor))
            colour = FIRST if student in candidates.kept else SOFT
            axes.scatter(*place, s=_area(costs), facecolors="none", edgecolors=colour)
            write(axes, short_name(student), place, above=9 + 13 * (rank % most_lines), colour=ink)
    place = (judgement.costs.latency_ms, artifact)
    axes.scatter(*place, s=_area(judgement.costs), color=SECOND)
    write(axes, f"the artifact, {judgement.variant}", place, above=-22)  # students' names are above
    axes.axhline(teacher, color=SOFT, linestyle=":")
    axes.annotate("teacher", (1, teacher), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=SOFT)
    if limits.max_latency_ms is not None:
        _draw_latency_limit(axes, limits.max_latency_ms, slowest)
    if limits.max_drop is not None:
        axes.axhline(teacher - limits.max_drop, color=SECOND, linestyle="--")
    axes.set_xlim(left=0)
    axes.margins(y=0.2)
    at = judgement.contract.at
    axes.set(
        title="What could keep the contract (dashed); area is size",
        xlabel=f"milliseconds, p{at.percentile:g} of a call with {at.batch} row{'s' * (at.batch > 1)}",
        ylabel="points (at the bottom: not trained)" if untried else "points",
    )
    return svg(figure, "pareto", _words(points, scores, candidates.chosen, judgement))


def _points(candidates: facts.CandidateFacts, judgement: Judgement) -> dict[str, tuple[str, Costs]]:
    def rank(measured: tuple[str, Costs]) -> tuple[int, float]:
        return len(missed_costs(judgement.contract, measured[1])), measured[1].latency_ms

    by_student = {student: costs_of(measured).items() for student, measured in candidates.measured.items()}
    return {student: min(measured, key=rank) for student, measured in by_student.items() if measured}


def _area(costs: Costs) -> float:
    return max(_LEAST_AREA, _AREA * costs.size_mb)


def _draw_latency_limit(axes: Axes, limit: float, slowest: float) -> None:
    if limit <= _FAR * slowest:
        axes.axvline(limit, color=SECOND, linestyle="--")
        return
    axes.set_xlim(right=1.25 * slowest)  # a far line would squeeze the points
    corner: Any = {"xycoords": "axes fraction", "xytext": (-4, 4), "textcoords": "offset points"}
    axes.annotate(f"the limit is at {limit:g} ms", (1, 0), **corner, ha="right", va="bottom", color=SECOND)


def short_name(student: str) -> str:
    return kind_of(student).short_name(student)


def _words(
    points: Mapping[str, tuple[str, Costs]], scores: Mapping[str, float], chosen: str, judgement: Judgement
) -> str:
    parts = []
    for student, (name, costs) in points.items():
        words = f"{short_name(student)} in {name}: {costs.latency_ms:.2f} ms, {costs.size_mb:.1f} MB"
        if student in scores:
            words += f", {scores[student]:.1f} points{' after a short training' * kind_of(student).is_trained}"
        parts.append(words)
    return f"Candidates for the contract: {'; '.join(parts)}. Chosen: {short_name(chosen)}; {judgement.verdict}."
