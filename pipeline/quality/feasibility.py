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


def takes_fewer_pieces(student: StudentCosts, contract: Contract) -> bool:
    """Whether a student has a smaller vocabulary, where that was left to the contract: where all of its files would
    else be larger than the contract's size."""
    most, files = contract.limits.max_size_mb, [*student.variants.values(), student.int8_4_bits]
    sizes = [costs.size_mb for costs in files if isinstance(costs, Costs)]
    return student.fewer_pieces is not None and most is not None and bool(sizes) and min(sizes) > most


def vector_bits(student: StudentCosts, contract: Contract) -> Literal[8, 4]:
    """In how many bits the numbers of a student's token vectors are stored in int8, where that was left to the
    contract: in 4 where the file would else be larger than the contract's size."""
    student = _with_its_pieces(student, contract)
    costs, most = student.variants.get("int8"), contract.limits.max_size_mb
    is_too_large = isinstance(costs, Costs) and most is not None and costs.size_mb > most
    return 4 if is_too_large and student.int8_4_bits is not None else 8


def as_stored(student: StudentCosts, contract: Contract) -> StudentCosts:
    """What a student costs as a contract's size would have it stored."""
    student = _with_its_pieces(student, contract)
    if student.int8_4_bits is None or vector_bits(student, contract) == 8:
        return student
    return student.model_copy(update={"variants": student.variants | {"int8": student.int8_4_bits}})


def _with_its_pieces(student: StudentCosts, contract: Contract) -> StudentCosts:
    fewer = student.fewer_pieces
    return fewer if fewer is not None and takes_fewer_pieces(student, contract) else student


def table(measured: Measured, contract: Contract) -> list[str]:
    """A line for each student and precision: what was measured, and whether it is kept or why not."""
    rows = [("student", "variant", "M params", "ms", "rows/s", "MB", "")]
    for name, student in measured.items():
        stored = as_stored(student, contract)
        for precision, found in stored.variants.items():
            parameters = f"{stored.parameters / 1e6:.1f}"
            if isinstance(found, NotMeasured):
                rows.append((name, precision, parameters, "-", "-", "-", f"dropped: {found.failed}"))
                continue
            missed = missed_costs(contract, found)
            numbers = (f"{found.latency_ms:.2f}", f"{found.rows_per_s:.0f}", f"{found.size_mb:.1f}")
            kept = "dropped: " + "; ".join(missed) if missed else "kept"
            words = ", fewer pieces" if takes_fewer_pieces(student, contract) else ""
            words += ", token vectors in 4 bits" if found is stored.int8_4_bits else ""
            rows.append((name, precision, parameters, *numbers, kept + words))
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
    smaller = limits.max_size_mb is not None and all(each.fewer_pieces is None for each in measured.values())
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
        f"teacher (--teacher){_SMALLER_FILES if smaller else ''}",
    )


def _made(measured: Measured, contract: Contract) -> list[tuple[str, str, Costs]]:
    """Student, precision ("fp32", "int8", "fp16") and costs of all that could be made, as it would be stored."""
    return [
        (name, precision, costs)
        for name, student in measured.items()
        for precision, costs in as_stored(student, contract).variants.items()
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
