"""Options of `kdc label`."""

from pathlib import Path

from kdc.artifact.artifact_options import DIALECT
from kdc.common.command_options import Setting, settings

_PEOPLE = "Compare the labels with people's"
LABEL = (
    Setting("rows", int, "Label a random sample of this many distinct texts (default: all).", least=1),
    Setting("max-requests", int, "Most calls, of all runs with this OUT together.", least=1),
    Setting("max-usd", float, "Most US dollars by SPEC's prices, of all runs with this OUT together.", least=0),
    Setting("dry-run", bool, "Ask 20 texts, which are kept, and estimate calls, cost and time of the rest."),
    Setting("results", Path, "Results of the batch that an earlier run wrote (batch = true in SPEC)."),
    Setting("on-error", str, "Rows without a text: stop (default), or skip them."),
    *DIALECT,
    Setting("traces", Path, "File with answers that the model gave before (.jsonl, or a table). No call is made."),
    *settings(
        "",
        _PEOPLE,
        ("audit", int, "Write a random sample of this many texts of OUT for people to label, into --to."),
        ("to", Path, "The .csv file of --audit; Label Studio's tasks are written beside it."),
        ("audited", Path, "The file of --audit with people's labels (.csv, or Label Studio's .json)."),
        ("student", Path, "Folder of an artifact, to be compared with the model by people's labels."),
        ("max-drop", float, "Most points of accuracy that the artifact may lose against the model."),
    ),
)
