"""What `kdc label` tells of a job."""

from kdc.common.frozen import Frozen


class Labelled(Frozen):
    """What all runs with this ledger gave and cost."""

    output: str
    rows: int  # in OUT
    people: int  # with a person's label
    texts: int  # distinct, to be asked
    unanswered: int  # of the texts
    how: dict[str, int]  # texts by `How`
    model: str
    resolved: list[str]  # models' own names
    requests: int
    input_tokens: int
    output_tokens: int
    usd: float  # see `Spent`
    p50_ms: float | None  # of usable replies
    p95_ms: float | None
    limit: str | None = None  # that ended the run early
    maybe_paid: int = 0  # calls under way when a run was killed


class Estimate(Frozen):
    """What a job would cost, from a sample that stays in the ledger."""

    sample: int  # texts
    texts: int  # of the whole job
    unanswered: int  # of the sample
    requests: float  # of the whole job
    usd: float
    hours: float


class BatchWritten(Frozen):
    """Calls that wait for an endpoint's batch API."""

    file: str
    calls: int


def render(result: Labelled | Estimate | BatchWritten) -> str:
    if isinstance(result, Estimate):
        lines = [
            f"{result.texts:,} distinct texts; {result.sample:,} have an answer, {result.unanswered:,} got none",
            f"all of them: about {result.requests:,.0f} calls, {result.usd:.2f} USD, {60 * result.hours:,.1f} minutes",
            "next: the same command without --dry-run; --max-usd bounds the cost",
        ]
        return "\n".join(lines)
    if isinstance(result, BatchWritten):
        lines = [f"{result.file}: {result.calls:,} calls for the endpoint's batch API"]
        return "\n".join([*lines, "next: send it, then the same command with --results FILE"])
    ways = ", ".join(f"{count:,} by {how}" for how, count in sorted(result.how.items()))
    people = f", {result.people:,} rows have a person's label" * bool(result.people)
    lines = [
        f"{result.output}: {result.rows:,} rows; {result.texts:,} distinct texts ({ways}), "
        f"{result.unanswered:,} without an answer{people}",
        f"{result.requests:,} calls, {result.input_tokens:,} + {result.output_tokens:,} tokens, {result.usd:.4f} USD",
    ]
    if result.p50_ms is not None:
        lines.append(
            f"{', '.join(result.resolved) or result.model}: median {result.p50_ms:,.0f} ms, p95 {result.p95_ms:,.0f} ms"
        )
    if len(result.resolved) > 1:
        lines.append("the endpoint answered with several models, so one text may have got another answer from another")
    if result.limit is not None:
        lines.append(f"stopped early, {result.limit}; a higher limit resumes")
    elif result.unanswered:
        lines.append(f"why texts have no answer: {result.output}.unanswered.jsonl; the same command asks them again")
    lines.append(f"next: kdc compress --train {result.output} --teacher-scores {result.output} --family minilm")
    return "\n".join(lines)
