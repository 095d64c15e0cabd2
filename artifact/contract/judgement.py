from collections.abc import Sequence
from statistics import NormalDist
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from kdc.artifact.contract.terms import (
    MOST_TOKENS,
    MOST_WINDOWS,
    Contract,
    Costs,
    Evidence,
    Quality,
    RequiredShare,
    Verdict,
)
from kdc.common.frozen import Frozen

_STARVED = 0.1  # a missed time is excused if this share of the threads had no core
_Length = Annotated[int, Field(ge=1, le=MOST_WINDOWS * MOST_TOKENS)]  # of a row


class Check(NamedTuple):
    limit: str  # name in `Limits`
    title: str  # what is limited
    bound: str  # limit with sign and unit
    measured: str  # with confidence interval and unit
    verdict: Verdict
    problem: str


class Judgement(Frozen):
    contract: Contract
    variant: str
    provider: str  # ONNX Runtime's
    cpu: str  # model name
    threads: int = Field(ge=1, le=1024)  # of the timed pass
    # Tokens of timed rows, for `kdc verify`.
    lengths: tuple[_Length, ...] = Field(min_length=1, max_length=100)
    costs: Costs
    quality: Quality | None = None  # None without `max_drop`
    required: tuple[RequiredShare, ...] = ()
    # False if quality and requirements come from an earlier judgement.
    compared: bool
    missed: tuple[str, ...] = ()  # from `decide`
    verdict: Verdict

    @property
    def look(self) -> int | None:
        if self.quality is not None:
            return self.quality.look
        return self.required[0].look if self.required else None

    @property
    def checks(self) -> list[Check]:
        return checks_of(self.contract, self.costs, self.quality, self.required)

    @model_validator(mode="after")
    def _verdict_follows(self) -> Self:
        if (self.quality is None) is not (self.contract.limits.max_drop is None):
            raise ValueError("quality needs a max_drop, and a max_drop needs quality")
        if tuple(share.requirement for share in self.required) != self.contract.limits.require:
            raise ValueError("the shares do not fit the contract's requirements")
        verdict, _ = decide(self.contract, self.costs, self.quality, self.required)
        if verdict != self.verdict:
            raise ValueError(f"the verdict {self.verdict} does not follow from the measurements, which give {verdict}")
        return self


