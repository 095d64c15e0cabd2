"""Shares of rows: counted, with their intervals, and bounds on them as people write these."""

import re
from typing import NamedTuple

from pydantic import Field

from kdc.common.frozen import Frozen

_BOUND = re.compile(
    r"(?:(.+):)?\s*(?:(precision|recall|accuracy|coverage)\s*>=|(fpr)\s*<=)([^<>=:]{1,50})",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)


class Bound(NamedTuple):
    """A bound on a share of rows."""

    label: str | None
    measure: str  # fpr: the share of the rows without the label that get it; coverage: the rows that are answered
    value: float

    @property
    def is_most(self) -> bool:
        """Whether the share must be at most the value, and not at least."""
        return self.measure == "fpr"

    @property
    def name(self) -> str:
        """What is bounded, with its label."""
        return self.measure if self.label is None else f"{self.label}:{self.measure}"


def parse_bound(text: str) -> Bound | None:
    """Read `LABEL:precision>=0.95`, `recall>=0.9`, `fpr<=0.01`, `accuracy>=0.98` or `coverage>=0.5`; None for another
    text, or a value outside 0 to 1."""
    match = _BOUND.fullmatch(text)
    if match is None:
        return None
    try:
        value = float(match[4])
    except ValueError:
        return None
    return Bound(match[1], (match[2] or match[3]).lower(), value) if 0 <= value <= 1 else None


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
