"""What all sections of a run's settings have in common."""

from pydantic import ConfigDict

from kdc.common.frozen import Frozen


class Section(Frozen):
    """A group of settings that knows no other group."""

    # Defaults are validated too: 32 for a float becomes 32.0, as it does where a person gives it. Otherwise the two
    # would have different fingerprints, and a stage would be done again for nothing.
    model_config = ConfigDict(validate_default=True)
