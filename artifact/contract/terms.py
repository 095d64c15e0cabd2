from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from kdc.artifact.contract.rates import Bound, Rate, parse_bound
from kdc.common.errors import InputError
from kdc.common.frozen import Frozen

Verdict = Literal["pass", "fail", "not shown"]
Evidence = Literal["interval", "point"]
Against = Literal["best", "teacher"]
MOST_TOKENS = 8192  # of a row or window
MOST_WINDOWS = 64  # of a row
_LONGEST_TEXT = 1000
EXIT_CODES: dict[str, int] = {"pass": 0, "fail": 3, "not shown": 4}

Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: tuple(map(str, value if isinstance(value, list | tuple) else [value]))),
]


class Limits(Frozen):
    """None sets no limit."""

    max_latency_ms: float | None = Field(
        None, gt=0, description="longest latency of one call under `contract.at`, in milliseconds"
    )
    min_rows_per_s: float | None = Field(None, gt=0)
    max_size_mb: float | None = Field(None, gt=0)
    max_drop: float | None = Field(None, ge=0, le=200)
    require: Texts = Field((), max_length=100)

    @field_validator("require")
    @classmethod
    def _can_be_read(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            bound = parse_bound(text) if len(text) <= _LONGEST_TEXT else None
            if bound is None or bound.value in (0, 1):
                raise ValueError(
                    f"{text[:_LONGEST_TEXT]!r} is no bound with a value above 0 and below 1; write "
                    "LABEL:precision>=0.95, LABEL:recall>=0.9, LABEL:fpr<=0.01, accuracy>=0.98 or coverage>=0.5; "
                    "of some rows, accuracy[COLUMN=VALUE]>=0.9"
                )
        return value

    @property
    def set_ones(self) -> list[str]:
        return [name for name in Limits.model_fields if getattr(self, name) not in (None, ())]


class Conditions(Frozen):
    length: int | None = Field(
        None, ge=3, le=MOST_TOKENS, description="tokens of each timed row (default: rows as they come)"
    )
    batch: int = Field(1, ge=1, le=4096, description="rows of a call whose latency is measured")
    percentile: float = Field(
        95.0, gt=0, le=99.9, description="percentile of the latencies that must keep max_latency_ms"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads of a forward pass (default: all cores that the process may use)"
    )


class Proof(Frozen):
    evidence: Evidence = "interval"
    against: Against = "best"
    confidence: float = Field(0.95, gt=0.5, le=0.99)


class Contract(Proof):
    """What an artifact must keep, and what counts as proof."""

    limits: Limits = Limits()
    at: Conditions = Conditions()


class Costs(Frozen):
    """One model's costs, in the units of `Limits`."""

    latency_ms: float = Field(gt=0)
    rows_per_s: float = Field(gt=0)
    size_mb: float = Field(gt=0)
    # At the contract's confidence level; None after too few rounds.
    latency_interval: tuple[float, float] | None = None
    rows_interval: tuple[float, float] | None = None
    starved: float = Field(0.0, ge=0, le=1)  # share of threads whose core other processes took


class Quality(Frozen):
    """The student against its teacher or a better baseline, on the same evaluation rows."""

    metric: str
    against: str
    # Points; None if only differing rows have labels.
    teacher: float | None
    student: float | None
    difference: float  # student minus other, in points
    # Two-sided confidence interval, wider with each look.
    interval: tuple[float, float]
    rows: int
    groups: int  # independent groups
    # Number of this model among those judged by these rows (see `spent`).
    look: int = Field(1, ge=1)
    # Rows that would prove the limit (power 80 %), if the measured difference is true. None if none would, or the
    # verdict is clear.
    rows_needed: int | None = None

    @property
    def other(self) -> str:
        """Name in messages."""
        return "the teacher" if self.against == "teacher" else f"the baseline {self.against}"


class RequiredShare(Frozen):
    requirement: str
    # The end that proves the share has the contract's confidence. At the other end, all shares together may err as
    # often as one alone.
    rate: Rate
    look: int = Field(1, ge=1)  # see `Quality`

    @property
    def asked(self) -> Bound:
        bound = parse_bound(self.requirement)
        assert bound is not None  # contracts are validated
        return bound


def parse_conditions(text: str | None) -> dict[str, str]:
    """Split `length=64,batch=1`, without checking names."""
    conditions: dict[str, str] = {}
    for part in text.split(",") if text is not None else ():
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not (name and sign and value):
            remedy = "for example --at length=64,batch=1,percentile=95,threads=2"
            raise InputError("--at wants name=number, separated by commas", given=part, remedy=remedy)
        conditions[name] = value
    return conditions


def replace(contract: Contract, changes: Mapping[str, Any]) -> Contract:
    """Replace limits, `at` (as text) and fields of `Proof`; None changes nothing.

    Raises:
        InputError: an unknown condition, or a wrong value.
    """
    new = {name: value for name, value in changes.items() if value is not None}
    terms = contract.model_dump()
    terms["at"] |= parse_conditions(new.pop("at", None))
    terms |= {name: new.pop(name) for name in Proof.model_fields if name in new}
    terms["limits"] |= new
    try:
        return Contract.model_validate(terms)
    except ValidationError as error:
        problems = [f"{item['loc'][-1]}: {item['msg']} (given: {item['input']!r})" for item in error.errors()]
        raise InputError("wrong contract: " + "; ".join(problems), remedy="`kdc verify --help`") from None
