"""A contract and how an artifact kept it. Part of the manifest."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from kdc.artifact.contract.decision import decide
from kdc.artifact.contract.terms import LONGEST, Contract, Costs, Quality, Verdict
from kdc.common.frozen import Frozen


class Judgement(Frozen):
    """A contract and how an artifact kept it.

    Attributes:
        contract: what was asked.
        variant, provider: what was judged.
        cpu: on which machine; another one means another latency, and can mean other int8 arithmetic.
        threads: of a forward pass when it was timed; None in artifacts of before this was kept.
        lengths: tokens of the rows that were timed; with these, other rows can stand for them.
        costs, quality: what was found; no quality where `max_drop` was not asked for.
        compared: whether the quality was found when this was judged, and not taken from the judgement before.
        missed: what does not hold, one sentence each.
        verdict: "pass"; "fail"; "not shown": nothing is missed, but the rows are too few to show it.
    """

    contract: Contract
    variant: str
    provider: str
    cpu: str
    threads: int | None = Field(default=None, ge=1, le=1024)
    lengths: tuple[Annotated[int, Field(ge=1, le=LONGEST)], ...] = Field(min_length=1, max_length=100)
    costs: Costs
    quality: Quality | None = None
    compared: bool = True
    missed: tuple[str, ...] = ()
    verdict: Verdict

    @model_validator(mode="after")
    def _follows(self) -> Judgement:
        if (self.quality is None) is not (self.contract.limits.max_drop is None):
            raise ValueError("quality belongs to a max_drop, and a max_drop to quality")
        verdict, _ = decide(self.contract, self.costs, self.quality)
        if verdict != self.verdict:
            raise ValueError(f"the verdict does not follow from what was found: {self.verdict}, not {verdict}")
        return self
