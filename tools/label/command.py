"""What `kdc label` does with its options, and what it prints."""

from pathlib import Path
from typing import Any

from kdc.common.errors import InputError
from kdc.tools.label.audit import read_audit, render_audit, write_audit
from kdc.tools.label.run import Estimate, Labelled, label_table
from kdc.tools.label.spec import read_spec, write_template
from kdc.tools.label.traces import label_traces, render_traces

write_spec = write_template
_MODES = ("traces", "audit", "audited")
_OPTIONS: dict[str | None, set[str]] = {
    None: {"rows", "max_requests", "max_usd", "dry_run", "on_error"},
    "traces": {"traces"},
    "audit": {"audit", "to", "student", "max_drop"},
    "audited": {"audited", "student", "max_drop"},
}


def label(spec: Path, files: tuple[str, ...], **given: Any) -> tuple[Any, str]:
    """Do what the options say; gives the result for `--json`, and for people.

    Raises:
        InputError: options or files do not fit together.
        KdcError: as `label_table`.
    """
    given = {name.replace("-", "_"): value for name, value in given.items()}
    mode = next((name for name in _MODES if name in given), None)
    wanted = "IN OUT" if mode is None else "OUT"
    if len(files) != len(wanted.split()):
        remedy = f"kdc label {spec} {wanted}{f' --{mode} ...' if mode else ''}"
        raise InputError("wrong number of files", given=" ".join(files) or "none", remedy=remedy)
    if others := sorted(given.keys() - _OPTIONS[mode]):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        what = f"these options do not go with {f'--{mode}' if mode else 'asking a model'}"
        raise InputError(what, given=names, remedy="leave them out")
    asked = read_spec(spec)
    if mode is None:
        result = label_table(asked, *files, **given)
        return result, render(result)
    if mode == "traces":
        told = label_traces(asked, given["traces"], files[0])
        return told, render_traces(told)
    if mode == "audit":
        if "to" not in given:
            raise InputError("--audit writes a file", given="no --to", remedy="--to audit.csv")
        written = write_audit(Path(files[0]), asked, given.pop("audit"), given.pop("to"), **given)
        return written, render_audit(written)
    judged = read_audit(Path(files[0]), asked, given.pop("audited"), **given)
    return judged, render_audit(judged)


def render(result: Labelled | Estimate) -> str:
    if isinstance(result, Estimate):
        lines = [
            f"{result.texts:,} distinct texts; {result.sample:,} have an answer, {result.unanswered:,} got none",
            f"all of them: about {result.requests:,.0f} calls, {result.usd:.2f} USD, {60 * result.hours:,.1f} minutes",
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
