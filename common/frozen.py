"""The base of every typed record that is kept as JSON: manifest, contract, settings, results of stages."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A pydantic model that cannot be changed and that refuses unknown fields, infinities and NaN; and text that is no
    Unicode, which no file in UTF-8 can hold: half of a surrogate pair."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        str_max_length=2**30,  # pydantic takes any text where there is no limit
    )
