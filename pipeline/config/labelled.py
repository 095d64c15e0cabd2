"""The file that `kdc label` writes beside a table: who labelled it, and costs."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdc.artifact.question_forms import description_of
from kdc.common.errors import InputError

HOW, PEOPLE = "how", "people"  # a column, and its word for people's labels
_MOST_BYTES = 1 << 20


class Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    text: str  # column
    model: str = Field(pattern=r"^[^\p{C}]{1,200}$")
    how: dict[str, Annotated[int, Field(ge=0)]]  # texts by origin of their probabilities
    usd: float = Field(0.0, ge=0)  # logged answers cost nothing
    p50_ms: float | None = Field(None, ge=0)
    p95_ms: float | None = Field(None, ge=0)

    @property
    def usd_per_million_texts(self) -> float | None:
        """None without prices or answers."""
        answered = sum(self.how.values())
        return 1e6 * self.usd / answered if self.usd and answered else None


def read_description(table: Path | str | None) -> Description | None:
    """None for a table that `kdc label` did not write; InputError if damaged."""
    file = description_of(str(table))
    if table is None or not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            return Description.model_validate_json(stream.read(_MOST_BYTES))
    except (OSError, ValidationError):
        remedy = "make it again by kdc label, or remove it and name --text and --label"
        raise InputError("the description of a labelled table is damaged", given=file, remedy=remedy) from None
