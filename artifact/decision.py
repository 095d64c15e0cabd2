"""What a score means: from which probability on an artifact gives a label, and how often that is right.

Without an operating point the most probable of several classes is given, and a label of a multi-label task from `HALF`
on.
"""

from pydantic import Field

from kdc.common.frozen import Frozen

HALF = 0.5


class Rate(Frozen):
    """A share, counted: its exact 95 % interval is Clopper's and Pearson's (1934, Biometrika 26:404)."""

    hits: int = Field(ge=0)
    of: int = Field(ge=0)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    @property
    def value(self) -> float | None:
        """The share; None of nothing."""
        return self.hits / self.of if self.of else None

    @property
    def text(self) -> str:
        """In percent, with its interval."""
        if not self.of:
            return "-"
        return f"{100 * self.hits / self.of:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


class Rates(Frozen):
    """How a threshold does on some rows."""

    precision: Rate  # of the rows that get the label, those that have it
    recall: Rate  # of the rows that have the label, those that get it
    false_alarms: Rate  # of the rows that have it not, those that get it


class OperatingPoint(Frozen):
    """The threshold of one label: it is given from this probability on."""

    label: str
    threshold: float = Field(ge=0, le=1)
    aim: str  # what it was chosen by: "f1", "precision>=0.95", ..., or "fixed" where a person set it
    reached: bool = True  # whether the tuning slice reaches the aim
    note: str = ""  # why it does not
    variant: str = ""  # the ONNX file by whose probabilities it was chosen; "" where a person wrote it down
    tuning: Rates | None = None  # on the tuning slice, by which it was chosen
    evaluation: Rates | None = None  # on the evaluation rows, by which it was not


def points_table(points: tuple[OperatingPoint, ...]) -> list[list[str]]:
    """The operating points as text, header first, with the rates on the evaluation rows in percent."""
    titles = ["label", "aim", "from", "precision %", "recall %", "false alarms %", "on the tuning slice"]
    rows = []
    for point in points:
        rates = point.evaluation
        shown = ["-"] * 3 if rates is None else [rates.precision.text, rates.recall.text, rates.false_alarms.text]
        kept = "reached" if point.reached else f"not reached: {point.note}"
        rows.append(
            [point.label, point.aim, f"{point.threshold:.4f}", *shown, "set by hand" if point.aim == "fixed" else kept]
        )
    return [titles, *rows]
