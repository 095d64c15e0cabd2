"""What the command line prints at the end of a run or an evaluation."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.text import render
from kdc.artifact.inspection import table


def print_result(result: dict[str, Any]) -> None:
    """The table, what was decided, and where the artifact is."""
    lines = []
    if "result" in result:
        made = result["result"]
        lines += [table(made["table"], made["metric"]), ""]
        lines += [f"{provider} loads {variant}" for provider, variant in made["providers"].items()]
        lines += [f"note: {note}" for note in made["notes"]]
        if made.get("contract"):
            lines += ["", render(Judgement.model_validate(made["contract"])), ""]
        lines.append(f"artifact: {result['artifact']}")
        lines.append(f"report:   {result['report']}")
        lines.append(f"try it:   kdc try {shlex.quote(result['artifact'])} {made['example']}")
    else:
        lines.append(f"stopped as asked; the run is in {result['out']}")
    sys.stdout.write("\n".join(lines) + "\n")


def print_evaluation(result: dict[str, Any]) -> None:
    """Metrics on the file beside those that the artifact promises."""
    lines = [f"{result['rows']} rows through {result['variant']} on {result['provider']}"]
    for name, value in result["metrics"].items():
        promised = result["promised"].get(name)
        lines.append(
            f"{name:<12}{value:8.2f}"
            + (f"   (on its own evaluation split {promised:.2f})" if promised is not None else "")
        )
    sys.stdout.write("\n".join(lines) + "\n")
