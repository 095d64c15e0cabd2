"""What `kdc label` does with its options, and what it prints."""

from pathlib import Path
from typing import Any

from kdc.common.errors import InputError
from kdc.tools.label.audit import read_audit, render_audit, write_audit
from kdc.tools.label.results import render
from kdc.tools.label.run import label_table
from kdc.tools.label.spec import read_spec
from kdc.tools.label.traces import label_traces, render_traces

_MODES = ("traces", "audit", "audited")
_OPTIONS: dict[str | None, set[str]] = {
    None: {"rows", "max_requests", "max_usd", "dry_run", "on_error", "results", "delimiter", "encoding"},
    "traces": {"traces"},
    "audit": {"audit", "to", "student", "max_drop"},
    "audited": {"audited", "student", "max_drop"},
}


def label(spec: Path, files: tuple[str, ...], **given: Any) -> tuple[Any, str]:
    """Gives the result for `--json`, and as text. Raises InputError if options or files do not fit together."""
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
