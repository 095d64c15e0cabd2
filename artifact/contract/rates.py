import re
from typing import NamedTuple

from pydantic import Field

from kdc.common.frozen import Frozen

_BOUND = re.compile(
    r"(?:(.+):)?\s*(?:(precision|recall|accuracy|coverage)|(fpr))(?:\[([^=]{1,100})=(.{1,100})\])?"
    r"\s*(?(3)<=|>=)([^<>=:]{1,50})",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)


class Bound(NamedTuple):
    label: str | None
    measure: str  # fpr: false positive rate; coverage: share answered
    value: float
    slice: tuple[str, str] | None = None  # column and value: of these rows alone

    @property
    def is_most(self) -> bool:
        return self.measure == "fpr"

    @property
    def name(self) -> str:
        of_label = self.measure if self.label is None else f"{self.label}:{self.measure}"
        return of_label if self.slice is None else f"{of_label}[{'='.join(self.slice)}]"


def parse_bound(text: str) -> Bound | None:
    """Parse a bound such as `LABEL:precision>=0.95`, `fpr<=0.01` or `accuracy[language=de]>=0.9`; else None."""
    match = _BOUND.fullmatch(text)
    if match is None:
        return None
    try:
        value = float(match[6])
    except ValueError:
        return None
    rows = None if match[4] is None else (match[4], match[5])
    return Bound(match[1], (match[2] or match[3]).lower(), value, rows) if 0 <= value <= 1 else None


class Rate(Frozen):
    """A counted share with its exact confidence interval (Clopper and Pearson 1934, Biometrika 26:404)."""

    hits: int = Field(ge=0)
    of: int = Field(ge=0)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    @property
    def value(self) -> float | None:
        return self.hits / self.of if self.of else None

    @property
    def text(self) -> str:
        if not self.of:
            return "-"
        return f"{100 * self.hits / self.of:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"
