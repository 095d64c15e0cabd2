"""The verdict: plain numbers in, what is missed and what follows from it out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from kdc.artifact.contract.terms import Contract, Costs, Quality, Verdict

_POWER = 0.8


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


def decide(contract: Contract, costs: Costs, quality: Quality | None) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and one sentence for each limit that is missed.

    Args:
        contract: what was asked.
        costs: measured under its conditions.
        quality: None where the metric is not judged.
    """
    limits = contract.limits
    missed = missed_costs(contract, costs)
    shown = True
    if quality is not None and limits.max_drop is not None:
        if quality.difference < -limits.max_drop:
            missed.append(
                f"{quality.metric} is {-quality.difference:.2f} points below the teacher's, the limit "
                f"{limits.max_drop:g}: {-quality.difference - limits.max_drop:.2f} points too many"
            )
        shown = contract.evidence == "point" or quality.interval[0] >= -limits.max_drop
    if missed:
        return "fail", tuple(missed)
    return ("pass" if shown else "not shown"), ()


@dataclass(frozen=True)
class Basis:
    """The rows on which a metric rests.

    Attributes:
        rows: number of rows that were compared.
        rarest: of the parts that make up the metric (its classes, say), the one with the fewest rows: their number, at
            least 1.
        share: the weight of that part in the metric, in (0, 1].
    """

    rows: int
    rarest: int
    share: float = 1.0


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
