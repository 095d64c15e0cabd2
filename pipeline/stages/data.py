"""Stage `data`: rows read, checked, split and tokenised, once.

Reads what the config's section `data` names. Writes `rows/`, `tokens-teacher/`, `tokens-student/`, `task.json` and
`report.json`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import open_data, prepare
from kdc.pipeline.data.request import source_of, task_of
from kdc.pipeline.data.tokens import tokenise
from kdc.pipeline.graphs.onnx_graph import choose_exporter
from kdc.pipeline.quality.latency import check_length
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.training import ensemble, models
from kdc.pipeline.training.fit import check_class_weights


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make the rows and their tokens in `out`."""
    config = run.config
    report = prepare(
        out, task_of(config), source_of(config), max_train_rows=config.data.max_train_rows, seed=config.run.seed
    )
    for warning in report.warnings:
        run.say(f"warning: {warning}")
    task = open_data(out).task
    wanted = config.data.max_length or task.max_length
    _check_plan(config, task)
    summary: dict[str, Any] = {"max_length": {}, "tokens": {}, "report": report.to_json()}
    sources = {ensemble.role(place): source for place, source in enumerate(config.teacher.sources)}
    if not config.student.model.startswith("layers:"):
        sources["student"] = config.student.model
    for role, source in sources.items():
        tokenizer = models.load_tokenizer(source)
        max_length = min(wanted, models.longest_input(models.load_config(source), tokenizer))
        summary["max_length"][role] = max_length
        counts = tokenise(out, role, tokenizer, max_length, on_rows=run.progress)
        summary["tokens"][role] = {name: split.to_json() for name, split in counts.items()}
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


def check(run: Run) -> None:
    """Refuse a contract's conditions that the students cannot be timed under.

    Raises:
        InputError: rows longer than they take.
    """
    contract = run.config.contract.terms
    if contract is not None:
        check_length(contract.at, run.metrics("data")["max_length"]["student"])


def _check_plan(config: Config, task: Task) -> None:
    """Refuse now what a later stage would refuse after hours of training.

    Raises:
        InputError: layers that the teacher does not have, weights of unknown classes, an exporter that is not there.
    """
    if config.student.model.startswith("layers:"):
        models.parse_layers(config.student.model, models.depth(config.teacher.model))
    if config.teacher.scores is not None and config.teacher.more:
        raise InputError(
            "a black box has no second teacher",
            given=", ".join(config.teacher.more),
            remedy="drop --teacher-scores, or all --teacher but the first",
        )
    for settings in (config.teacher, config.student):
        check_class_weights(settings.class_weights, task)
    choose_exporter(config.export.exporter)
