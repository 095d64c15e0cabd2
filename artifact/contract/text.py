"""A judgement for people: a table of what was asked and found, the verdict, and what to try."""

from __future__ import annotations

from kdc.artifact.contract.judgement import Judgement
from kdc.common.errors import InputError

_TRY = {
    "latency": "fewer layers (of six: --student layers:0,5), a smaller --set data.max_length, more threads",
    "throughput": "fewer layers (of six: --student layers:0,5), a smaller --set data.max_length, more threads",
    "size": "fewer layers (of six: --student layers:0,5), or a teacher with smaller embeddings",
    "quality": "more layers (of six: --student layers:0,1,2,5), texts without labels (--unlabeled FILE), longer "
    "training (--set student.min_steps=3000)",
}


def refuse_failed(judgement: Judgement | None, *, allow: bool) -> None:
    """See that an artifact did not fail its contract.

    Raises:
        InputError: it did, and that was not allowed.
    """
    if judgement is not None and judgement.verdict == "fail" and not allow:
        raise InputError(
            "the artifact failed its contract",
            given="; ".join(judgement.missed),
            remedy="make one that keeps it, or use it all the same with --allow-failed",
        )


def render(judgement: Judgement, before: Judgement | None = None) -> str:
    """The whole judgement in lines for a terminal, with one on the judgement before it."""
    rows = table(judgement)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", sentence(judgement)]
    lines += [f"try: {what}" for what in advice(judgement)]
    if before is not None:
        where = "this CPU" if before.cpu == judgement.cpu else f"another CPU, {before.cpu}"
        if before.threads not in (None, judgement.threads):
            where += f", with {before.threads} threads in place of {judgement.threads}"
        lines.append(f"when it was made, on {where}: {before.verdict}, {before.costs.latency_ms:.2f} ms")
    return "\n".join(lines)


def table(judgement: Judgement) -> list[list[str]]:
    """Header, then a line for each limit: what, limit, found, whether it holds."""
    limits, at, costs, quality = (judgement.contract.limits, judgement.contract.at, judgement.costs, judgement.quality)
    rows = [["contract", "limit", "found", "holds"]]
    if limits.max_latency_ms is not None:
        length = "rows as they come" if at.length is None else f"{at.length} tokens"
        what = f"p{at.percentile:g} latency, batch {at.batch}, {length}"
        holds = costs.latency_ms <= limits.max_latency_ms
        rows.append([what, f"<= {limits.max_latency_ms:g} ms", f"{costs.latency_ms:.2f} ms", _yes(holds)])
    if limits.min_rows_per_s is not None:
        holds = costs.rows_per_s >= limits.min_rows_per_s
        rows.append(["rows/s, batch 32", f">= {limits.min_rows_per_s:g}", f"{costs.rows_per_s:.0f}", _yes(holds)])
    if limits.max_size_mb is not None:
        holds = costs.size_mb <= limits.max_size_mb
        rows.append(["size", f"<= {limits.max_size_mb:g} MB", f"{costs.size_mb:.2f} MB", _yes(holds)])
    if limits.max_drop is not None:
        what, limit = (
            f"{quality.metric if quality else 'metric'} against the teacher",
            f">= -{limits.max_drop:g} points",
        )
        assert quality is not None
        low, high = quality.interval
        found = f"{quality.difference:+.2f} ({low:+.2f} to {high:+.2f})" + (not judgement.compared) * ", as made"
        rows.append([what, limit, found, _holds(judgement)])
    return rows


def sentence(judgement: Judgement) -> str:
    """The verdict in one sentence."""
    quality, contract = judgement.quality, judgement.contract
    where = f"{judgement.variant} on {judgement.cpu}"
    unchecked = "" if judgement.compared else "; quality was not checked again"
    if judgement.verdict == "fail":
        return f"contract: fail ({where}): {'; '.join(judgement.missed)}{unchecked}"
    if judgement.verdict == "not shown" and quality is not None:
        more = (
            "no number of rows would show it: the difference is at the limit"
            if quality.rows_needed is None
            else f"about {quality.rows_needed} rows would show it (power 80 %)"
        )
        return (
            f"contract: not shown ({where}): {quality.rows} evaluation rows are too few to say with "
            f"{100 * contract.confidence:g} % confidence that at most {contract.limits.max_drop:g} points are lost; "
            f"{more}{unchecked}"
        )
    return f"contract: pass ({where}){unchecked}"


def advice(judgement: Judgement) -> list[str]:
    """What to try, one line for each kind of miss; nothing where the contract is kept."""
    if judgement.verdict == "not shown":
        return ["more evaluation rows (--eval FILE), or --evidence point to judge by the difference alone"]
    missed = [
        part
        for part in ("latency", "throughput", "size")
        if any(part in missed_one.split(" is ")[0] for missed_one in judgement.missed)
    ]
    if judgement.quality is not None and _holds(judgement) == "no":
        missed.append("quality")
    return list(dict.fromkeys(_TRY[part] for part in missed))


def _holds(judgement: Judgement) -> str:
    quality, limit = judgement.quality, judgement.contract.limits.max_drop
    assert quality is not None and limit is not None  # noqa: PT018 - asked by the callers
    if quality.difference < -limit:
        return "no"
    shown = judgement.contract.evidence == "point" or quality.interval[0] >= -limit
    return "yes" if shown else "not shown"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
