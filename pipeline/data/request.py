"""Finds in the config which task is asked for, and on which rows.

Nothing heavy is imported here, so that a slip in the command is reported at once.
"""

from __future__ import annotations

import re

from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import TASKS, Task, custom_task, find_task
from kdc.pipeline.data.sources import Source, locate


def check_request(config: Config) -> None:
    """Refuse a request that can be seen to be wrong without reading a row.

    Raises:
        InputError: there is no such task, no data was named, or a file or folder is missing.
    """
    task_of(config)
    locate(source_of(config))


def task_of(config: Config) -> Task:
    """The task that the config describes. The label names of people's own tasks are filled in when the rows are read.

    Raises:
        InputError: neither a known task nor a training file is named, or no text column.
    """
    data = config.data
    columns = {name: value for name in ("text", "text_pair", "label") if (value := getattr(data, name)) is not None}
    if data.task is not None:
        return find_task(data.task).model_copy(update=columns)
    if data.train is None and data.data is None:
        raise InputError(
            "no task and no data were given",
            remedy="kdc compress --task qnli, or --train train.csv --text COLUMN --label COLUMN; see `kdc tasks`",
        )
    if data.text is None:
        raise InputError("which column holds the text?", given=data.train or data.data, remedy="add --text COLUMN")
    source = data.train or data.data
    assert source is not None
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.stem).strip(".") or "task"  # names a folder, so not ".."
    if name in TASKS:
        name = f"own-{name}"  # the name of a known task would bring its rules with it
    kind = "classification" if data.kind == "auto" else data.kind
    if data.kind == "auto" and data.separator:
        kind = "multilabel"
    return custom_task(name, data.text, data.text_pair, data.label or "label", kind)


def source_of(config: Config) -> Source:
    """The source of the rows that the config describes."""
    data = config.data
    task = find_task(data.task).name if data.task is not None else ""
    own = data.train is not None or data.data is not None
    return Source(
        task=task,
        data=data.data,
        train=data.train,
        eval=data.eval,
        unlabeled=data.unlabeled,
        separator=data.separator,
        infer_kind=data.kind == "auto" and not task,
        group="group" if task == "pydocs" and not own else None,
    )
