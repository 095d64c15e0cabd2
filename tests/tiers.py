"""Which tests run: parameters of `make test` and of `make test-slow`, and packages that may be missing."""

import importlib.util
from collections.abc import Iterable
from typing import Any

import pytest


def others_slow(values: Iterable[Any], fast: int = 1) -> list[Any]:
    """The values, of which all but so many first ones are for the slow tier."""
    return [
        value if place < fast else pytest.param(value, marks=pytest.mark.slow) for place, value in enumerate(values)
    ]


def installed(module: str) -> bool:
    """Whether a module, whose parent package may be missing too, can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
