"""The judgement: a contract, what was measured, and the verdict, as the manifest keeps it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from kdc.artifact.contract.decision import decide
from kdc.artifact.contract.terms import LONGEST, Contract, Costs, Quality, Verdict
from kdc.common.frozen import Frozen


class Judgement(Frozen):
    """A contract and whether an artifact kept it.

    Attributes:
        contract: what was asked.
        variant: the variant that was judged: "fp32", "int8" or "fp16".
        provider: ONNX Runtime's execution provider that ran it.
        cpu: model name of the CPU. Another one has another latency, and can have other int8 arithmetic.
        threads: threads of a forward pass when it was timed; None in artifacts of versions that did not record it.
        lengths: tokens of the rows that were timed, so that other rows of these lengths can stand for them.
        costs: what was measured under the contract's conditions.
        quality: the student beside its teacher; None where `max_drop` was not asked for.
        compared: whether the quality was measured for this judgement; False where it is that of an earlier one.
        missed: one sentence for each limit that does not hold.
        verdict: "pass"; "fail"; or "not shown": no limit is missed, but the rows are too few to show it.
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
    def _verdict_follows(self) -> Judgement:
        if (self.quality is None) is not (self.contract.limits.max_drop is None):
            raise ValueError("quality belongs to a max_drop, and a max_drop to quality")
        verdict, _ = decide(self.contract, self.costs, self.quality)
        if verdict != self.verdict:
            raise ValueError(f"the verdict {self.verdict} does not follow from the measurements, which give {verdict}")
        return self
