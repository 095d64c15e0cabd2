"""Settings of decisions, measurements and the contract."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from kdc.artifact.contract.terms import Conditions, Contract, Evidence, Limits, Proof, Texts
from kdc.pipeline.config.aims import parse_abstain, parse_aim, parse_defer
from kdc.pipeline.config.section import Section


class OperatingSettings(Section):
    """Thresholds, abstention and label sets, chosen on the tuning set."""

    aims: Texts = ()
    evidence: Evidence = Field(
        "interval",
        description="how to check an aim's bound: interval (the tuning set shows, with an error of 5 %, that it holds "
        "on other rows) or point (it holds on the tuning set)",
    )
    abstain: str | None = None
    defer: Texts = ()
    sets: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="probability, such as 0.95, that a row's set of labels holds the true label; for three or more "
        "classes (default: no sets)",
    )

    question: Path | None = None

    @field_validator("aims")
    @classmethod
    def _can_be_read(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_aim(text)
        return value

    @field_validator("defer")
    @classmethod
    def _says_what_to_keep(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_defer(text)
        return value

    @field_validator("abstain", mode="before")
    @classmethod
    def _says_when(cls, value: Any) -> Any:
        if value is None:
            return None
        parse_abstain(str(value))
        return str(value)


class CascadeSettings(Section):
    """Stage `cascade`: a second model for rows that the student is unsure of."""

    second: Literal["off", "auto"] | Path | None = None
    max_drop: float = Field(
        0.1,
        ge=0,
        description="points of the metric that both models together may lose against the second model alone, on the "
        "tuning set; with contract.max_drop, half of that instead, against what the contract compares with",
    )


class EvaluateSettings(Section):
    """Stage `evaluate`: measure every model on the evaluation rows."""

    latency_rows: int = Field(100, ge=10, description="time this many rows one by one (p50, p95)")
    throughput_rows: int = Field(256, ge=32, description="time this many rows in batches of 32")
    rounds: int = Field(3, ge=1, description="timing rounds, in turns over all models; the median counts")
    memory: bool = Field(True, description="measure each model's peak memory in a process of its own")


class ContractSettings(Section, Proof, Limits):
    """Limits the artifact must keep. Nothing is judged if none is set."""

    search: Literal["quick", "full", "off"] = Field(
        "quick",
        description="search for the student that keeps the contract, by short trainings of candidates that can keep "
        "latency and size: quick (the three largest with layers, and three without), full (all) or off (train "
        "student.model; the default if it is set). The teacher itself is a candidate without training, if it can keep "
        "both",
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        description="hours that the short trainings may take; then kdc takes the best student so far (default: no "
        "limit)",
    )
    at: Conditions = Conditions()

    @property
    def terms(self) -> Contract | None:
        """The contract for the manifest; None if no limit is set."""
        if not self.set_ones:
            return None
        limits = Limits(**self.model_dump(include=set(Limits.model_fields)))
        return Contract(limits=limits, at=self.at, **self.model_dump(include=set(Proof.model_fields)))
