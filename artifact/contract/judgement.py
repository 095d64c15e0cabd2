"""The judgement: a contract, what was measured, and the verdict that follows from these numbers."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Self

from pydantic import Field, model_validator

from kdc.artifact.contract.terms import LONGEST, Contract, Costs, Quality, Verdict
from kdc.common.frozen import Frozen

_POWER = 0.8


class Judgement(Frozen):
    """A contract and whether an artifact kept it, as the manifest keeps it."""

    contract: Contract  # what was asked
    variant: str  # the one that was judged: "fp32", "int8" or "fp16"
    provider: str  # ONNX Runtime's execution provider that ran it
    cpu: str  # model name of the CPU. Another one has another latency, and can have other int8 arithmetic
    # threads of a forward pass when it was timed; None in artifacts of versions that did not record it
    threads: int | None = Field(default=None, ge=1, le=1024)
    # tokens of the rows that were timed, so that other rows of these lengths can stand for them
    lengths: tuple[Annotated[int, Field(ge=1, le=LONGEST)], ...] = Field(min_length=1, max_length=100)
    costs: Costs  # measured under the contract's conditions
    quality: Quality | None = None  # the student beside its teacher; None where `max_drop` was not asked for
    compared: bool = True  # whether the quality was measured for this judgement, and is not that of an earlier one
    missed: tuple[str, ...] = ()  # one sentence for each limit that does not hold
    verdict: Verdict  # "not shown": no limit is missed, but the rows are too few to show it

    @model_validator(mode="after")
    def _verdict_follows(self) -> Self:
        if (self.quality is None) is not (self.contract.limits.max_drop is None):
            raise ValueError("quality belongs to a max_drop, and a max_drop to quality")
        verdict, _ = decide(self.contract, self.costs, self.quality)
        if verdict != self.verdict:
            raise ValueError(f"the verdict {self.verdict} does not follow from the measurements, which give {verdict}")
        return self


def missed_costs(contract: Contract, costs: Costs) -> list[str]:
    """One sentence for each limit on costs that a model does not keep: the measurement, the limit, by how much."""
    limits = contract.limits
    latency = f"p{contract.at.percentile:g} latency"
    checks = (
        (latency, "ms", costs.latency_ms, limits.max_latency_ms, 1),
        ("size", "MB", costs.size_mb, limits.max_size_mb, 1),
        ("throughput", "rows/s", costs.rows_per_s, limits.min_rows_per_s, -1),
    )
    return [
        f"{name} is {cost:.4g} {unit}, the limit {limit:g}: {_percent(cost / limit)} {'above' if sign > 0 else 'below'}"
        for name, unit, cost, limit, sign in checks
        if limit is not None and sign * cost > sign * limit
    ]


def _percent(ratio: float) -> str:
    """How far a ratio is from 1, in percent."""
    off = 100 * abs(ratio - 1)
    return f"{off:.0f} %" if off >= 1 else f"{off:.1g} %"


def judge_drop(contract: Contract, quality: Quality | None) -> Verdict:
    """The verdict on `max_drop` alone; it is kept where it was not asked for, or the metric is not judged."""
    limit = contract.limits.max_drop
    if quality is None or limit is None:
        return "pass"
    if quality.difference < -limit:
        return "fail"
    return "pass" if contract.evidence == "point" or quality.interval[0] >= -limit else "not shown"


def decide(contract: Contract, costs: Costs, quality: Quality | None) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and one sentence for each limit that is missed.

    Args:
        contract: what was asked.
        costs: measured under its conditions.
        quality: None where the metric is not judged.
    """
    missed, drop, limit = missed_costs(contract, costs), judge_drop(contract, quality), contract.limits.max_drop
    if drop == "fail" and quality is not None and limit is not None:
        missed.append(
            f"{quality.metric} is {-quality.difference:.2f} points below {quality.other}'s, the limit {limit:g}: "
            f"{-quality.difference - limit:.2f} points too many"
        )
    return ("fail", tuple(missed)) if missed else (drop, ())


@dataclass(frozen=True)
class Basis:
    """The rows on which a metric rests."""

    rows: int  # rows that were compared
    rarest: int  # rows of the part of the metric (one of its classes, say) that has the fewest; at least 1
    share: float = 1.0  # the weight of that part in the metric, in (0, 1]


def unseen(basis: Basis, confidence: float) -> float:
    """Points by which a difference may be larger in truth although no row shows it.

    Where n rows all agree, up to a share of 1 - alpha^(1/n) of all other rows may still disagree (Clopper and Pearson
    1934, for no event in n trials; the "rule of three"). A bootstrap only draws from the rows that there are, so that
    without this bound its interval would be narrower the fewer rows there are.
    """
    return 100 * basis.share * (1 - _alpha(confidence) ** (1 / basis.rarest))


def _alpha(confidence: float) -> float:
    """The probability that is left at each end of a two-sided interval."""
    return (1 - confidence) / 2


def rows_needed(
    difference: float, standard_error: float, basis: Basis, *, max_drop: float, confidence: float
) -> int | None:
    """The number of evaluation rows that would show, with a power of 80 %, that a difference keeps to `max_drop`.

    The lower end of the interval must lie above -max_drop. So (z_confidence + z_power) standard errors must not exceed
    the distance from -max_drop to the difference, and a standard error falls with the root of the number of rows
    (Lachin 1981, Controlled Clinical Trials 2:93-113, equation 3, for one sample of paired differences). Nor may
    `unseen` exceed that distance.

    Args:
        difference: student minus teacher, in points, taken for the true one.
        standard_error: of that difference on the rows of `basis`, in points.
        basis: the rows that were compared.
        max_drop: points that the student may be below its teacher.
        confidence: of the two-sided interval.

    Returns:
        None where the difference is at the limit or beyond it, so that no number of rows would do.
    """
    room = difference + max_drop
    if room <= 0:
        return None
    normal = NormalDist()
    errors = normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(_POWER)
    by_error = basis.rows * (errors * standard_error / room) ** 2
    share = min(room / (100 * basis.share), 1 - _alpha(confidence))  # beyond that, one row is enough
    rarest = math.log(_alpha(confidence)) / math.log1p(-share)
    return math.ceil(max(by_error, basis.rows * rarest / basis.rarest))
