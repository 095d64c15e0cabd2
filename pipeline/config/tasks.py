"""GLUE's tasks, the built-in pydocs, and custom tasks."""

import difflib
import re
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import Kind, TaskBase, TaskInfo
from kdc.common.errors import InputError
from kdc.common.files import write_whole
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.metrics import fitting


class Task(TaskBase):
    """Custom tasks have no labels until rows are read."""

    label: str  # the label column
    metrics: tuple[str, ...]  # the first decides
    glue_folder: str = ""  # in GLUE's download, e.g. "SST-2"
    hub_config: str = ""  # of `nyu-mll/glue`
    eval_splits: tuple[str, ...] = ("validation",)  # the first decides
    max_length: int = 128  # tokens of a row

    def info(self) -> TaskInfo:
        """For the manifest."""
        return TaskInfo(**{name: getattr(self, name) for name in TaskBase.model_fields}, metric=self.metrics[0])

    def save(self, path: Path) -> None:
        write_whole(path, self.model_dump_json(indent=2))

    @staticmethod
    def load(path: Path) -> "Task":
        return Task.model_validate_json(path.read_text(encoding="utf-8"))


def _glue(name: str, folder: str, columns: tuple[str, str | None], labels: tuple[str, ...], **more: Any) -> Task:
    fields = {"kind": "classification", "label": "label", "metrics": ("accuracy",), **more}
    text, text_pair = columns
    return Task(name=name, hub_config=name, glue_folder=folder, text=text, text_pair=text_pair, labels=labels, **fields)


_ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", "CoLA", ("sentence", None), ("unacceptable", "acceptable"), metrics=("matthews",)),
        _glue("sst2", "SST-2", ("sentence", None), ("negative", "positive")),
        _glue("mrpc", "MRPC", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), metrics=("accuracy", "f1")),
        _glue("stsb", "STS-B", ("sentence1", "sentence2"), (), kind="regression", metrics=("pearson", "spearman")),
        _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), metrics=("accuracy", "f1")),
        _glue(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            eval_splits=("validation_matched", "validation_mismatched"),
        ),
        _glue("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT),
        _glue("rte", "RTE", ("sentence1", "sentence2"), _ENTAILMENT),
        _glue("wnli", "WNLI", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
        Task(
            name="pydocs",
            text="question",
            text_pair="sentence",
            label="label",
            kind="classification",
            labels=("answers", "does_not_answer"),
            metrics=("accuracy",),
            max_length=64,
        ),
    )
}


def find_task(name: str) -> Task:
    """By any usual spelling ("SST-2", "sst2", "STS_B"); InputError names the nearest."""
    key = task_key(name)
    if key in TASKS:
        return TASKS[key]
    nearest = difflib.get_close_matches(key, TASKS, n=1)
    remedy = f"did you mean `--task {nearest[0]}`? " if nearest else ""
    remedy += f"known: {', '.join(TASKS)}; for data of your own: "
    remedy += "`kdc compress --train train.csv --text TEXT_COLUMN --label LABEL_COLUMN`"
    raise InputError("no such task", given=name, remedy=remedy)


def task_key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def custom_task(
    name: str, text: str, text_pair: str | None, label: str, kind: Kind, labels: tuple[str, ...] = ()
) -> Task:
    metrics = tuple(fitting(kind)[:2])
    return Task(name=name, text=text, text_pair=text_pair, label=label, kind=kind, labels=labels, metrics=metrics)


def decided_by(task: Task, metric: str | None) -> Task:
    """Set the deciding metric, if given; InputError if it does not fit the task."""
    if metric is None:
        return task
    known = fitting(task.kind, len(task.labels))
    if metric not in known:
        labels = f" of {len(task.labels)} labels" if task.labels else ""
        remedy = f"--metric {' or '.join(known)}"
        raise InputError("the task has no such metric", given=f"{metric}, {task.kind}{labels}", remedy=remedy)
    return task.model_copy(update={"metrics": tuple(dict.fromkeys((metric, *task.metrics)))})


def task_of(data: DataSettings) -> Task:
    """InputError without data or text column, or for an unknown task or metric."""
    if data.task is not None:
        columns = data.model_dump(include={"text", "text_pair", "label"}, exclude_none=True)
        return decided_by(find_task(data.task).model_copy(update=columns), data.metric)
    source = data.train or data.data
    if source is None:
        remedy = "kdc compress --task qnli, or --train train.csv --text COLUMN --label COLUMN; see `kdc tasks`"
        raise InputError("no task and no data were given", remedy=remedy)
    if data.text is None:
        raise InputError("which column holds the text?", given=source, remedy="add --text COLUMN")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.stem).strip(".") or "task"  # a folder's name, so not ".."
    if name in TASKS:
        name = f"own-{name}"  # a known name brings its rules
    kind = data.kind
    if kind == "auto":
        kind = "multilabel" if data.separator else "classification"
    return custom_task(name, data.text, data.text_pair, data.label or "label", kind)


def render() -> str:
    lines = []
    for task in TASKS.values():
        columns = task.text if task.text_pair is None else f"{task.text} + {task.text_pair}"
        lines.append(f"{task.name:<8}{columns:<26}{', '.join(task.labels) or 'a number':<40}{', '.join(task.metrics)}")
    lines.append("\nyours:  kdc compress --train train.csv --text COLUMN [--text-pair COLUMN] --label COLUMN")
    return "\n".join(lines)
