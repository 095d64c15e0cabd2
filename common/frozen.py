"""Base of records kept as JSON."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable; refuses unknown fields, infinities, NaN, and half surrogate pairs (not UTF-8)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        str_max_length=2**30,  # only limited strings are checked for surrogates
    )
