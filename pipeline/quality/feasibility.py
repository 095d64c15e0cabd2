"""Which students can keep a contract, by the costs that were measured of them untrained. Plain values in and out."""

import math
from collections.abc import Mapping
from typing import Literal

from kdc.artifact.contract.judgement import missed_costs
from kdc.artifact.contract.terms import Contract, Costs
from kdc.common.errors import InputError
from kdc.common.tables import aligned
from kdc.pipeline.config.student_names import is_shallow, kind_of
from kdc.pipeline.results.training import NotMeasured, StudentCosts

_SMALLER_FILES = "; --vocabulary auto makes files smaller"
Measured = Mapping[str, StudentCosts]  # by student: an id, a path, "layers:0,1,2", "conv", "static" or "teacher"


def fitting_students(measured: Measured, contract: Contract) -> list[str]:
    """Students that can keep the contract in some precision, the most promising first: those with layers before those
    without, then those with the most parameters; of as many, in the order of measuring."""
    # A dict keeps that order, which goes into fingerprints; a set's order differs between processes.
    fitting = {name: None for name, _, costs in _made(measured, contract) if not missed_costs(contract, costs)}
    return sorted(fitting, key=lambda name: (is_shallow(name), -measured[name].parameters))


def vector_bits(student: StudentCosts, contract: Contract) -> Literal[8, 4]:
    """In how many bits the numbers of a student's token vectors are stored in int8, where that was left to the
    contract: in 4 where the file would else be larger than the contract's size."""
    costs, most = student.variants.get("int8"), contract.limits.max_size_mb
    is_too_large = isinstance(costs, Costs) and most is not None and costs.size_mb > most
    return 4 if is_too_large and student.int8_4_bits is not None else 8


def table(measured: Measured, contract: Contract) -> list[str]:
    """A line for each student and precision: what was measured, and whether it is kept or why not."""
    rows = [("student", "variant", "M params", "ms", "rows/s", "MB", "")]
    for name, student in measured.items():
        for precision, found in student.variants.items():
            parameters = f"{student.parameters / 1e6:.1f}"
            if isinstance(found, NotMeasured):
                rows.append((name, precision, parameters, "-", "-", "-", f"dropped: {found.failed}"))
                continue
            costs, bits = _stored(student, precision, found, contract)
            missed = missed_costs(contract, costs)
            numbers = (f"{costs.latency_ms:.2f}", f"{costs.rows_per_s:.0f}", f"{costs.size_mb:.1f}")
            words = ", its token vectors in 4 bits" if bits == 4 else ""
            kept = "dropped: " + "; ".join(missed) if missed else f"kept{words}"
            rows.append((name, precision, parameters, *numbers, kept))
    return [f"  {line}" for line in aligned(rows, left=(6,)).splitlines()]


def nothing_fits(measured: Measured, contract: Contract) -> InputError:
    """The error where no student can keep the contract. It names the one that comes nearest, whose worst miss is the
    smallest, and the nearest of each other kind."""
    made = _made(measured, contract)
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


def _made(measured: Measured, contract: Contract) -> list[tuple[str, str, Costs]]:
    """Student, precision ("fp32", "int8", "fp16") and costs of all that could be made, as it would be stored."""
    return [
        (name, precision, _stored(student, precision, costs, contract)[0])
        for name, student in measured.items()
        for precision, costs in student.variants.items()
        if isinstance(costs, Costs)
    ]


def _stored(student: StudentCosts, precision: str, costs: Costs, contract: Contract) -> tuple[Costs, int]:
    """The costs of a student as it would be stored under a contract, and the bits of its token vectors' numbers."""
    small = student.int8_4_bits
    if precision == "int8" and small is not None and vector_bits(student, contract) == 4:
        return small, 4
    return costs, 8


def _worst_miss(costs: Costs, contract: Contract) -> float:
    """The largest ratio of a cost to its limit; above 1 where the limit is missed."""
    limits = contract.limits
    return max(
        costs.latency_ms / (limits.max_latency_ms or math.inf),
        costs.size_mb / (limits.max_size_mb or math.inf),
        (limits.min_rows_per_s or 0.0) / costs.rows_per_s,
    )
