"""A judgement for people: a table of limits and measurements, the verdict in a sentence, and what to try."""

from kdc.artifact.contract.judgement import Judgement, judge_costs, judge_drop
from kdc.artifact.contract.required import judge_found
from kdc.common.errors import InputError
from kdc.common.tables import aligned

_FASTER = (
    "fewer layers (of six: --student layers:0,5) or none (--student conv), a smaller --set data.max_length, "
    "more threads"
)
_SMALLER = (
    "fewer layers (of six: --student layers:0,5) or none (--student conv), token vectors in 4 bits (--set "
    "quantize.vector_bits=4), or a teacher with smaller embeddings"
)
_BETTER = (
    "more layers (of six: --student layers:0,1,2,5), texts without labels (--unlabeled FILE), longer training "
    "(--set student.min_steps=3000)"
)
_OTHER_DECISIONS = (
    "other decisions: an --abstain, or an --aim (of two classes or labels apart), that leaves more of what is "
    "required; or a better student"
)
_MORE_ROWS = "more evaluation rows (--eval FILE), or --set contract.evidence=point to judge by what was measured alone"
_QUIETER = "`kdc verify ARTIFACT` while nothing else runs on this machine, or a limit that leaves it some room"
_HOLDS = {"pass": "yes", "fail": "no", "not shown": "not shown"}


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
        if before.threads != judgement.threads:
            where += f", with {before.threads} threads in place of {judgement.threads}"
        lines.append(f"when it was made, on {where}: {before.verdict}, {before.costs.latency_ms:.2f} ms")
    return "\n".join(lines)


def table(judgement: Judgement) -> list[list[str]]:
    """A header, then a line for each limit: what is limited, the limit, the measurement, whether it holds."""
    limits, at, costs, quality = judgement.contract.limits, judgement.contract.at, judgement.costs, judgement.quality
    length = "rows as they come" if at.length is None else f"{at.length} tokens"
    latency = f"p{at.percentile:g} latency, batch {at.batch}, {length}"
    # title, sign, measurement, its interval, digits, unit
    shown = {
        "max_latency_ms": (latency, "<=", costs.latency_ms, costs.latency_interval, 2, " ms"),
        "min_rows_per_s": ("rows/s, batch 32", ">=", costs.rows_per_s, costs.rows_interval, 0, ""),
        "max_size_mb": ("size", "<=", costs.size_mb, None, 2, " MB"),
    }
    rows = [["contract", "limit", "found", "holds"]]
    verdicts = judge_costs(judgement.contract, costs)
    for field, (title, sign, cost, interval, digits, unit) in shown.items():
        if field in verdicts:
            found = f"{cost:.{digits}f}{unit}"
            if interval is not None:
                found += f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"
            rows.append([title, f"{sign} {getattr(limits, field):g}{unit}", found, _HOLDS[verdicts[field][0]]])
    if limits.max_drop is not None and quality is not None:  # a judgement has both or neither
        low, high = quality.interval
        origin = "" if judgement.compared else ", as made"
        difference = f"{quality.difference:+.2f} ({low:+.2f} to {high:+.2f}){origin}"
        answer = _HOLDS[judge_drop(judgement.contract, quality)]
        rows.append(
            [f"{quality.metric} against {quality.other}", f">= -{limits.max_drop:g} points", difference, answer]
        )
    for each in judgement.required:
        counted = f"{each.rate.text} %" if each.rate.of else "no row"
        counted += "" if judgement.compared else ", as made"
        answer = _HOLDS[judge_found(each, judgement.contract.evidence)[0]]
        limit = f"{'<=' if each.asked.is_most else '>='} {100 * each.asked.value:g} %"
        rows.append([each.asked.name, limit, counted, answer])
    return rows


def sentence(judgement: Judgement) -> str:
    """The verdict in one sentence."""
    why = f": {'; '.join(judgement.missed)}" if judgement.missed else ""
    look = "" if judgement.look in (None, 1) else f"; {_looks(judgement.look)}"
    unchecked = "" if judgement.compared else "; quality was not checked again"
    return f"contract: {judgement.verdict} ({judgement.variant} on {judgement.cpu}){why}{look}{unchecked}"


def _looks(look: int | None) -> str:
    return f"{look} models of this run were judged by these rows by now, and the interval is wider for it"


def advice(judgement: Judgement) -> list[str]:
    """What to try, one line for each kind of miss; none where the contract is kept."""
    verdicts = {field: verdict for field, (verdict, _) in judge_costs(judgement.contract, judgement.costs).items()}
    verdicts["max_drop"] = judge_drop(judgement.contract, judgement.quality)
    shares = {judge_found(found, judgement.contract.evidence)[0] for found in judgement.required}
    suggestions = []
    if judgement.verdict == "not shown":
        if "not shown" in (verdicts["max_drop"], *shares):
            suggestions.append(_MORE_ROWS)
        if "not shown" in (verdicts.get("max_latency_ms"), verdicts.get("min_rows_per_s")):
            suggestions.append(_QUIETER)
        return suggestions
    if "fail" in (verdicts.get("max_latency_ms"), verdicts.get("min_rows_per_s")):
        suggestions.append(_FASTER)
    if verdicts.get("max_size_mb") == "fail":
        suggestions.append(_SMALLER)
    if verdicts["max_drop"] == "fail":
        suggestions.append(_BETTER)
    if "fail" in shares:
        suggestions.append(_OTHER_DECISIONS)
    return suggestions
