"""The report's plots: facts in, inline SVG out."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from kdc.artifact.contract.judgement import Judgement, missed_costs
from kdc.artifact.contract.terms import Costs
from kdc.pipeline.config.student_kinds import kind_of
from kdc.pipeline.report.drawing import FIRST, INK, PAPER, SECOND, SOFT, series, styled, svg, write
from kdc.pipeline.report.facts import (
    AbstentionFacts,
    CalibrationFacts,
    CandidateFacts,
    CascadeFacts,
    DecisionFacts,
    LengthFacts,
    Matrix,
    ModelFacts,
    TrainingFacts,
)

_NAMES = {  # other models are called as they are
    "teacher_fp32": "teacher fp32",
    "teacher_int8": "teacher int8",
    "teacher_lora": "LoRA teacher",
    "student_without_kd": "without KD",
    "student_without_kd_by_score": "without KD, by score",
    "student_without_kd_by_loss": "without KD, by loss",
    "student_without_unlabeled": "without unlabelled texts",
}
_CURVES = {"precision": "precision", "recall": "recall", "given": "rows with the label"}
_MOST_LABELS = 9  # whose thresholds are drawn
_MOST_NUMBERS = 12  # classes up to which a confusion matrix shows its counts
_AREA = 12.0  # points squared a MB
_LEAST_AREA = 30.0
_FAR = 4.0  # a limit of more than so many times the slowest candidate's latency is written, not drawn
_MANY = 12  # untrained candidates whose names four rows of text hold


@styled
def curves(training: Mapping[str, TrainingFacts], metric: str) -> str:
    """Loss and the tuning slice's metric over the steps of each training; a mark shows the step that was kept."""
    best = {name: dict(curve.score)[curve.best_step] for name, curve in training.items()}
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    for place, (name, curve) in enumerate(training.items()):
        (colour, mark), label = series(place), _NAMES.get(name, name)
        line = {"color": colour, "label": label, "linestyle": "-" if mark == series(0)[1] else "--"}
        left.plot(*zip(*curve.loss, strict=True), **line)
        right.plot(*zip(*curve.score, strict=True), **line)
        right.plot([curve.best_step], [best[name]], mark, color=colour)
    left.set(title="Training loss (with KD, the distillation loss)", xlabel="step", ylabel="loss")
    right.set(title=f"{metric} on the tuning slice", xlabel="step", ylabel="points")
    right.legend()

    words = ", ".join(
        f"{_NAMES.get(name, name)} {best[name]:.1f} at step {curve.best_step}" for name, curve in training.items()
    )
    return svg(figure, "curves", f"Loss and {metric} over training steps. Kept: {words}.")


@styled
def trade_offs(models: Mapping[str, ModelFacts], metric: str) -> str:
    """The metric with its interval against latency, and against size."""
    # Adapters and merged weights answer the same: one mark is enough.
    shown = {
        name: (model, model.size_bytes / 1e6)
        for name, model in models.items()
        if name != "student" and model.size_bytes is not None
    }
    figure = Figure(figsize=(9, 3.8))
    left, right = figure.subplots(1, 2)
    for place, (name, (model, size_mb)) in enumerate(shown.items()):
        colour, mark = series(place)
        for axes, x in ((left, model.latency_p50_ms), (right, size_mb)):
            if x is not None:
                axes.plot([x, x], model.interval, color=colour, alpha=0.6)
                axes.plot([x], [model.metrics[metric]], mark, color=colour, label=_NAMES.get(name, name))
    for axes in (left, right):
        axes.margins(x=0.1)
        axes.set_xlim(left=0)
    left.set(title="Against latency", xlabel="milliseconds for one row (p50)", ylabel=metric)
    right.set(title="Against size", xlabel="MB, model file and tokenizer", ylabel=metric)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5)

    words = "; ".join(
        f"{_NAMES.get(name, name)} {model.metrics[metric]:.1f}, "
        + (f"{model.latency_p50_ms:.2f} ms, " if model.latency_p50_ms else "")
        + f"{size_mb:.1f} MB"
        for name, (model, size_mb) in shown.items()
    )
    return svg(figure, "trade-offs", f"{metric} against latency and size: {words}.")


@styled
def confusion(counts: Mapping[str, Matrix], labels: Sequence[str], served: str) -> str:
    """Confusion matrices of teacher and student side by side; shade is the share of the true label's rows."""
    teacher, student = counts["teacher"], counts["student"]
    width = 4.5 if len(labels) <= _MOST_NUMBERS else 5.5
    figure = Figure(figsize=(2 * width, width * 0.85))
    left, right = figure.subplots(1, 2)
    _draw_confusion(left, teacher, labels, FIRST)
    _draw_confusion(right, student, labels, SECOND)
    left.set_title("Teacher")
    right.set_title(f"Student, {served}")
    by_teacher, by_student = (
        sum(matrix[place][place] for place in range(len(labels))) for matrix in (teacher, student)
    )
    words = (
        f"Confusion matrices. Of {sum(map(sum, teacher))} rows the teacher has {by_teacher} right, the student "
        f"{by_student}."
    )
    return svg(figure, "confusion", words)


