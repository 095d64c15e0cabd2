"""Decisions: the probabilities from which an artifact gives a label or an answer, and how often it is right.

Without operating points a row gets its most probable class, or every label of a multi-label task at `HALF` or more.
Without an abstention every row is answered.
"""

from typing import Annotated

from pydantic import Field

from kdc.artifact.contract.rates import Rate
from kdc.common.frozen import Frozen

HALF = 0.5
ABSTAINED = "abstained"  # the answer to a row that is not answered


class Rates(Frozen):
    """How a threshold does on some rows."""

    precision: Rate
    recall: Rate
    false_alarms: Rate  # false positive rate: share of the rows without the label that get it


class Answered(Frozen):
    """How a model does that answers only the rows it is sure of."""

    coverage: Rate  # share of all rows that are answered
    accuracy: Rate  # share of the answered rows that are right


class Covered(Frozen):
    """How sets of labels do on some rows."""

    coverage: Rate  # share of rows whose set holds the true label
    single: Rate  # share of rows whose set is one label
    size: float = Field(ge=1)  # mean labels a set


class Threshold(Frozen):
    """Least probability at which something is done."""

    threshold: float = Field(ge=0, le=1)
    aim: str  # what chose it: "f1", "matthews", "precision>=0.95", ..., or "fixed" if a person did
    reached: bool = True  # whether the tuning set reaches the aim; of an abstention, whether it shows the aim
    note: str = ""  # why the aim is not reached
    variant: str = ""  # ONNX file whose probabilities chose it; "" if a person did


class OperatingPoint(Threshold):
    """Threshold of one label."""

    label: str
    tuning: Rates | None = None  # on the tuning set, which chose it
    evaluation: Rates | None = None  # on the evaluation set


class Abstention(Threshold):
    """Least probability of a row's best class to answer it; below, the answer is `ABSTAINED`."""

    # Share of the tuning rows that get each label, in the order of the labels.
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    tuning: Answered | None = None  # on the tuning set, which chose it
    evaluation: Answered | None = None  # on the evaluation set


class LabelSets(Frozen):
    """Least probability of a label to join a row's set of labels. The set always holds the most probable label."""

    coverage: float = Field(gt=0, lt=1)  # requested probability that a set holds the true label
    at_least: float = Field(ge=0, le=1)
    variant: str = ""  # ONNX file whose probabilities on the tuning set chose it
    evaluation: Covered | None = None  # on the evaluation set


def sets_table(sets: LabelSets | None) -> list[list[str]]:
    """The sets and their rates on the evaluation set as text, header first; empty if there are none."""
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
    """Operating points or the abstention as text, header first, with percent on the evaluation set; empty without
    any."""
    if abstain is not None:
        answered = abstain.evaluation
        cells = ["-"] * 2 if answered is None else [answered.coverage.text, answered.accuracy.text]
        titles = ["aim", "answered from", "answered %", "right of these %", "on the tuning slice"]
        return [titles, [abstain.aim, f"{abstain.threshold:.4f}", *cells, _on_tuning(abstain, "shown")]]
    titles = ["label", "aim", "from", "precision %", "recall %", "false alarms %", "on the tuning slice"]
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
