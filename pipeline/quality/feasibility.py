"""Which students can keep a contract, by the costs that were measured of them untrained. Plain values in and out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kdc.artifact.contract.judgement import missed_costs
from kdc.artifact.contract.terms import Contract, Costs
from kdc.common.errors import InputError
from kdc.common.tables import aligned
from kdc.pipeline.config.student_kinds import kind_of
from kdc.pipeline.results.training import NotMeasured, StudentCosts

_SMALLER_FILES = "; --set student.vocabulary=auto makes files smaller"
Measured = Mapping[str, StudentCosts]  # by student: an id, a path, "layers:0,1,2", "conv", "static" or "teacher"


def fitting_students(measured: Measured, contract: Contract) -> list[str]:
    """Students that can keep the contract in some precision, the most promising first: those with layers before those
    without, then those with the most parameters; of as many, in the order of measuring."""
    # A dict keeps that order, which goes into fingerprints; a set's order differs between processes.
    fitting = {name: None for name, _, costs in _made(measured, contract) if not missed_costs(contract, costs)}
    return sorted(fitting, key=lambda name: (not kind_of(name).has_layers, -measured[name].parameters))


@dataclass(frozen=True)
class Stored:
    """How a student would be stored, where that is left to the contract's size, and what it then costs."""

    costs: StudentCosts  # of int8 in so many bits
    bits: Literal[8, 4] = 8  # of each number of a token's vector in int8
    has_fewer_pieces: bool = False  # whether its vocabulary is a smaller one


def as_stored(student: StudentCosts, contract: Contract) -> Stored:
    """A student's own form, with all pieces in 8 bits, unless that is too large. Then the first other form that keeps
    the contract: in 4 bits, with fewer pieces in 8, in 4, since each of these costs accuracy; where none does, the
    smallest. So a student that is too slow is stored no other way."""
    most, forms = contract.limits.max_size_mb, _forms(student)
    if most is None or _smallest_mb(student) <= most:
        return forms[0]
    for form in forms:
        if any(isinstance(each, Costs) and not missed_costs(contract, each) for each in form.costs.variants.values()):
            return form
    return forms[-1]


def _forms(student: StudentCosts) -> list[Stored]:
    forms = []
    for costs, fewer in ((student, False), (student.fewer_pieces, True)):
        if costs is not None:
            forms.append(Stored(costs, has_fewer_pieces=fewer))
            if costs.int8_4_bits is not None:
                in_4_bits = costs.model_copy(update={"variants": costs.variants | {"int8": costs.int8_4_bits}})
                forms.append(Stored(in_4_bits, 4, fewer))
    return forms


def _smallest_mb(student: StudentCosts) -> float:
    return min((costs.size_mb for costs in student.variants.values() if isinstance(costs, Costs)), default=0.0)


def table(measured: Measured, contract: Contract) -> list[str]:
    """A line for each student and precision: what was measured, and whether it is kept or why not."""
    rows = [("student", "variant", "M params", "ms", "rows/s", "MB", "")]
    for name, student in measured.items():
        stored = as_stored(student, contract)
        for precision, found in stored.costs.variants.items():
            parameters = f"{stored.costs.parameters / 1e6:.1f}"
            if isinstance(found, NotMeasured):
                rows.append((name, precision, parameters, "-", "-", "-", f"dropped: {found.failed}"))
                continue
            missed = missed_costs(contract, found)
            numbers = (f"{found.latency_ms:.2f}", f"{found.rows_per_s:.0f}", f"{found.size_mb:.1f}")
            kept = "dropped: " + "; ".join(missed) if missed else "kept"
            words = ", fewer pieces" if stored.has_fewer_pieces else ""
            words += ", token vectors in 4 bits" if stored.bits == 4 and precision == "int8" else ""
            rows.append((name, precision, parameters, *numbers, kept + words))
    return [f"  {line}" for line in aligned(rows, left=(6,)).splitlines()]


def nothing_fits(measured: Measured, contract: Contract, *, has_whole: bool = False) -> InputError:
    """The error where no student can keep the contract. It names the one that comes nearest, whose worst miss is the
    smallest, and the nearest of each other kind; and, where students were to have the whole vocabulary (`has_whole`)
    and files are too large, what makes them smaller."""
    made = _made(measured, contract)
    if not made:
        return InputError("no candidate could be exported", given=", ".join(measured), remedy="see the lines above")
    nearest: dict[str, tuple[str, str, Costs]] = {}  # by kind, the nearest of all first
    for each in sorted(made, key=lambda each: _worst_miss(each[2], contract)):
        nearest.setdefault(kind_of(each[0]).name or each[0], each)
    name, precision, costs = next(iter(nearest.values()))
    missed = [f"{other} in {form}: {'; '.join(missed_costs(contract, each))}" for other, form, each in nearest.values()]
    limits = contract.limits
    smaller = limits.max_size_mb is not None and has_whole
    possible = (
        (limits.max_latency_ms, f"--max-latency-ms {1.1 * costs.latency_ms:.3g}"),
        (limits.max_size_mb, f"--max-size-mb {costs.size_mb + 0.1:.1f}"),
        (limits.min_rows_per_s, f"--set contract.min_rows_per_s={0.9 * costs.rows_per_s:.0f}"),
    )
    reachable = " ".join(option for limit, option in possible if limit is not None)
    return InputError(
        "no student that could come out keeps the contract, so nothing was trained",
        given="the nearest is " + "\n    then ".join(missed),
        remedy=f"ask for what {name} in {precision} keeps ({reachable}), for a smaller --student, or bring a smaller "
        f"teacher (--teacher){_SMALLER_FILES if smaller else ''}",
    )


def _made(measured: Measured, contract: Contract) -> list[tuple[str, str, Costs]]:
    """Student, precision ("fp32", "int8", "fp16") and costs of all that could be made, as it would be stored."""
    return [
        (name, precision, costs)
        for name, student in measured.items()
        for precision, costs in as_stored(student, contract).costs.variants.items()
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
