"""The judgement: a contract, what was measured, and the verdict that follows from these numbers."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Annotated, Self

from pydantic import Field, model_validator

from kdc.artifact.contract.required import Found, judge_found
from kdc.artifact.contract.terms import MOST_TOKENS, Contract, Costs, Quality, Verdict
from kdc.common.frozen import Frozen

_STARVED = 0.1  # share of a model's threads without a core, from which on a time that is missed may be the neighbours'


class Judgement(Frozen):
    """A contract and whether an artifact kept it, as the manifest keeps it."""

    contract: Contract  # what was asked
    variant: str  # the one that was judged: "fp32", "int8", "cascade", ...
    provider: str  # ONNX Runtime's execution provider that ran it
    cpu: str  # model name of the CPU. Another one has another latency, and can have other int8 arithmetic
    threads: int = Field(ge=1, le=1024)  # of a forward pass when it was timed
    # tokens of the rows that were timed, so that other rows of these lengths can stand for them
    lengths: tuple[Annotated[int, Field(ge=1, le=MOST_TOKENS)], ...] = Field(min_length=1, max_length=100)
    costs: Costs  # measured under the contract's conditions
    quality: Quality | None = None  # the student beside its teacher; None where `max_drop` was not asked for
    required: tuple[Found, ...] = ()  # what was counted for each of the contract's requirements
    # whether quality and requirements were measured for this judgement, and are not those of an earlier one
    compared: bool
    missed: tuple[str, ...] = ()  # one sentence for each limit that does not hold, or is not shown to
    verdict: Verdict  # "not shown": no limit is missed for sure, but not all are shown to hold

    @property
    def look(self) -> int | None:
        """Which look at the evaluation rows the judgement was; None where it needed none."""
        if self.quality is not None:
            return self.quality.look
        return self.required[0].look if self.required else None

    @model_validator(mode="after")
    def _verdict_follows(self) -> Self:
        if (self.quality is None) is not (self.contract.limits.max_drop is None):
            raise ValueError("quality belongs to a max_drop, and a max_drop to quality")
        if tuple(each.requirement for each in self.required) != self.contract.limits.require:
            raise ValueError("what was counted is not what the contract requires")
        verdict, _ = decide(self.contract, self.costs, self.quality, self.required)
        if verdict != self.verdict:
            raise ValueError(f"the verdict {self.verdict} does not follow from the measurements, which give {verdict}")
        return self


def judge_costs(contract: Contract, costs: Costs) -> dict[str, tuple[Verdict, str]]:
    """For each limit on costs, by the name of its field: the verdict, and what is wrong in one sentence ("" where it is
    kept): the measurement, the limit, by how much.

    A time is kept where its whole interval keeps to the limit, missed where the whole interval lies beyond it, and else
    not shown. Nor is a miss shown where the model's threads were short of cores, and that explains it: it may have been
    the neighbours.
    """
    limits = contract.limits
    latency = f"p{contract.at.percentile:g} latency"
    checks = (
        ("max_latency_ms", latency, "ms", costs.latency_ms, costs.latency_interval, 1),
        ("max_size_mb", "size", "MB", costs.size_mb, None, 1),
        ("min_rows_per_s", "throughput", "rows/s", costs.rows_per_s, costs.rows_interval, -1),
    )
    verdicts: dict[str, tuple[Verdict, str]] = {}
    for field, name, unit, cost, interval, sign in checks:
        limit = getattr(limits, field)
        if limit is None:
            continue
        low, high = interval or (cost, cost)
        best, worst = (low, high) if sign > 0 else (high, low)
        # What the best of the interval would be with all cores.
        alone = best * (1 - costs.starved) if sign > 0 else best / max(1 - costs.starved, 1e-9)
        busy = field != "max_size_mb" and costs.starved >= _STARVED and sign * alone <= sign * limit
        seen = f"{name} is {cost:.4g} {unit}" + (f" ({low:.4g} to {high:.4g})" if interval else "")
        if sign * worst <= sign * limit:
            verdicts[field] = ("pass", "")
        elif sign * best <= sign * limit:
            verdicts[field] = ("not shown", f"{seen}, the limit {limit:g} lies within the interval")
        elif busy:
            why = f"other processes took {100 * costs.starved:.0f} % of the cores that it had threads for"
            verdicts[field] = ("not shown", f"{seen}, the limit {limit:g}, but {why}")
        else:
            off = f"{_percent(cost / limit)} {'above' if sign > 0 else 'below'}"
            verdicts[field] = ("fail", f"{seen}, the limit {limit:g}: {off}")
    return verdicts


def missed_costs(contract: Contract, costs: Costs) -> list[str]:
    """One sentence for each limit on costs that a model does not keep."""
    return [sentence for verdict, sentence in judge_costs(contract, costs).values() if verdict == "fail"]


def _percent(ratio: float) -> str:
    """How far a ratio is from 1, in percent."""
    off = 100 * abs(ratio - 1)
    return f"{off:.0f} %" if off >= 1 else f"{off:.1g} %"


def judge_drop(contract: Contract, quality: Quality | None) -> Verdict:
    """The verdict on `max_drop` alone; it is kept where it was not asked for, or the metric is not judged.

    It passes where the whole interval of the difference keeps to the limit, fails where the whole interval lies beyond
    it, and else is not shown: neither error is more likely than the confidence allows.
    """
    limit = contract.limits.max_drop
    if quality is None or limit is None:
        return "pass"
    low, high = quality.interval if contract.evidence == "interval" else (quality.difference, quality.difference)
    if high < -limit:
        return "fail"
    return "pass" if low >= -limit else "not shown"


def decide(
    contract: Contract, costs: Costs, quality: Quality | None, required: Sequence[Found] = ()
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and one sentence for each limit that is missed; where none is, for each that is not shown to hold.

    Args:
        contract: what was asked.
        costs: measured under its conditions.
        quality: None where the metric is not judged.
        required: what was counted for each requirement.
    """
    verdicts = list(judge_costs(contract, costs).values())
    limit = contract.limits.max_drop
    if quality is not None and limit is not None:
        verdicts.append((judge_drop(contract, quality), _drop_in_words(contract, quality, limit)))
    verdicts += [judge_found(found, contract.evidence) for found in required]
    for verdict in ("fail", "not shown"):
        sentences = tuple(sentence for each, sentence in verdicts if each == verdict)
        if sentences:
            return verdict, sentences
    return "pass", ()


