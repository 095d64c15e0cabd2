"""Students that can keep a contract, by costs measured before training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kdc.artifact.contract.judgement import missed_costs
from kdc.artifact.contract.terms import Contract, Costs
from kdc.common.errors import InputError, OutOfReach
from kdc.common.tables import aligned
from kdc.pipeline.config.student_kinds import kind_of
from kdc.pipeline.results.training import NotMeasured, StudentCosts

Measured = Mapping[str, StudentCosts]  # by student, as --student names it


def fitting_students(measured: Measured, contract: Contract) -> list[str]:
    """Students that can keep the contract. Those with layers come first, then larger ones."""
    # Not a set: the order enters fingerprints.
    fitting = {name: None for name, _, costs in _made(measured, contract) if not missed_costs(contract, costs)}
    return sorted(fitting, key=lambda name: (not kind_of(name).has_layers, -measured[name].parameters))


@dataclass(frozen=True)
class Stored:
    costs: StudentCosts  # its int8 costs hold for `bits`
    bits: Literal[8, 4] = 8  # of int8 token embeddings
    has_fewer_pieces: bool = False


def as_stored(student: StudentCosts, contract: Contract) -> Stored:
    """The full form, if it is small enough. Otherwise the first smaller form that keeps the contract, or the last."""
    most, forms = contract.limits.max_size_mb, _forms(student)
    if most is None or min((costs.size_mb for costs in costs_of(student).values()), default=0.0) <= most:
        return forms[0]
    for form in forms:
        if any(not missed_costs(contract, costs) for costs in costs_of(form.costs).values()):
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


def costs_of(student: StudentCosts) -> dict[str, Costs]:
    return {precision: costs for precision, costs in student.variants.items() if isinstance(costs, Costs)}


def table(measured: Measured, contract: Contract) -> list[str]:
    rows = [("student", "variant", "M params", "ms", "rows/s", "MB", "")]
    for name, student in measured.items():
        stored = as_stored(student, contract)
        for precision, costs in stored.costs.variants.items():
            parameters = f"{stored.costs.parameters / 1e6:.1f}"
            if isinstance(costs, NotMeasured):
                rows.append((name, precision, parameters, "-", "-", "-", f"dropped: {costs.failed}"))
                continue
            missed = missed_costs(contract, costs)
            words = "dropped: " + "; ".join(missed) if missed else "kept"
            words += ", fewer pieces" if stored.has_fewer_pieces else ""
            words += ", token vectors in 4 bits" if stored.bits == 4 and precision == "int8" else ""
            numbers = (f"{costs.latency_ms:.2f}", f"{costs.rows_per_s:.0f}", f"{costs.size_mb:.1f}")
            rows.append((name, precision, parameters, *numbers, words))
    return [f"  {line}" for line in aligned(rows, left=(6,)).splitlines()]


def nothing_fits(measured: Measured, contract: Contract, *, has_whole: bool = False) -> InputError:
    """The error. `has_whole`: students had the whole vocabulary."""
    made = sorted(_made(measured, contract), key=lambda form: _worst_miss(form[2], contract))
    if not made:
        return InputError("no candidate could be exported", given=", ".join(measured), remedy="see the lines above")
    (name, precision, costs), limits = made[0], contract.limits
    possible = (
        (limits.max_latency_ms, f"--max-latency-ms {1.1 * costs.latency_ms:.3g}"),
        (limits.max_size_mb, f"--max-size-mb {costs.size_mb + 0.1:.1f}"),
        (limits.min_rows_per_s, f"--set contract.min_rows_per_s={0.9 * costs.rows_per_s:.0f}"),
    )
    reachable = " ".join(option for limit, option in possible if limit is not None)
    remedy = f"ask for what {name} in {precision} keeps ({reachable}), a smaller --student, or a smaller --teacher"
    if limits.max_size_mb is not None and has_whole:
        remedy += "; --set student.vocabulary=auto makes files smaller"
    given = f"the nearest is {name} in {precision}: {'; '.join(missed_costs(contract, costs))}"
    return OutOfReach("no possible student keeps the contract, so nothing was trained", given=given, remedy=remedy)


def _made(measured: Measured, contract: Contract) -> list[tuple[str, str, Costs]]:
    return [
        (name, precision, costs)
        for name, student in measured.items()
        for precision, costs in costs_of(as_stored(student, contract).costs).items()
    ]


def _worst_miss(costs: Costs, contract: Contract) -> float:
    limits = contract.limits
    return max(
        costs.latency_ms / (limits.max_latency_ms or math.inf),
        costs.size_mb / (limits.max_size_mb or math.inf),
        (limits.min_rows_per_s or 0.0) / costs.rows_per_s,
    )
