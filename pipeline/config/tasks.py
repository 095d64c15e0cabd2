"""What a task is: its columns, kind, labels and metrics. The nine GLUE tasks, the built-in one, and people's own."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdc.common.errors import InputError

Kind = Literal["classification", "multilabel", "regression"]


@dataclass(frozen=True)
class Task:
    """One text-classification task.

    Attributes:
        name: the name in commands, run folders and the artifact.
        text: name of the column with the (first) text.
        text_pair: name of the column with the second text; None for single-text tasks.
        label: name of the label column.
        kind: "classification" (one of two or more classes), "multilabel" (any number of them), "regression".
        labels: class names in the order of the model's outputs. Empty until the training rows are read for
            people's own tasks, and always for regression.
        metrics: names known to `kdc.pipeline.quality.metrics`; the first is the one that decides.
        glue_folder: folder of the task in GLUE's own download, e.g. "SST-2"; "" outside GLUE.
        hub_config: configuration of `nyu-mll/glue` on the hub; "" outside GLUE.
        eval_splits: evaluation splits as the hub names them; the first decides.
        max_length: tokens after which a text is cut (both texts together for pairs).
        allow_majority: a student no better than the majority class only warns.
        center, spread: mean and standard deviation of regression's training labels. Models learn and give
            (label - center) / spread, so that prices train as well as ratings; the engine scales back.
    """

    name: str
    text: str
    text_pair: str | None
    label: str
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    glue_folder: str = ""
    hub_config: str = ""
    eval_splits: tuple[str, ...] = ("validation",)
    max_length: int = 128
    allow_majority: bool = False
    center: float = 0.0
    spread: float = 1.0

    @property
    def outputs(self) -> int:
        """Width of the model's head: one value for regression, else one for each label."""
        return 1 if self.kind == "regression" else len(self.labels)

    @property
    def is_pair(self) -> bool:
        """Whether a row holds two texts."""
        return self.text_pair is not None

    def with_labels(self, labels: tuple[str, ...]) -> Task:
        """The same task with its class names filled in."""
        return dataclasses.replace(self, labels=labels)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Task:
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("labels", "metrics", "eval_splits"):
            values[name] = tuple(values[name])
        return Task(**values)


def _glue(
    name: str, folder: str, columns: tuple[str, str | None], labels: tuple[str, ...], metrics: tuple[str, ...]
) -> Task:
    return Task(
        name=name,
        text=columns[0],
        text_pair=columns[1],
        label="label",
        kind="classification",
        labels=labels,
        metrics=metrics,
        glue_folder=folder,
        hub_config=name,
    )


_ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", "CoLA", ("sentence", None), ("unacceptable", "acceptable"), ("matthews",)),
        _glue("sst2", "SST-2", ("sentence", None), ("negative", "positive"), ("accuracy",)),
        _glue("mrpc", "MRPC", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        dataclasses.replace(
            _glue("stsb", "STS-B", ("sentence1", "sentence2"), (), ("pearson", "spearman")), kind="regression"
        ),
        _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        dataclasses.replace(
            _glue("mnli", "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",)),
            eval_splits=("validation_matched", "validation_mismatched"),
        ),
        _glue("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT, ("accuracy",)),
        _glue("rte", "RTE", ("sentence1", "sentence2"), _ENTAILMENT, ("accuracy",)),
        dataclasses.replace(
            _glue("wnli", "WNLI", ("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",)),
            allow_majority=True,
        ),
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
    """The known task of that name, written in any of the usual ways ("SST-2", "sst2", "STS_B").

    Raises:
        InputError: no such task; names the nearest one.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key in TASKS:
        return TASKS[key]
    nearest = difflib.get_close_matches(key, TASKS, n=1)
    hint = f"did you mean `--task {nearest[0]}`? " if nearest else ""
    raise InputError(
        "no such task",
        given=name,
        remedy=f"{hint}known: {', '.join(TASKS)}; for data of your own: "
        "`kdc compress --train train.csv --text TEXT_COLUMN --label LABEL_COLUMN`",
    )


def custom_task(
    name: str, text: str, text_pair: str | None, label: str, kind: Kind, labels: tuple[str, ...] = ()
) -> Task:
    """A task made of a person's own files. Label names not given are learned from the training rows, sorted."""
    metrics = {
        "classification": ("macro_f1", "accuracy"),
        "multilabel": ("macro_f1", "accuracy"),
        "regression": ("pearson", "spearman"),
    }[kind]
    return Task(name=name, text=text, text_pair=text_pair, label=label, kind=kind, labels=labels, metrics=metrics)
