"""Tasks (columns, kind, labels and metrics): the nine of GLUE, the built-in one, and people's own."""

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
    """One text-classification task, as a run trains it. The labels of people's own tasks are empty until the training
    rows are read."""

    label: str  # name of the label column
    metrics: tuple[str, ...]  # names known to `kdc.pipeline.config.metrics`; the first one decides
    glue_folder: str = ""  # of the task in GLUE's own download, for example "SST-2"; "" outside GLUE
    hub_config: str = ""  # configuration of `nyu-mll/glue` on the hub; "" outside GLUE
    eval_splits: tuple[str, ...] = ("validation",)  # as the hub names them; the first one decides
    max_length: int = 128  # tokens after which a text, or both texts of a pair together, are cut

    def info(self) -> TaskInfo:
        """The task as the artifact describes it."""
        return TaskInfo(**{name: getattr(self, name) for name in TaskBase.model_fields}, metric=self.metrics[0])

    def save(self, path: Path) -> None:
        """Write the task as JSON."""
        write_whole(path, self.model_dump_json(indent=2))

    @staticmethod
    def load(path: Path) -> "Task":
        """Read what `save` wrote."""
        return Task.model_validate_json(path.read_text(encoding="utf-8"))


def _glue(name: str, folder: str, columns: tuple[str, str | None], labels: tuple[str, ...], **more: Any) -> Task:
    """One of GLUE's tasks; `more` are fields in which it is not like most of them."""
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
    """Find a known task by its name in any of the usual spellings ("SST-2", "sst2", "STS_B").

    Raises:
        InputError: there is no such task; names the nearest one.
    """
    key = task_key(name)
    if key in TASKS:
        return TASKS[key]
    nearest = difflib.get_close_matches(key, TASKS, n=1)
    remedy = f"did you mean `--task {nearest[0]}`? " if nearest else ""
    remedy += f"known: {', '.join(TASKS)}; for data of your own: "
    remedy += "`kdc compress --train train.csv --text TEXT_COLUMN --label LABEL_COLUMN`"
    raise InputError("no such task", given=name, remedy=remedy)


def task_key(name: str) -> str:
    """A known task's key in `TASKS`, for any of the usual spellings of its name."""
    return name.lower().replace("-", "").replace("_", "")


def custom_task(
    name: str, text: str, text_pair: str | None, label: str, kind: Kind, labels: tuple[str, ...] = ()
) -> Task:
    """Make the task of a person's own files. Label names that are not given are learned from the training rows."""
    metrics = tuple(fitting(kind)[:2])
    return Task(name=name, text=text, text_pair=text_pair, label=label, kind=kind, labels=labels, metrics=metrics)


def decided_by(task: Task, metric: str | None) -> Task:
    """The task with another metric that decides; the same task for None.

    Raises:
        InputError: tasks of this kind have no such metric.
    """
    if metric is None:
        return task
    known = fitting(task.kind, len(task.labels))
    if metric not in known:
        labels = f" of {len(task.labels)} labels" if task.labels else ""
        remedy = f"--metric {' or '.join(known)}"
        raise InputError("the task has no such metric", given=f"{metric}, {task.kind}{labels}", remedy=remedy)
    return task.model_copy(update={"metrics": tuple(dict.fromkeys((metric, *task.metrics)))})


def task_of(data: DataSettings) -> Task:
    """The task that the settings describe. The label names of people's own tasks are filled in when the rows are read.

    Raises:
        InputError: neither a known task nor a training file is named, no text column, or a metric that the known task
            has not.
    """
    if data.task is not None:
        columns = data.model_dump(include={"text", "text_pair", "label"}, exclude_none=True)
        return decided_by(find_task(data.task).model_copy(update=columns), data.metric)
    source = data.train or data.data
    if source is None:
        remedy = "kdc compress --task qnli, or --train train.csv --text COLUMN --label COLUMN; see `kdc tasks`"
        raise InputError("no task and no data were given", remedy=remedy)
    if data.text is None:
        raise InputError("which column holds the text?", given=source, remedy="add --text COLUMN")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.stem).strip(".") or "task"  # names a folder, so not ".."
    if name in TASKS:
        name = f"own-{name}"  # the name of a known task would bring its rules with it
    kind = data.kind
    if kind == "auto":
        kind = "multilabel" if data.separator else "classification"
    return custom_task(name, data.text, data.text_pair, data.label or "label", kind)


def render() -> str:
    """The known tasks with their columns, labels and metrics, and how to name a task of one's own."""
    lines = []
    for task in TASKS.values():
        columns = task.text if task.text_pair is None else f"{task.text} + {task.text_pair}"
        lines.append(f"{task.name:<8}{columns:<26}{', '.join(task.labels) or 'a number':<40}{', '.join(task.metrics)}")
    lines.append("\nyours:  kdc compress --train train.csv --text COLUMN [--text-pair COLUMN] --label COLUMN")
    return "\n".join(lines)
