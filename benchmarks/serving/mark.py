"""Bounds to keep, and their table."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """A bound: a minimum if `least`, else a maximum.

    Attributes:
        value: measured, or the median of rounds.
        interval: 95 %, of the median; None with too few rounds.
    """

    what: str
    least: bool
    bound: float
    value: float
    interval: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        """The verdict is "not shown" if the interval contains the bound."""
        found = {self._keeps(end) for end in self.interval or (self.value,)}
        return "not shown" if len(found) > 1 else "holds" if found == {True} else "fails"

    @property
    def holds(self) -> bool:
        return self.verdict == "holds"

    def _keeps(self, value: float) -> bool:
        return value >= self.bound if self.least else value <= self.bound


def marks_table(marks: Sequence[Mark]) -> str:
    lines = ["| mark | bound | measured | |", "|---|---:|---:|---|"]
    for mark in marks:
        sign = ">=" if mark.least else "<="
        ends = "" if mark.interval is None else f" ({mark.interval[0]:.2f} to {mark.interval[1]:.2f})"
        verdict = mark.verdict if mark.holds else f"**{mark.verdict}**"
        lines.append(f"| {mark.what} | {sign} {mark.bound:g} | {mark.value:.2f}{ends} | {verdict} |")
    return "\n".join(lines) + "\n" if marks else ""
