"""What all sections of a run's settings have in common."""

from typing import Any

from pydantic import BeforeValidator, ConfigDict

from kdc.common.frozen import Frozen


class Section(Frozen):
    """A group of settings that knows no other group."""

    # Defaults are validated too: 32 for a float becomes 32.0, as it does if a person gives it. Otherwise the two would
    # have different fingerprints, and a stage would be done again for nothing.
    model_config = ConfigDict(validate_default=True)


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise ValueError("a name between the commas is empty")
    return names


SPLIT = BeforeValidator(_split)  # of a setting with several names, which a person may separate by commas
