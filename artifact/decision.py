"""Decision thresholds, and how often the decisions are right.

Without thresholds a row gets its most probable class, or all labels from `HALF` on.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from kdc.artifact.contract.rates import Rate
from kdc.common.frozen import Frozen
from kdc.common.tables import number

HALF = 0.5
ABSTAINED = "abstained"


class Rates(Frozen):
    precision: Rate
    recall: Rate
    false_alarms: Rate  # share of rows without the label that get it


class Answered(Frozen):
    coverage: Rate
    accuracy: Rate
    disagreement: Rate | None = None  # share of all rows answered unlike the teacher
    error: Rate | None = None  # share of all rows answered wrongly


class Covered(Frozen):
    coverage: Rate  # of sets with the true label
    single: Rate  # of sets with one label
    size: float = Field(ge=1)  # mean labels


class Threshold(Frozen):
    threshold: float = Field(ge=0, le=1)
    aim: str  # "f1", "precision>=0.95", ..., or "fixed" by a person
    reached: bool = True  # the tuning set reaches the aim (for an abstention: proves it)
    note: str = ""  # why not reached
    variant: str = ""  # whose probabilities chose it; "" if fixed


class OperatingPoint(Threshold):
    label: str
    tuning: Rates | None = None
    evaluation: Rates | None = None


class Abstention(Threshold):
    """Least probability of the best class to answer a row; below it the answer is `ABSTAINED`. A deferral is an
    abstention whose aim bounds shares of all rows."""

    # Share of tuning rows that get each label.
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    tuning: Answered | None = None
    evaluation: Answered | None = None

    @property
    def defers(self) -> bool:
        return "<=" in self.aim


class LabelSets(Frozen):
    """Least probability of a label to join a row's set. The most probable label always joins."""

    coverage: float = Field(gt=0, lt=1)  # as requested
    at_least: float = Field(ge=0, le=1)
    variant: str = ""  # whose probabilities chose it
    evaluation: Covered | None = None


class SliceFigures(Frozen):
    """A model on the evaluation rows with one value of a column. Scores are points, intervals have 95 %."""

    name: str  # such as "language=de"; "all rows" comes first
    rows: int = Field(ge=0)
    metric: str  # the deciding metric
    metrics: dict[str, float] = Field(default_factory=dict, max_length=10)  # empty: too few rows
    interval: tuple[float, float] | None = None
    difference: float | None = None  # to the teacher
    difference_interval: tuple[float, float] | None = None  # paired by row
    answered: Answered | None = None  # None: all rows are answered
    chance: float | None = Field(None, ge=0, le=1)  # corrected p-value of a score so far below all rows'

    @property
    def is_worse(self) -> bool:
        return self.chance is not None and self.chance <= 0.05


def slice_table(figures: Sequence[SliceFigures]) -> list[list[str]]:
    """Cells, header first."""
    lines: list[list[str]] = []
    for part in figures:
        metric, scores, rates, ends = part.metric, part.metrics, part.answered, part.interval
        cells = {"slice": part.name, "rows": str(part.rows), metric: number(scores.get(metric))}
        cells["95 % interval"] = "too few rows" if ends is None else f"{ends[0]:.1f} to {ends[1]:.1f}"
        cells |= {name: number(scores.get(name)) for name in figures[0].metrics if name != metric}
        beside = (part.difference, *(part.difference_interval or ()))
        cells["against the teacher"] = "{:+.1f} ({:+.1f} to {:+.1f})".format(*beside) if len(beside) == 3 else "-"
        cells["answered %"] = "-" if rates is None else rates.coverage.text
        cells["their accuracy %"] = "-" if rates is None else rates.accuracy.text
        worse = "yes" if part.is_worse else "not shown"
        cells["worse than all rows"] = "-" if part.chance is None else f"{worse}, p {part.chance:.2g}"
        lines += [list(cells.values())] if lines else [list(cells), list(cells.values())]
    known = [column for column in zip(*lines, strict=True) if {*column[1:]} - {"-"}]
    return [list(line) for line in zip(*known, strict=True)]


def slice_notes(figures: Sequence[SliceFigures]) -> list[str]:
    return [
        f"{part.name}: {part.metric} {part.metrics[part.metric]:.1f}, below {figures[0].metrics[part.metric]:.1f} of "
        f"all rows beyond chance (p {part.chance:.2g}, corrected for the number of slices)"
        for part in figures
        if part.is_worse
    ]


def sets_table(sets: LabelSets | None) -> list[list[str]]:
    """Cells, header first."""
    if sets is None:
        return []
    rates = sets.evaluation
    cells = ["-"] * 3 if rates is None else [rates.coverage.text, f"{rates.size:.2f}", rates.single.text]
    titles = [
        "truth in the set, asked %",
        "in the set from probability",
        "truth in the set %",
        "labels in a set",
        "sets of one label %",
    ]
    return [titles, [f"{100 * sets.coverage:g}", f"{sets.at_least:.4f}", *cells]]


def decision_table(points: tuple[OperatingPoint, ...], abstain: Abstention | None) -> list[list[str]]:
    """Cells, header first."""
    if abstain is not None:
        answered = abstain.evaluation
        cells = ["-"] * 2 if answered is None else [answered.coverage.text, answered.accuracy.text]
        titles = ["aim", "answered from", "answered %", "their accuracy %", "on the tuning set"]
        if answered is not None:
            of_all = {"unlike the teacher, of all %": answered.disagreement, "wrong, of all %": answered.error}
            known = {title: rate.text for title, rate in of_all.items() if rate is not None}
            titles[-1:-1], cells[2:] = known, known.values()
        return [titles, [abstain.aim, f"{abstain.threshold:.4f}", *cells, _on_tuning(abstain, "shown")]]
    titles = ["label", "aim", "from", "precision %", "recall %", "false alarms %", "on the tuning set"]
    rows = []
    for point in points:
        rates = point.evaluation
        cells = ["-"] * 3 if rates is None else [rates.precision.text, rates.recall.text, rates.false_alarms.text]
        rows.append([point.label, point.aim, f"{point.threshold:.4f}", *cells, _on_tuning(point, "reached")])
    return [titles, *rows] if rows else []


def _on_tuning(threshold: Threshold, kept: str) -> str:
    if threshold.aim == "fixed":
        return "set by hand"
    return kept if threshold.reached else f"not {kept}: {threshold.note}"
