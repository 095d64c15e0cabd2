"""A judgement for people: a table of limits and measurements, the verdict in a sentence, and what to try."""

from kdc.artifact.contract.judgement import Judgement, judge_drop
from kdc.common.errors import InputError
from kdc.common.tables import aligned

_FASTER = "fewer layers (of six: --student layers:0,5), a smaller --set data.max_length, more threads"
_SMALLER = "fewer layers (of six: --student layers:0,5), or a teacher with smaller embeddings"
_BETTER = (
    "more layers (of six: --student layers:0,1,2,5), texts without labels (--unlabeled FILE), longer training "
    "(--set student.min_steps=3000)"
)


def refuse_failed(judgement: Judgement | None, *, allow: bool) -> None:
    """Refuse an artifact that failed its contract, unless that is allowed.

    Raises:
        InputError: it failed.
    """
    if judgement is not None and judgement.verdict == "fail" and not allow:
        raise InputError(
            "the artifact failed its contract",
            given="; ".join(judgement.missed),
            remedy="make one that keeps it, or use it all the same with --allow-failed",
        )


def render(judgement: Judgement, before: Judgement | None = None) -> str:
    """The whole judgement in lines for a terminal, and one line on an earlier judgement."""
    lines = [aligned(table(judgement), left=range(4)), "", sentence(judgement)]
    lines += [f"try: {suggestion}" for suggestion in advice(judgement)]
    if before is not None:
        where = "this CPU" if before.cpu == judgement.cpu else f"another CPU, {before.cpu}"
        if before.threads not in (None, judgement.threads):
            where += f", with {before.threads} threads in place of {judgement.threads}"
        lines.append(f"when it was made, on {where}: {before.verdict}, {before.costs.latency_ms:.2f} ms")
    return "\n".join(lines)


def table(judgement: Judgement) -> list[list[str]]:
    """A header, then a line for each limit: what is limited, the limit, the measurement, whether it holds."""
    limits, at, costs, quality = judgement.contract.limits, judgement.contract.at, judgement.costs, judgement.quality
    length = "rows as they come" if at.length is None else f"{at.length} tokens"
    latency = f"p{at.percentile:g} latency, batch {at.batch}, {length}"
    # title, sign, limit, measurement, its digits, unit
    checks = (
        (latency, "<=", limits.max_latency_ms, costs.latency_ms, 2, " ms"),
        ("rows/s, batch 32", ">=", limits.min_rows_per_s, costs.rows_per_s, 0, ""),
        ("size", "<=", limits.max_size_mb, costs.size_mb, 2, " MB"),
    )
    rows = [["contract", "limit", "found", "holds"]]
    for title, sign, limit, cost, digits, unit in checks:
        if limit is not None:
            holds = cost <= limit if sign == "<=" else cost >= limit
            rows.append([title, f"{sign} {limit:g}{unit}", f"{cost:.{digits}f}{unit}", "yes" if holds else "no"])
    if limits.max_drop is not None and quality is not None:  # a judgement has both or neither
        low, high = quality.interval
        origin = "" if judgement.compared else ", as made"
        difference = f"{quality.difference:+.2f} ({low:+.2f} to {high:+.2f}){origin}"
        answer = {"pass": "yes", "fail": "no", "not shown": "not shown"}[judge_drop(judgement.contract, quality)]
        rows.append(
            [f"{quality.metric} against {quality.other}", f">= -{limits.max_drop:g} points", difference, answer]
        )
    return rows


def sentence(judgement: Judgement) -> str:
    """The verdict in one sentence."""
    quality, contract = judgement.quality, judgement.contract
    where = f"{judgement.variant} on {judgement.cpu}"
    unchecked = "" if judgement.compared else "; quality was not checked again"
    if judgement.verdict == "fail":
        return f"contract: fail ({where}): {'; '.join(judgement.missed)}{unchecked}"
    if judgement.verdict == "not shown" and quality is not None:
        more = "no number of rows would show it: the difference is at the limit"
        if quality.rows_needed is not None:
            more = f"about {quality.rows_needed} rows would show it (power 80 %)"
        return (
            f"contract: not shown ({where}): {quality.rows} evaluation rows are too few to say with "
            f"{100 * contract.confidence:g} % confidence that at most {contract.limits.max_drop:g} points are lost; "
            f"{more}{unchecked}"
        )
    return f"contract: pass ({where}){unchecked}"


def advice(judgement: Judgement) -> list[str]:
    """What to try, one line for each kind of miss; none where the contract is kept."""
    if judgement.verdict == "not shown":
        return ["more evaluation rows (--eval FILE), or --evidence point to judge by the difference alone"]
    limits, costs = judgement.contract.limits, judgement.costs
    suggestions = []
    if (limits.max_latency_ms is not None and costs.latency_ms > limits.max_latency_ms) or (
        limits.min_rows_per_s is not None and costs.rows_per_s < limits.min_rows_per_s
    ):
        suggestions.append(_FASTER)
    if limits.max_size_mb is not None and costs.size_mb > limits.max_size_mb:
        suggestions.append(_SMALLER)
    if judge_drop(judgement.contract, judgement.quality) == "fail":
        suggestions.append(_BETTER)
    return suggestions
