"""What `kdc label` does with its options, and what it prints."""

from pathlib import Path
from typing import Any

from kdc.common.errors import InputError
from kdc.tools.label.run import Estimate, Labelled, label_table
from kdc.tools.label.spec import read_spec, write_template

write_spec = write_template
_MODES = ("traces", "audit", "audited")


def label(spec: Path, files: tuple[str, ...], **given: Any) -> tuple[Any, str]:
    """Do what the options say; gives the result for `--json`, and for people.

    Raises:
        InputError: options or files do not fit together.
        KdcError: as `label_table`.
    """
    mode = next((name for name in _MODES if name in given), None)
    wanted = "OUT" if mode else "IN OUT"
    if len(files) != len(wanted.split()):
        remedy = f"kdc label {spec} {wanted}{f' --{mode} ...' if mode else ''}"
        raise InputError("wrong number of files", given=" ".join(files) or "none", remedy=remedy)
    result = label_table(read_spec(spec), *files, **given)
    return result, render(result, spec, files[0])


def render(result: Labelled | Estimate, spec: Path, source: str) -> str:
    if isinstance(result, Estimate):
        lines = [
            f"{result.texts:,} distinct texts; {result.sample:,} have an answer, {result.unanswered:,} got none",
            f"all of them: about {result.requests:,.0f} calls, {result.usd:.2f} USD, {result.hours:.1f} hours",
            "next: the same command without --dry-run; --max-usd bounds the cost",
        ]
        return "\n".join(lines)
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
