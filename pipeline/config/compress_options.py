"""Options that set a setting of a run: those of `kdc compress`.

An option is here only if people type it often. `--set` takes every other setting.
"""

from pathlib import Path

from kdc.artifact.contract.contract_options import LIMITS
from kdc.common.command_options import Setting, settings

_OWN = "Data of your own"
_MODELS = "Models"
_ANSWERS = "What the artifact answers"

COMPRESS = (
    *settings(
        "data",
        None,
        ("task", str, "Name of a GLUE task, or pydocs, which needs no data: see `kdc tasks`."),
        ("data", Path, "Folder with the data: GLUE's TSV files, `save_to_disk`, or files (default: the hub)."),
    ),
    *settings(
        "data",
        _OWN,
        ("train", Path, "Labelled rows to train on: .csv, .tsv, .jsonl or .parquet."),
        ("eval", Path, "Labelled rows to evaluate on (default: a tenth of the training rows)."),
        ("unlabeled", Path, "Further texts, which the student learns by the teacher's answers to them."),
        ("text", str, "Name of the column with the text."),
        ("text-pair", str, "Name of the column with the second text of a pair."),
        ("label", str, "Name of the column with the label (default label)."),
        (
            "metric",
            str,
            "Metric that decides: accuracy, macro_f1, matthews or, for two classes, f1; pearson or spearman for "
            "numbers (default: the task's; macro_f1 or pearson for your own rows).",
        ),
    ),
    Setting(
        "family",
        str,
        "Model family: bert (default), roberta, deberta, minilm, modernbert or ettin.",
        "run",
        panel=_MODELS,
    ),
    Setting(
        "teacher",
        list[str],
        "Hub id or path. Repeated: several are averaged, and a student is cut from the first.",
        "teacher",
        panel=_MODELS,
    ),
    Setting(
        "student",
        str,
        "Hub id or path, or the teacher's layers to keep, counted from 0: layers:0,1,5, layers:first-and-last, "
        "layers:first-half or layers:every-second, each with ,ffn=768 and ,heads=6 for so many neurons and "
        "attention heads in each layer; conv, static or linear: its token vectors and none of its layers, which "
        "answers in microseconds; or teacher, which is the teacher itself.",
        panel=_MODELS,
        keys=("student.model",),
    ),
    Setting("max-train-rows", int, "Largest number of rows to train on (default: all).", "data"),
    Setting(
        "epochs",
        float,
        "Passes over the training rows, for teacher and student each (default: the recipe's).",
        keys=("teacher.epochs", "student.epochs"),
    ),
    Setting(
        "max-hours",
        float,
        "Longest time, in hours, of the teacher's training, of the student's, and of the search for a student, each. A "
        "training's rate falls so that it is done by then (no default).",
        keys=("teacher.hours", "student.hours", "contract.max_hours"),
    ),
    Setting("out", Path, "Run directory (default runs/<task>); the same one goes on where it was cut off.", "run"),
    Setting(
        "aim",
        list[str],
        "What a label's threshold is chosen by, on rows held out of training: f1, matthews, precision>=0.95, "
        "recall>=0.99, fpr<=0.01, or the threshold itself; for one label LABEL:recall>=0.9. A bound that is not shown "
        "to be kept ends the run. Repeatable (default: f1 for each label of a multi-label task; else the most probable "
        "class).",
        panel=_ANSWERS,
        keys=("operating.aims",),
    ),
    Setting(
        "abstain",
        str,
        "Which rows of several classes are answered: accuracy>=0.98, the most of which that share is shown to be right "
        "on rows held out of training, or the least probability of an answer, such as 0.9; a share that is "
        "not shown ends the run (default: all).",
        "operating",
        panel=_ANSWERS,
    ),
    Setting(
        "cascade",
        str,
        "A second model for the rows that the student is not sure of, where that gains: auto, the teacher itself; or "
        "the artifact of another run on the same rows (default: auto where a contract's student is searched for).",
        panel=_ANSWERS,
        keys=("cascade.second",),
    ),
    Setting(
        "long",
        str,
        "What becomes of texts with more tokens than the model takes at once: cut (default), or windows, whose answers "
        "become one.",
        panel=_ANSWERS,
        keys=("long.mode",),
    ),
    *LIMITS,
)
