from kdc.artifact.contract.judgement import Judgement
from kdc.common.errors import InputError
from kdc.common.tables import aligned

_FASTER = (
    "fewer layers (of six: --student layers:0,5) or none (--student conv), a smaller --set data.max_length, "
    "more threads"
)
_MORE_ROWS = "more evaluation rows (--eval FILE), or --set contract.evidence=point to judge by the estimate alone"
_QUIETER = "`kdc verify ARTIFACT` while nothing else runs on this machine, or a limit that leaves it some room"
_ADVICE = {
    ("fail", "max_latency_ms"): _FASTER,
    ("fail", "min_rows_per_s"): _FASTER,
    ("fail", "max_size_mb"): "fewer layers (of six: --student layers:0,5) or none (--student conv), token vectors in 4 "
    "bits (--set quantize.vector_bits=4), or a teacher with smaller embeddings",
    ("fail", "max_drop"): "more layers (of six: --student layers:0,1,2,5), texts without labels (--unlabeled FILE), "
    "longer training (--set student.min_steps=3000)",
    ("fail", "require"): "other decisions: an --abstain, or an --aim (two classes or multi-label), that meets the "
    "requirement by more; or a better student",
    ("not shown", "max_latency_ms"): _QUIETER,
    ("not shown", "min_rows_per_s"): _QUIETER,
    ("not shown", "max_drop"): _MORE_ROWS,
    ("not shown", "require"): _MORE_ROWS,
}
_HOLDS = {"pass": "yes", "fail": "no", "not shown": "not shown"}


def refuse_failed(judgement: Judgement | None, *, allow: bool) -> None:
    if judgement is not None and judgement.verdict == "fail" and not allow:
        remedy = "make one that keeps it, or use this one anyway: --allow-failed"
        raise InputError("the artifact failed its contract", given="; ".join(judgement.missed), remedy=remedy)


def render(judgement: Judgement, before: Judgement | None = None) -> str:
    lines = [aligned(table(judgement), left=range(4)), "", sentence(judgement)]
    lines += [f"try: {suggestion}" for suggestion in advice(judgement)]
    if before is not None:
        where = "this CPU" if before.cpu == judgement.cpu else f"another CPU, {before.cpu}"
        if before.threads != judgement.threads:
            where += f", with {before.threads} threads instead of {judgement.threads}"
        lines.append(f"when it was made, on {where}: {before.verdict}, {before.costs.latency_ms:.2f} ms")
    return "\n".join(lines)


def table(judgement: Judgement) -> list[list[str]]:
    rows = [["contract", "limit", "found", "holds"]]
    for check in judgement.checks:
        is_old = check.limit in ("max_drop", "require") and not judgement.compared
        measured = f"{check.measured}, as made" if is_old else check.measured
        rows.append([check.title, check.bound, measured, _HOLDS[check.verdict]])
    return rows


def sentence(judgement: Judgement) -> str:
    text = f"contract: {judgement.verdict} ({judgement.variant} on {judgement.cpu})"
    if judgement.missed:
        text += f": {'; '.join(judgement.missed)}"
    if judgement.look not in (None, 1):
        text += f"; {judgement.look} models of this run were judged on these rows, which widens the interval"
    return text if judgement.compared else f"{text}; quality was not checked again"


def advice(judgement: Judgement) -> list[str]:
    misses = ((check.verdict, check.limit) for check in judgement.checks if check.verdict == judgement.verdict)
    return list(dict.fromkeys(_ADVICE[miss] for miss in misses if miss in _ADVICE))
