from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable model; refuses unknown fields, infinities, NaN, and half surrogate pairs (not UTF-8)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        str_max_length=2**30,  # pydantic checks surrogates only in limited strings
    )
