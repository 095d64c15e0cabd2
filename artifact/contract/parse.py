"""Limits and conditions as people give them: checked, and put in place of an artifact's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kdc.artifact.contract.terms import Contract
from kdc.common.errors import InputError


def parse_conditions(text: str | None) -> dict[str, str]:
    """`length=64,batch=1` by name.

    Raises:
        InputError: a part that is no `name=number`. Names and ranges are checked with all the rest.
    """
    found: dict[str, str] = {}
    for part in text.split(",") if text is not None else ():
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not (name and sign and value):
            raise InputError(
                "--at wants name=number, separated by commas",
                given=part,
                remedy="for example --at length=64,batch=1,percentile=95,threads=2",
            )
        found[name] = value
    return found


def replace(contract: Contract, given: Mapping[str, Any]) -> Contract:
    """A contract with what was given in place of its own.

    Args:
        contract: an artifact's, or an empty one.
        given: limits by name, `at` as `parse_conditions` takes it, `evidence`, `confidence`; None where nothing was
            said.

    Raises:
        InputError: a value or a condition that cannot be.
    """
    said = {name: value for name, value in given.items() if value is not None}
    changed = contract.model_dump()
    changed["at"] |= parse_conditions(said.pop("at", None))
    changed |= {name: said.pop(name) for name in ("evidence", "confidence") if name in said}
    changed["limits"] |= said
    try:
        return Contract.model_validate(changed)
    except ValidationError as error:
        problems = [f"{item['loc'][-1]}: {item['msg']} (given: {item['input']!r})" for item in error.errors()]
        raise InputError("wrong contract: " + "; ".join(problems), remedy="`kdc verify --help`") from None
