"""The verdict: plain numbers in, what is missed and what follows from it out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from kdc.artifact.contract.terms import Contract, Costs, Quality, Verdict

_POWER = 0.8


def missed_costs(contract: Contract, costs: Costs) -> list[str]:
    """One sentence for each limit that a model does not keep: what was found, the limit, by how much."""
    limits = contract.limits
    latency = f"p{contract.at.percentile:g} latency"
    checks = (
        (latency, "ms", costs.latency_ms, limits.max_latency_ms, 1),
        ("size", "MB", costs.size_mb, limits.max_size_mb, 1),
        ("throughput", "rows/s", costs.rows_per_s, limits.min_rows_per_s, -1),
    )
    return [
        f"{name} is {found:.4g} {unit}, the limit {limit:g}: {_percent(found / limit)} "
        + ("above" if sign > 0 else "below")
        for name, unit, found, limit, sign in checks
        if limit is not None and sign * found > sign * limit
    ]


def _percent(share: float) -> str:
    off = 100 * abs(share - 1)
    return f"{off:.0f} %" if off >= 1 else f"{off:.1g} %"


def decide(contract: Contract, costs: Costs, quality: Quality | None) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and what is missed.

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
    """What a metric rests on.

    Attributes:
        rows: compared.
        rarest: of these, the rows that decide the part of the metric that the fewest decide; at least 1.
        share: of the metric that this part is, in (0, 1].
    """

    rows: int
    rarest: int
    share: float = 1.0


def unseen(basis: Basis, confidence: float) -> float:
    """Points by which a difference may be another one though no row shows it.

    Of n rows that all answer alike, a share of up to 1 - alpha^(1/n) of the rest may not (Clopper and Pearson 1934 for
    no event in n; the "rule of three"). A bootstrap only draws what is there, so that without this its interval would
    be the narrower the fewer rows there are.
    """
    return 100 * basis.share * (1 - _alpha(confidence) ** (1 / basis.rarest))


def _alpha(confidence: float) -> float:
    return (1 - confidence) / 2


def rows_needed(
    difference: float, standard_error: float, basis: Basis, *, max_drop: float, confidence: float
) -> int | None:
    """Evaluation rows with which a difference would be shown to keep to `max_drop`, with a power of 80 %.

    The lower end of the interval must lie above -max_drop: (z_confidence + z_power) standard errors may not exceed the
    distance from there to the difference, and a standard error falls with the root of the rows (Lachin 1981, Controlled
    Clinical Trials 2:93-113, equation 3, for one sample of paired differences). Nor may `unseen` exceed it.

    Args:
        difference: student minus teacher, in points, taken for the true one.
        standard_error: of that difference on the basis's rows.
        basis: those.
        max_drop: points.
        confidence: of the two-sided interval.

    Returns:
        None where the difference is at the limit or beyond it: no number of rows would do.
    """
    room = difference + max_drop
    if room <= 0:
        return None
    normal = NormalDist()
    errors = normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(_POWER)
    by_error = basis.rows * (errors * standard_error / room) ** 2
    share = min(room / (100 * basis.share), 1 - _alpha(confidence))  # at more than that, one row says enough
    rarest = math.log(_alpha(confidence)) / math.log1p(-share)
    return math.ceil(max(by_error, basis.rows * rarest / basis.rarest))
