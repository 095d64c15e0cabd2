"""The verdict: plain numbers in, what is missed and what follows from it out."""

from __future__ import annotations

import math
from statistics import NormalDist

from contract.terms import Contract, Costs, Quality, Verdict

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


def rows_needed(
    difference: float, standard_error: float, rows: int, *, max_drop: float, confidence: float
) -> int | None:
    """Evaluation rows with which a difference would be shown to keep to `max_drop`, with a power of 80 %.

    The lower end of the interval must lie above -max_drop: (z_confidence + z_power) standard errors may not exceed the
    distance from there to the difference, and a standard error falls with the root of the rows (Lachin 1981, Controlled
    Clinical Trials 2:93-113, equation 3, for one sample of paired differences).

    Args:
        difference: student minus teacher, in points, taken for the true one.
        standard_error: of that difference on `rows` rows.
        rows: those.
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
    return max(1, math.ceil(rows * (errors * standard_error / room) ** 2))
