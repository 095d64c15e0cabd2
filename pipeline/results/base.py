"""What all results of stages have in common, and the forms of scores, tables and curves in them."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from kdc.artifact.manifest import Scalar

Scores = dict[str, float]
Table = dict[str, dict[str, Scalar]]  # evaluation: model -> column -> value, as in the manifest
Points = list[tuple[int, float]]  # points of a curve: the step, and the value there


class Result(BaseModel):
    """A part of what a stage hands on. Its JSON holds the fields that were set."""

    # A metric or a loss may be NaN; in JSON it stays one, since null could not be read as a number again.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="constants")

    def to_json(self) -> dict[str, Any]:
        """The fields that were set, as plain JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


class StageResult(Result):
    """What one stage hands on."""

    STAGE: ClassVar[str]  # the stage that returns it, whose folder holds it

    headline: str = ""  # one line for the person who watches

    @property
    def line(self) -> str:
        """What the progress output says of the finished stage; "" where there is nothing to say."""
        return self.headline
