"""What results of stages share."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from kdc.artifact.manifest import Scalar

Scores = dict[str, float]
Table = dict[str, dict[str, Scalar]]  # model -> column -> value
Points = list[tuple[int, float]]  # (step, value) of a curve


class Result(BaseModel):
    # NaN stays NaN in JSON: null is no number.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="constants")

    def to_json(self) -> dict[str, Any]:
        """Only fields that were set."""
        return self.model_dump(mode="json", exclude_unset=True)


class StageResult(Result):
    STAGE: ClassVar[str]

    headline: str = ""

    @property
    def line(self) -> str:
        """For the progress output."""
        return self.headline