def decide(
    contract: Contract, costs: Costs, quality: Quality | None, required: Sequence[RequiredShare] = ()
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and a sentence for each failed limit, else for each not shown."""
    checks = checks_of(contract, costs, quality, required)
    verdicts: tuple[Verdict, ...] = ("fail", "not shown")
    for verdict in verdicts:
        if problems := tuple(check.problem for check in checks if check.verdict == verdict):
            return verdict, problems
    return "pass", ()


def checks_of(
    contract: Contract, costs: Costs, quality: Quality | None, required: Sequence[RequiredShare]
) -> list[Check]:
    checks = _cost_checks(contract, costs)
    limit = contract.limits.max_drop
    if quality is not None and limit is not None:
        title, bound = f"{quality.metric} against {quality.other}", f">= -{limit:g} points"
        low, high = quality.interval
        measured = f"{quality.difference:+.2f} ({low:+.2f} to {high:+.2f})"
        problem = _drop_in_words(contract, quality, limit)
        checks.append(Check("max_drop", title, bound, measured, judge_drop(contract, quality), problem))
    for share in required:
        asked, verdict = share.asked, judge_share(share, contract.evidence)
        bound = f"{'<=' if asked.is_most else '>='} {100 * asked.value:g} %"
        measured = f"{share.rate.text} %" if share.rate.of else "no row"
        checks.append(Check("require", asked.name, bound, measured, verdict, _share_in_words(share, verdict)))
    return checks


def missed_costs(contract: Contract, costs: Costs) -> list[str]:
    return [check.problem for check in _cost_checks(contract, costs) if check.verdict == "fail"]


def _cost_checks(contract: Contract, costs: Costs) -> list[Check]:
    at, latency = contract.at, f"p{contract.at.percentile:g} latency"
    length = "rows as they come" if at.length is None else f"{at.length} tokens"
    measurements = (  # limit, name, conditions, unit, value, interval
        ("max_latency_ms", latency, f", batch {at.batch}, {length}", "ms", costs.latency_ms, costs.latency_interval),
        ("max_size_mb", "size", "", "MB", costs.size_mb, None),
        ("min_rows_per_s", "throughput", ", batch 32", "rows/s", costs.rows_per_s, costs.rows_interval),
    )
    checks = []
    for field, name, conditions, unit, cost, interval in measurements:
        limit, at_most = getattr(contract.limits, field), field != "min_rows_per_s"
        if limit is None:
            continue
        low, high = interval or (cost, cost)
        verdict = _verdict(low, high, limit, at_most=at_most)
        problem = f"{name} is {_measured(cost, interval, unit, '.4g')}, the limit {limit:g}"
        if verdict == "not shown":
            problem += " lies within the interval"
        elif verdict == "fail" and field != "max_size_mb" and _is_neighbours(low, high, limit, costs.starved, at_most):
            verdict = "not shown"
            problem += f", but other processes took {100 * costs.starved:.0f} % of its threads' cores"
        elif verdict == "fail":
            problem += f": {_percent(cost / limit)} {'above' if at_most else 'below'}"
        sign, measured = "<=" if at_most else ">=", _measured(cost, interval, unit, ".2f" if at_most else ".0f")
        checks.append(Check(field, name + conditions, f"{sign} {limit:g} {unit}", measured, verdict, problem))
    return checks


def _measured(cost: float, interval: tuple[float, float] | None, unit: str, form: str) -> str:
    return f"{cost:{form}} {unit}" + (f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else "")


def _is_neighbours(low: float, high: float, limit: float, starved: float, at_most: bool) -> bool:
    """Whether the limit would hold if every thread had a core."""
    free = max(1 - starved, 1e-9)
    return starved >= _STARVED and (low * free <= limit if at_most else high / free >= limit)


def _percent(ratio: float) -> str:
    off = 100 * abs(ratio - 1)
    return f"{off:.0f} %" if off >= 1 else f"{off:.1g} %"


def _verdict(low: float, high: float, limit: float, *, at_most: bool = False) -> Verdict:
    """Pass or fail only if the whole interval does."""
    worst, best, sign = (high, low, -1) if at_most else (low, high, 1)
    if sign * worst >= sign * limit:
        return "pass"
    return "not shown" if sign * best >= sign * limit else "fail"


def judge_drop(contract: Contract, quality: Quality | None) -> Verdict:
    limit = contract.limits.max_drop
    if quality is None or limit is None:
        return "pass"
    low, high = quality.interval if contract.evidence == "interval" else (quality.difference, quality.difference)
    return _verdict(low, high, -limit)


def judge_share(share: RequiredShare, evidence: Evidence) -> Verdict:
    rate = share.rate
    if rate.value is None:
        return "not shown"
    low, high = (rate.low, rate.high) if evidence == "interval" else (rate.value, rate.value)
    return _verdict(low, high, share.asked.value, at_most=share.asked.is_most)


def _share_in_words(share: RequiredShare, verdict: Verdict) -> str:
    if not share.rate.of:
        return f"{share.requirement}: no evaluation row to measure it on"
    counted = f"{share.requirement}: {share.rate.text} % of {share.rate.of} evaluation rows"
    return f"{counted}, too few to say" if verdict == "not shown" else counted


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
            "more rows would not show that it holds"
        )
    return (
        f"{rows} are too few to say {sure} whether at most {limit:g} points are lost; about {quality.rows_needed} rows "
        "would show it (power 80 %)"
    )


def spent(confidence: float, look: int) -> float:
    """Confidence for this look at the evaluation set.

    The first look may err with probability 1 - confidence, look k with 1 / (k (k - 1)) of that. The fractions sum to 1,
    so all looks err at most twice as often as the first.
    """
    return confidence if look == 1 else 1 - (1 - confidence) / (look * (look - 1))


def quantile_of(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