def _drop_in_words(contract: Contract, quality: Quality, limit: float) -> str:
    verdict, lost = judge_drop(contract, quality), -quality.difference
    if verdict == "fail":
        return (
            f"{quality.metric} is {lost:.2f} points below {quality.other}'s, the limit {limit:g}: "
            f"{lost - limit:.2f} points too many"
        )
    rows = f"{quality.rows} evaluation rows"
    if quality.groups != quality.rows:
        rows += f" in {quality.groups} groups"
    sure = f"with {100 * spent(contract.confidence, quality.look):.4g} % confidence"
    if quality.rows_needed is None:
        return (
            f"{lost:.2f} points are lost, the limit is {limit:g}: {rows} do not show {sure} that more are lost, and "
            "more rows would not show that it is kept"
        )
    return (
        f"{rows} are too few to say {sure} whether at most {limit:g} points are lost; about {quality.rows_needed} rows "
        "would show it (power 80 %)"
    )


def spent(confidence: float, look: int) -> float:
    """The confidence that is left for a look at rows that were judged by before.

    The first look has an error of 1 - confidence, look k after it a part of 1 / (k (k - 1)) of that. These parts sum to
    1, so that however many models are judged by the rows, the chance that any of them passes wrongly is at most twice
    that of the first look alone: the error rate of both ends of its interval together.
    """
    return confidence if look == 1 else 1 - (1 - confidence) / (look * (look - 1))


def quantile_of(confidence: float) -> float:
    """Of the normal distribution, at the upper end of a two-sided interval."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
