"""Which students can keep a contract, by the costs that were measured of them untrained. Plain values in and out."""

import math
from collections.abc import Mapping

from kdc.artifact.contract.judgement import missed_costs
from kdc.artifact.contract.terms import Contract, Costs
from kdc.common.errors import InputError
from kdc.common.tables import aligned
from kdc.pipeline.config.student_names import is_shallow, kind_of
from kdc.pipeline.results.training import NotMeasured, StudentCosts

_SMALLER_FILES = "; --vocabulary auto and --set quantize.vector_bits=4 make files smaller"
Measured = Mapping[str, StudentCosts]  # by student: an id, a path, "layers:0,1,2", "conv", "static" or "teacher"


def fitting_students(measured: Measured, contract: Contract) -> list[str]:
    """Students that can keep the contract in some precision, the most promising first: those with layers before those
    without, then those with the most parameters; of as many, in the order of measuring."""
    # A dict keeps that order, which goes into fingerprints; a set's order differs between processes.
    fitting = {name: None for name, precision, costs in _made(measured) if not missed_costs(contract, costs)}
    return sorted(fitting, key=lambda name: (is_shallow(name), -measured[name].parameters))


def table(measured: Measured, contract: Contract) -> list[str]:
    """A line for each student and precision: what was measured, and whether it is kept or why not."""
    rows = [("student", "variant", "M params", "ms", "rows/s", "MB", "")]
    for name, student in measured.items():
        for precision, costs in student.variants.items():
            parameters = f"{student.parameters / 1e6:.1f}"
            if isinstance(costs, NotMeasured):
                rows.append((name, precision, parameters, "-", "-", "-", f"dropped: {costs.failed}"))
                continue
            missed = missed_costs(contract, costs)
            numbers = (f"{costs.latency_ms:.2f}", f"{costs.rows_per_s:.0f}", f"{costs.size_mb:.1f}")
            rows.append((name, precision, parameters, *numbers, "dropped: " + "; ".join(missed) if missed else "kept"))
    return [f"  {line}" for line in aligned(rows, left=(6,)).splitlines()]


def nothing_fits(measured: Measured, contract: Contract) -> InputError:
    """The error where no student can keep the contract. It names the one that comes nearest, whose worst miss is the
    smallest, and the nearest of each other kind."""
    made = _made(measured)
    if not made:
        return InputError("no candidate could be exported", given=", ".join(measured), remedy="see the lines above")
    nearest: dict[str, tuple[str, str, Costs]] = {}  # by kind, the nearest of all first
    for each in sorted(made, key=lambda each: _worst_miss(each[2], contract)):
        nearest.setdefault(kind_of(each[0]), each)
    name, precision, costs = next(iter(nearest.values()))
    missed = [f"{other} in {form}: {'; '.join(missed_costs(contract, each))}" for other, form, each in nearest.values()]
    limits = contract.limits
    possible = {
        "--max-latency-ms": (limits.max_latency_ms, f"{1.1 * costs.latency_ms:.3g}"),
        "--max-size-mb": (limits.max_size_mb, f"{costs.size_mb + 0.1:.1f}"),
        "--min-rows-per-s": (limits.min_rows_per_s, f"{0.9 * costs.rows_per_s:.0f}"),
    }
    reachable = " ".join(f"{flag} {value}" for flag, (limit, value) in possible.items() if limit is not None)
    return InputError(
        "no student that could come out keeps the contract, so nothing was trained",
        given="the nearest is " + "\n    then ".join(missed),
        remedy=f"ask for what {name} in {precision} keeps ({reachable}), for a smaller --student, or bring a smaller "
        f"teacher (--teacher){_SMALLER_FILES if limits.max_size_mb is not None else ''}",
    )


def _made(measured: Measured) -> list[tuple[str, str, Costs]]:
    """Student, precision ("fp32", "int8", "fp16") and costs of all that could be made."""
    return [
        (name, precision, costs)
        for name, student in measured.items()
        for precision, costs in student.variants.items()
        if isinstance(costs, Costs)
    ]


def _worst_miss(costs: Costs, contract: Contract) -> float:
    """The largest ratio of a cost to its limit; above 1 where the limit is missed."""
    limits = contract.limits
    return max(
        costs.latency_ms / (limits.max_latency_ms or math.inf),
        costs.size_mb / (limits.max_size_mb or math.inf),
        (limits.min_rows_per_s or 0.0) / costs.rows_per_s,
    )
