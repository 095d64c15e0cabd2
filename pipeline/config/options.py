"""Options that set a setting of a run: those of `kdc compress`."""

from pathlib import Path

from kdc.artifact.contract.options import CONTRACT_PANEL, LIMITS
from kdc.common.options import Setting, settings

_OWN = "Data of your own"
_MODELS = "Models"

EPOCHS = Setting(
    "epochs",
    float,
    "Passes over the training rows, for teacher and student each (default: the recipe's).",
    keys=("teacher.epochs", "student.epochs"),
)
MAX_TRAIN_ROWS = Setting("max-train-rows", int, "Largest number of rows to train on (default: all).", "data")
TRAINING_DEVICE = Setting("device", str, "Where to train: auto (default; CUDA where there is one), cpu or cuda.", "run")

COMPRESS = (
    *settings(
        "data",
        None,
        ("task", str, "Name of a GLUE task, or pydocs, which needs no data: see `kdc tasks`."),
        ("data", Path, "Folder with the data: GLUE's TSV files, `save_to_disk`, or files (default: the hub)."),
    ),
    Setting(
        "metric",
        str,
        "Metric that decides: accuracy, macro_f1, matthews or, for two classes, f1; pearson or spearman for numbers "
        "(default: the task's; macro_f1 or pearson for your own rows).",
        "data",
    ),
    *settings(
        "data",
        _OWN,
        ("train", Path, "Labelled rows to train on: .csv, .tsv, .jsonl or .parquet."),
        ("eval", Path, "Labelled rows to evaluate on (default: a tenth of the training rows)."),
        ("unlabeled", Path, "Further texts, which the student learns by the teacher's answers to them."),
        ("max-unlabeled-rows", int, "Of these texts so many at most, drawn at random (default: all)."),
        ("text", str, "Name of the column with the text."),
        ("text-pair", str, "Name of the column with the second text of a pair."),
        ("label", str, "Name of the column with the label (default label)."),
        ("kind", str, "What it holds: auto (default; its values tell), classification, multilabel or regression."),
        ("separator", str, "Character between the labels of a multi-label cell."),
        ("group", str, "Name of a column: rows with one value there (a user, a document) are never parted."),
        ("time", str, "Name of a column with a row's time: the last tenth is the evaluation, where none is given."),
    ),
    *settings(
        "run",
        _MODELS,
        ("family", str, "Model family: bert (default), roberta, deberta, minilm, modernbert or ettin."),
        ("recipe", str, "Distillation recipe: best (default), paper (the authors' script) or paper-as-described."),
        (
            "controls",
            bool,
            "Also train and evaluate the student without distillation and without unlabelled texts, and the teacher "
            "with LoRA.",
        ),
    ),
    *settings(
        "teacher",
        _MODELS,
        ("teacher", list[str], "Hub id or path. Repeated: several are averaged, and a student is cut from the first."),
        ("teacher-scores", Path, "A black box's answers to all rows; they take the teacher's place.", "teacher.scores"),
        (
            "teacher-is-finetuned",
            bool,
            "The teacher is fine-tuned for the task already: check it, do not train it.",
            "teacher.finetuned",
        ),
        ("teacher-labels", str, "Names, in order, for the labels of a LABEL_0 teacher: neg,pos.", "teacher.labels"),
        (
            "teacher-search",
            str,
            "Find the teacher's learning rates by short trainings first: quick, or off (default).",
            "teacher.search",
        ),
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
    Setting(
        "vocabulary",
        str,
        "Pieces of the teacher's vocabulary that a student made of it keeps: all; auto, those that your texts use; or "
        "a number, these and the most frequent others up to so many (default: all, or auto where a student would else "
        "miss --max-size-mb).",
        "student",
        panel=_MODELS,
    ),
    MAX_TRAIN_ROWS,
    EPOCHS,
    Setting(
        "max-hours",
        float,
        "Longest time, in hours, of the teacher's training, of the student's, and of the search for a student, each. A "
        "training's rate falls so that it is done by then (no default).",
        keys=("teacher.hours", "student.hours", "contract.max_hours"),
    ),
    Setting("seed", int, "Seed of splits, initialisation, order of the rows and dropout (default 0).", "run"),
    TRAINING_DEVICE,
    Setting(
        "formats",
        str,
        "What the artifact is: onnx, which kdc serves, or onnx,hf (default), a Hugging Face folder besides, which "
        "transformers, Optimum and transformers.js open.",
        "export",
    ),
    Setting(
        "aim",
        list[str],
        "What a label's threshold is chosen by, on rows held out of training: f1, matthews, precision>=0.95, "
        "recall>=0.99, fpr<=0.01, or the threshold itself; for one label LABEL:recall>=0.9. A bound that is not shown "
        "to be kept ends the run. Repeatable (default: f1 for each label of a multi-label task; else the most probable "
        "class).",
        keys=("operating.aims",),
    ),
    Setting(
        "abstain",
        str,
        "Which rows of several classes are answered: accuracy>=0.98, the most of which that share is shown to be right "
        "on rows held out of training, or the least probability of an answer, such as 0.9; a share that is "
        "not shown ends the run (default: all).",
        "operating",
    ),
    Setting(
        "sets",
        float,
        "Give each row a set of labels too, which holds the true one with this probability, such as 0.95, by rows held "
        "out of training; of three classes or more (default: no sets).",
        "operating",
    ),
    Setting(
        "cascade",
        str,
        "A second model for the rows that the student is not sure of, where that gains: auto, the teacher itself; or "
        "the artifact of another run on the same rows (default: auto where a contract's student is searched for).",
        keys=("cascade.second",),
    ),
    Setting(
        "long",
        str,
        "What becomes of texts with more tokens than the model takes at once: cut (default), or windows, whose answers "
        "become one.",
        keys=("long.mode",),
    ),
    Setting("max-int8-drop", float, "Points that int8 may lose; beyond, a CPU loads fp32 (default 1.0).", "quantize"),
    Setting("out", Path, "Run directory (default runs/<task>); the same one goes on where it was cut off.", "run"),
    *LIMITS,
    *settings(
        "contract",
        CONTRACT_PANEL,
        (
            "search",
            str,
            "Short trainings that choose the student, of those that can keep latency and size: the three most "
            "promising with layers and three without (quick, the default), all (full), or none (off). The teacher "
            "itself is a candidate without training.",
        ),
    ),
)
