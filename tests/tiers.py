"""Parameters of which `make test` takes the first ones, and `make test-slow` the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def others_slow(values: Iterable[Any], fast: int = 1) -> list[Any]:
    """The values, of which all but so many first ones are for the slow tier."""
    return [
        value if place < fast else pytest.param(value, marks=pytest.mark.slow) for place, value in enumerate(values)
    ]
