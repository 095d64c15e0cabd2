"""Options of `kdc compress` for common settings. Their help is also the settings' description."""

from pathlib import Path

from kdc.artifact.artifact_options import LIMITS
from kdc.common.command_options import settings

RUN = "Run"

COMPRESS = (
    *settings(
        "data",
        "Data",
        ("train", Path, "File with labelled rows to train on: .csv, .tsv, .jsonl, .parquet or .xlsx."),
        ("text", str, "Column with the text."),
        ("text-pair", str, "Column with the second text of a pair."),
        ("label", str, "Column with the label (default label)."),
        ("eval", Path, "File with labelled rows to evaluate on (default: a tenth of the training rows)."),
        ("unlabeled", Path, "File with more texts, which only the teacher labels (kdc verify: --unlabelled)."),
        ("delimiter", str, "Character between the fields of .csv and .tsv files (default: comma and tab)."),
        ("encoding", str, "Encoding of text files, for example cp1252 or utf-16 (default utf-8)."),
        ("skip-invalid", bool, "Leave out rows without text or label, at most a tenth; data/skipped.jsonl lists them."),
        (
            "metric",
            str,
            "Deciding metric: accuracy, macro_f1, matthews, f1 (two classes), pearson or spearman (numbers). Default: "
            "macro_f1 or pearson, or a GLUE task's own.",
        ),
        (
            "slice",
            list[str],
            "Give the figures also by value of this column of the evaluation rows, or by length, in tokens. The model "
            "does not read the column. Repeatable.",
            "data.slices",
        ),
        ("max-train-rows", int, "Train on at most this many rows (default: all)."),
        (
            "audit-labels",
            bool,
            "List training rows whose label is probably wrong, in label_errors.csv. Trains the teacher three times "
            "more, on two thirds of the rows each.",
        ),
        ("task", str, "A GLUE task instead of --train, or the built-in task pydocs; `kdc tasks` lists them."),
        ("data", Path, "Folder with the task's data: GLUE's TSV files or `save_to_disk` (default: the hub)."),
    ),
    *settings(
        "run",
        "Models",
        (
            "family",
            str,
            "Family of teacher and student: bert (default), roberta, deberta, minilm, modernbert or ettin; for many "
            "languages e5, multilingual-minilm or mmbert.",
        ),
        (
            "teacher",
            list[str],
            "Hub id or path of the teacher. Repeat it to average several; the student is cut from the first.",
            "teacher.teacher",
        ),
        (
            "teacher-scores",
            Path,
            "Table with the teacher's answers to all rows, instead of a teacher model. `kdc label` writes one.",
            "teacher.scores",
        ),
        (
            "student",
            str,
            "The teacher's layers to keep, counted from 0: layers:0,1,5 or layers:first-half; add ,ffn=768 and "
            ",heads=6 for fewer neurons and attention heads in each. Or conv, static or linear: the teacher's token "
            "embeddings without layers. Or teacher: the teacher itself. Or a hub id or path.",
            "student.model",
        ),
        (
            "long",
            str,
            "Texts longer than the model takes: cut (default) or windows, whose answers are combined.",
            "long.mode",
        ),
    ),
    *LIMITS,
    *settings(
        "operating",
        "Decisions",
        (
            "aim",
            list[str],
            "Choose a label's decision threshold on the tuning set: f1, matthews, precision>=0.95, recall>=0.99, "
            "fpr<=0.01, or a number; LABEL:recall>=0.9 for one label. The run fails if the tuning set cannot confirm "
            "the bound. Repeatable. Default: f1 for each label of a multi-label task, otherwise the most probable "
            "class.",
            "operating.aims",
        ),
        (
            "abstain",
            str,
            "Answer only if sure enough: accuracy>=0.98 of the answered rows, or a lowest probability such as 0.9. The "
            "run fails if the tuning set cannot confirm it. Default: answer all rows.",
        ),
        (
            "defer",
            list[str],
            "Answer only if sure enough, by a bound on a share of all rows: disagreement<=0.02 (answered unlike the "
            "teacher) or error<=0.05 (answered unlike the label). The run fails if the tuning set cannot confirm it. "
            "Repeatable. Default: answer all rows.",
        ),
        (
            "question",
            Path,
            "File with the question that the artifact answers in decision APIs: a JSON object of TypeSafe's "
            "System One or OpenAI's Decisions, with the task's labels as options.",
        ),
        (
            "cascade",
            str,
            "Second model for rows that the student is unsure of: auto (the teacher), off, or the artifact of another "
            "run on the same rows. Default: auto if limits make kdc search for a student.",
            "cascade.second",
        ),
    ),
    *settings(
        "run",
        RUN,
        ("out", Path, "Run directory (default runs/<task>). The same one resumes the run."),
        (
            "epochs",
            float,
            "Passes over the training rows, for teacher and student each (default: the recipe's).",
            "teacher.epochs",
            "student.epochs",
        ),
        (
            "max-hours",
            float,
            "Longest time for the teacher's training, for the student's, and for the search, each (default: no limit).",
            "teacher.hours",
            "student.hours",
            "contract.max_hours",
        ),
    ),
)
