"""The end of `kdc compress` as text for a terminal."""

import shlex

from kdc.artifact.contract.text import render as render_contract
from kdc.artifact.inspection import table
from kdc.pipeline.rundir.record import CompressResult


def render(compressed: CompressResult) -> str:
    """The evaluation's table, what was decided, and where the artifact is; or where a run that was stopped lies."""
    result = compressed.result
    if result is None:
        return f"stopped as asked; the run is in {compressed.out}"
    lines = [table(result.table, result.metric), ""]
    lines += [f"{provider} loads {variant}" for provider, variant in result.providers.items()]
    lines += [f"note: {note}" for note in result.notes]
    if result.contract is not None:
        lines += ["", render_contract(result.contract), ""]
    lines.append(f"artifact: {compressed.artifact}")
    lines.append(f"report:   {compressed.report}")
    lines.append(f"try it:   kdc try {shlex.quote(str(compressed.artifact))} {result.example}")
    return "\n".join(lines)
