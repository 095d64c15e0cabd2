"""The file beside a table that `kdc label` wrote: who labelled it, and what that cost."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdc.artifact.question_forms import description_of
from kdc.common.errors import InputError

HOW, PEOPLE = "how", "people"  # a column of the table, and its word for people's labels
_MOST_BYTES = 1 << 20


class Description(BaseModel):
    """The large model, and its answers to all texts."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    text: str  # column
    model: str = Field(pattern=r"^[^\p{C}]{1,200}$")
    how: dict[str, Annotated[int, Field(ge=0)]]  # answered texts, by the way their probabilities were found
    usd: float = Field(0.0, ge=0)  # logged answers cost nothing more
    p50_ms: float | None = Field(None, ge=0)
    p95_ms: float | None = Field(None, ge=0)

    @property
    def usd_per_million_texts(self) -> float | None:
        """None without prices or answers."""
        answered = sum(self.how.values())
        return 1e6 * self.usd / answered if self.usd and answered else None


def read_description(table: Path | str | None) -> Description | None:
    """None for a table that `kdc label` did not write.

    Raises:
        InputError: the file beside the table is damaged.
    """
    file = description_of(str(table))
    if table is None or not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            return Description.model_validate_json(stream.read(_MOST_BYTES))
    except (OSError, ValidationError):
        remedy = "make it again by kdc label, or remove it and name --text and --label"
        raise InputError("the description of a labelled table is damaged", given=file, remedy=remedy) from None
