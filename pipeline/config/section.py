"""Base class of settings."""

from typing import Any

from pydantic import BeforeValidator, ConfigDict

from kdc.common.frozen import Frozen


class Section(Frozen):
    # Turns a float's default 32 into 32.0: else `--set x=32` would rerun a stage.
    model_config = ConfigDict(validate_default=True)


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise ValueError("a name between the commas is empty")
    return names


SPLIT = BeforeValidator(_split)
