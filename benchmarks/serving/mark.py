"""What has to hold, whether it does, and the table that says so."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """One bound.

    Attributes:
        what: in words.
        least: whether the bound is the least or the most.
        bound: of the value.
        value: what was measured.
    """

    what: str
    least: bool
    bound: float
    value: float

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.value >= self.bound if self.least else self.value <= self.bound


def marks_table(marks: Sequence[Mark]) -> str:
    """Markdown; empty without marks."""
    lines = ["| mark | bound | measured | |", "|---|---:|---:|---|"]
    for mark in marks:
        sign = ">=" if mark.least else "<="
        lines.append(
            f"| {mark.what} | {sign} {mark.bound:g} | {mark.value:.2f} | {'holds' if mark.holds else '**fails**'} |"
        )
    return "\n".join(lines) + "\n" if marks else ""
