"""Stage `data`: rows read, checked, split and tokenised, once.

Reads what the config's section `data` names. Writes `rows/`, `tokens-teacher/`, `tokens-student/`, `task.json` and
`report.json`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from errors import InputError
from pipeline import models
from pipeline.config import Config
from pipeline.context import Run
from pipeline.reading.prepared import open_data, prepare, tokenise
from pipeline.reading.sources import Source
from pipeline.tasks import Task, custom_task, find_task


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make the rows and their tokens in `out`."""
    config = run.config
    report = prepare(
        out, task_of(config), source_of(config), max_train_rows=config.data.max_train_rows, seed=config.run.seed
    )
    for warning in report.get("warnings", ()):
        run.say(f"warning: {warning}")
    task = open_data(out).task
    wanted = config.data.max_length or task.max_length
    summary: dict[str, Any] = {"max_length": {}, "tokens": {}, "report": report}
    sources = {"teacher": config.teacher.model}
    if not config.student.model.startswith("layers:"):
        sources["student"] = config.student.model
    for role, source in sources.items():
        tokenizer = models.load_tokenizer(source)
        max_length = min(wanted, _longest_input(source, tokenizer))
        summary["max_length"][role] = max_length
        summary["tokens"][role] = tokenise(out, role, tokenizer, max_length, on_rows=run.progress)
    if "student" not in sources:  # cut from the teacher: the same tokens
        os.symlink("tokens-teacher", out / "tokens-student")
        for part in ("max_length", "tokens"):
            summary[part]["student"] = summary[part]["teacher"]
    counts = summary["tokens"]["teacher"]
    cut = sum(split["truncated"] for split in counts.values())
    rows = ", ".join(f"{name} {split['rows']}" for name, split in counts.items())
    summary["headline"] = (
        f"{task.name}, {rows} rows; {cut} longer than {summary['max_length']['teacher']} tokens were cut"
    )
    return summary


def task_of(config: Config) -> Task:
    """The task that the config describes; label names of people's own tasks are filled in when rows are read.

    Raises:
        InputError: neither a known task nor a training file, or no text column.
    """
    data = config.data
    columns = {name: value for name in ("text", "text_pair", "label") if (value := getattr(data, name)) is not None}
    if data.task is not None:
        return dataclasses.replace(find_task(data.task), **columns)
    if data.train is None and data.data is None:
        raise InputError(
            "no task and no data were given",
            remedy="kdc compress --task qnli, or --train train.csv --text COLUMN --label COLUMN; see `kdc tasks`",
        )
    if data.text is None:
        raise InputError("which column holds the text?", given=data.train or data.data, remedy="add --text COLUMN")
    source = data.train or data.data
    assert source is not None
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.stem) or "task"
    kind = "classification" if data.kind == "auto" else data.kind
    if data.kind == "auto" and data.separator:
        kind = "multilabel"
    return custom_task(name, data.text, data.text_pair, data.label or "label", kind)


def source_of(config: Config) -> Source:
    """Where the rows come from."""
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


def _longest_input(source: str, tokenizer: Any) -> int:
    """Most tokens that the model behind `source` takes."""
    try:
        config = AutoConfig.from_pretrained(models.locate(source))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the model's config: {error}", given=source, remedy="check the model") from error
    return models.longest_input(config, tokenizer)
