"""Limits and conditions as people give them: checked, and put in place of an artifact's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kdc.artifact.contract.terms import Contract
from kdc.common.errors import InputError


def parse_conditions(text: str | None) -> dict[str, str]:
    """The conditions in a text such as `length=64,batch=1`, by name; none for None.

    Names and ranges are checked later, together with everything else.

    Raises:
        InputError: a part that is not `name=number`.
    """
    conditions: dict[str, str] = {}
    for part in text.split(",") if text is not None else ():
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not (name and sign and value):
            raise InputError(
                "--at wants name=number, separated by commas",
                given=part,
                remedy="for example --at length=64,batch=1,percentile=95,threads=2",
            )
        conditions[name] = value
    return conditions


def replace(contract: Contract, changes: Mapping[str, Any]) -> Contract:
    """A contract with some of its terms replaced.

    Args:
        contract: an artifact's, or an empty one.
        changes: limits by name, `at` as `parse_conditions` takes it, `evidence`, `confidence`. None changes nothing.

    Raises:
        InputError: an unknown condition, or a value that is not allowed.
    """
    new = {name: value for name, value in changes.items() if value is not None}
    terms = contract.model_dump()
    terms["at"] |= parse_conditions(new.pop("at", None))
    terms |= {name: new.pop(name) for name in ("evidence", "confidence") if name in new}
    terms["limits"] |= new
    try:
        return Contract.model_validate(terms)
    except ValidationError as error:
        problems = [f"{item['loc'][-1]}: {item['msg']} (given: {item['input']!r})" for item in error.errors()]
        raise InputError("wrong contract: " + "; ".join(problems), remedy="`kdc verify --help`") from None