def _draw_confusion(axes: Axes, matrix: Matrix, labels: Sequence[str], colour: str) -> None:
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
    places = [place + 0.5 for place in range(classes)]
    axes.set_xticks(places, labels, rotation=0 if classes <= 3 else 90)
    axes.set_yticks(places, labels)


@styled
def reliability(calibration: CalibrationFacts) -> str:
    """Accuracy by confidence, without and with the temperature; the diagonal is where confidence is honest."""
    before, after = calibration.before, calibration.after
    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, shown, title in ((left, before, "Without temperature"), (right, after, "As served")):
        rows = sum(each.rows for each in shown.bins)
        axes.plot([0, 1], [0, 1], "--", color=SOFT)
        axes.plot([each.confidence for each in shown.bins], [each.accuracy for each in shown.bins], color=SECOND)
        for each in shown.bins:
            size = 4 + 16 * (each.rows / rows) ** 0.5
            axes.plot([each.confidence], [each.accuracy], "o", color=SECOND, markersize=size, alpha=0.6)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.05))
        axes.set(title=f"{title}: ECE {100 * shown.ece:.1f} %", xlabel="confidence", ylabel="share that is right")

    words = (
        f"Reliability: expected calibration error {100 * before.ece:.1f} % without temperature, "
        f"{100 * after.ece:.1f} % with {calibration.temperature:.2f}. Dots grow with their rows."
    )
    return svg(figure, "reliability", words)


