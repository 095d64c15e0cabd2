"""Decisions: from which probability on an artifact gives a label or an answer, and how often that is right.

Without an operating point a row gets the most probable of several classes, or each label of a multi-label task from
`HALF` on. Without an abstention every row is answered. A row can also have a set of labels, which holds the true one
with a stated probability.
"""

from typing import Annotated

from pydantic import Field

from kdc.artifact.contract.rates import Rate
from kdc.common.frozen import Frozen

HALF = 0.5
ABSTAINED = "abstained"  # stands for a label if a row is not answered


class Rates(Frozen):
    """How a threshold does on some rows."""

    precision: Rate  # of the rows that get the label, those that have it
    recall: Rate  # of the rows that have the label, those that get it
    false_alarms: Rate  # of the rows that have it not, those that get it


class Answered(Frozen):
    """How answering only the rows that a model is sure of does on some rows."""

    coverage: Rate  # of all rows, those that are answered
    accuracy: Rate  # of the answered rows, those that are answered rightly


class Covered(Frozen):
    """How sets of labels do on some rows."""

    coverage: Rate  # of all rows, those whose set holds the true label
    single: Rate  # of all rows, those whose set is one label
    size: float = Field(ge=1)  # labels of a set, on average


class Threshold(Frozen):
    """A probability from which on something is done."""

    threshold: float = Field(ge=0, le=1)
    aim: str  # what it was chosen by: "f1", "matthews", "precision>=0.95", ..., or "fixed" where a person set it
    reached: bool = True  # whether the tuning slice reaches the aim, or, for an abstention, shows that it is reached
    note: str = ""  # why it does not
    variant: str = ""  # the ONNX file by whose probabilities it was chosen; "" where a person wrote it down


class OperatingPoint(Threshold):
    """The threshold of one label: it is given from this probability on."""

    label: str
    tuning: Rates | None = None  # on the tuning slice, by which it was chosen
    evaluation: Rates | None = None  # on the evaluation rows, by which it was not


class Abstention(Threshold):
    """The least probability of its label for which a row of several classes is answered; below it is `ABSTAINED`."""

    # of the rows of the tuning slice, the share that gets each label; in the order of the labels
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    tuning: Answered | None = None  # on the tuning slice, by which it was chosen
    evaluation: Answered | None = None  # on the evaluation rows, by which it was not


class LabelSets(Frozen):
    """From which probability on a label is in a row's set of labels, which holds the most probable one in any case."""

    coverage: float = Field(gt=0, lt=1)  # least probability, as it was asked for, that a set holds the true label
    at_least: float = Field(ge=0, le=1)
    variant: str = ""  # the ONNX file by whose probabilities it was chosen, on the tuning slice
    evaluation: Covered | None = None  # on the evaluation rows, by which it was not chosen


def sets_table(sets: LabelSets | None) -> list[list[str]]:
    """The sets of labels as text, header first, with their rates on the evaluation rows; empty if there are none."""
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
    """The operating points or the abstention as text, header first, with the rates on the evaluation rows in percent;
    empty if there is none."""
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