@styled
def decisions(facts: Sequence[DecisionFacts]) -> str:
    """Precision, recall and share of rows over the threshold; a line at the chosen one, with intervals."""
    shown = facts[:_MOST_LABELS]
    columns = min(3, len(shown))
    down = -(-len(shown) // columns)
    figure = Figure(figsize=(9 if columns > 1 else 5, 0.6 + 2.6 * down))
    grid = figure.subplots(down, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, each in zip(grid.flat, shown, strict=False):
        for place, name in enumerate(("precision", "recall", "given")):
            points = [
                (at, value) for at, value in zip(each.thresholds, getattr(each, name), strict=True) if value is not None
            ]
            style = ("-", "--", ":")[place]
            if points:
                axes.plot(*zip(*points, strict=True), color=series(place)[0], linestyle=style, label=_CURVES[name])
        axes.axvline(each.point.threshold, color=SOFT)
        if (rates := each.point.evaluation) is not None:
            for place, rate in enumerate((rates.precision, rates.recall)):
                axes.plot(2 * [each.point.threshold], (rate.low, rate.high), color=series(place)[0], linewidth=3)
        axes.set(title=f"{each.point.label}: {each.point.aim}", xlim=(0, 1), ylim=(0, 1.02))
    for axes in grid[-1]:
        axes.set_xlabel("threshold")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    told = (f"{each.point.label} from {each.point.threshold:.3f}" for each in shown)
    more = f" {len(facts) - len(shown)} more labels are not drawn." if len(facts) > len(shown) else ""
    words = (
        f"Precision, recall and share of rows over the threshold, on the evaluation rows. Chosen: {', '.join(told)}."
    )
    return svg(figure, "decisions", words + more)


@styled
def abstention(facts: AbstentionFacts) -> str:
    """Share of right answers over the share of rows that are answered, of two models; a cross at the choice."""
    figure = Figure(figsize=(9, 3.2))
    axes = figure.subplots()
    for place, (name, curve) in enumerate((("teacher", facts.teacher), ("student, as served", facts.student))):
        axes.plot(*zip(*curve, strict=True), color=series(place)[0], linestyle=("--", "-")[place], label=name)
    chosen = facts.abstain.evaluation
    words = "Share of right answers over the share of evaluation rows that are answered, the surest first."
    if chosen is not None and chosen.accuracy.value is not None and chosen.coverage.value is not None:
        share, accuracy, color = chosen.coverage, chosen.accuracy, series(1)[0]
        axes.plot([chosen.coverage.value] * 2, [accuracy.low, accuracy.high], color=color, linewidth=3)
        axes.plot([share.low, share.high], [chosen.accuracy.value] * 2, color=color, linewidth=3)
        words += f" Chosen, {facts.abstain.aim}: {share.text} % are answered, {accuracy.text} % of these rightly."
    axes.set(xlabel="share of rows that are answered", ylabel="share of right answers", xlim=(0, 1.02))
    axes.legend(loc="lower left")
    return svg(figure, "abstention", words)


@styled
def cascade(facts: CascadeFacts, metric: str, *, teacher: ModelFacts) -> str:
    """Score and speed of two models over the share of rows that go on to the second one; a line at the choice."""
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    pair, shares = facts.pair, [share for share, _ in facts.curve]
    left.plot(shares, [score for _, score in facts.curve], color=FIRST, label="both models")
    left.axhline(teacher.metrics[metric], color=SOFT, linestyle=":", label="teacher")
    both, alone = 1 / pair.rows_per_second, 1 / pair.second_rows_per_second
    first = both - pair.share * alone  # seconds of a row
    right.plot(shares, [1 / (first + share * alone) for share in shares], color=FIRST, label="both models")
    right.axhline(pair.second_rows_per_second, color=SOFT, linestyle="--", label="the second model alone")
    for axes in (left, right):
        axes.axvline(facts.share, color=SECOND, linestyle="-" if facts.taken else ":")
        axes.set(xlabel="share of the evaluation rows that go on", xlim=(0, 1.02))
    left.set(title=f"{metric} on the evaluation rows", ylabel="points")
    right.set(title="Rows a second, estimated", ylabel="rows/s", yscale="log")
    right.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    left.legend(loc="lower right")
    right.legend(loc="upper right")
    words = (
        f"A second model, {facts.second}, for the rows that the student is not sure of: {100 * facts.share:.0f} % of "
        f"the evaluation rows go on, and both score {facts.score:.1f} (the student alone {facts.curve[0][1]:.1f}, the "
        f"second model alone {facts.curve[-1][1]:.1f})."
    )
    return svg(figure, "cascade", words + ("" if facts.taken else " It is not taken, see the notes."))


@styled
def lengths(lengths: LengthFacts) -> str:
    """Training rows by tokens before the cut, and the cut."""
    width, counts, cut = lengths.width, lengths.counts, lengths.cut
    figure = Figure(figsize=(9, 2.8))
    axes = figure.subplots()
    places = range(len(counts))
    axes.bar([width * (place + 0.5) for place in places], counts, width=0.9 * width, color=FIRST)
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
def pareto(candidates: CandidateFacts, judgement: Judgement, *, teacher: float, artifact: float) -> str:
    """Draw the candidates, the artifact and the contract.

    Students that were tried are hollow and at their score on the tuning slice after a short training, the teacher
    itself at its own; untrained ones are at the bottom, because their metric is not known. The artifact is filled and
    at its score on the evaluation rows. The limits of the contract are lines.

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
    rows = {True: 2, False: 7 if len(points.keys() - tried.keys()) > _MANY else 4}  # of text, since names overlap
    floor = min(heights) - 0.09 * rows[False] * max(1.0, max(heights) - min(heights))
    figure = Figure(figsize=(9, 5))
    axes = figure.subplots()
    by_latency = sorted(points, key=lambda student: (points[student][1].latency_ms, student))
    ranks = {True: 0, False: 0}  # of those that were tried, and of the others
    for student in by_latency:
        costs = points[student][1]
        place = (costs.latency_ms, tried.get(student, floor))
        colour = FIRST if student in candidates.kept else SOFT
        axes.scatter(*place, s=_area(costs), facecolors="none", edgecolors=colour)
        was_tried = student in tried
        height = ranks[was_tried] % rows[was_tried]
        ranks[was_tried] += 1
        write(axes, short_name(student), place, above=9 + 13 * height, colour=INK if was_tried else SOFT)
    place = (judgement.costs.latency_ms, artifact)
    axes.scatter(*place, s=_area(judgement.costs), color=SECOND)
    write(axes, f"the artifact, {judgement.variant}", place, above=-22)  # the names of students stand above
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
        ylabel="points" if points.keys() <= tried.keys() else "points (at the bottom: not trained)",
    )

    return svg(figure, "pareto", _words(points, tried, candidates.chosen, judgement))


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


def _draw_latency_limit(axes: Axes, limit: float, slowest: float) -> None:
    if limit <= _FAR * slowest:
        axes.axvline(limit, color=SECOND, linestyle="--")
        return
    axes.set_xlim(right=1.25 * slowest)  # a line far away would press all points against the axis
    corner: Any = {"xycoords": "axes fraction", "xytext": (-4, 4), "textcoords": "offset points"}
    axes.annotate(f"the limit is at {limit:g} ms", (1, 0), **corner, ha="right", va="bottom", color=SECOND)


def short_name(student: str) -> str:
    """The student in a plot."""
    return kind_of(student).short_name(student)


def _words(
    points: Mapping[str, tuple[str, Costs]], tried: Mapping[str, float], chosen: str, judgement: Judgement
) -> str:
    parts = []
    for student, (name, costs) in points.items():
        words = f"{short_name(student)} in {name}: {costs.latency_ms:.2f} ms, {costs.size_mb:.1f} MB"
        if student in tried:
            words += f", {tried[student]:.1f} points{' after a short training' * kind_of(student).is_trained}"
        parts.append(words)
    return f"Candidates for the contract: {'; '.join(parts)}. Chosen: {short_name(chosen)}; {judgement.verdict}."
