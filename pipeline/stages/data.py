"""Stage `data`: read, check, split and tokenise rows, as `data/prepared.py` describes."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import LongTexts, longest_row
from kdc.common.errors import InputError
from kdc.pipeline.config.aims import abstain_of, aims_of, check_sets, check_slices, questions_of, required_label
from kdc.pipeline.config.metrics import Groups
from kdc.pipeline.config.tasks import task_of
from kdc.pipeline.data.fingerprint import input_fingerprint
from kdc.pipeline.data.prepared import open_data, prepare
from kdc.pipeline.data.tokens import tokenise, windows_for
from kdc.pipeline.evaluation.second_model import check_second
from kdc.pipeline.graphs.onnx_graph import choose_exporter
from kdc.pipeline.models import loading
from kdc.pipeline.quality.intervals import independent_rows
from kdc.pipeline.quality.latency import check_length
from kdc.pipeline.quality.operating import fewest_rows
from kdc.pipeline.results.data import DataResult, TokenCounts
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.fingerprints import answered_rows
from kdc.pipeline.training import ensemble
from kdc.pipeline.training.folds import check_audit
from kdc.pipeline.training.student_checks import check_models, check_windows


def depends_on(run: Run) -> dict[str, Any]:
    student = run.config.student
    own = {} if student.kind.is_of_teacher else {"student_model": loading.fingerprint(student.model)}
    data = run.config.data
    sliced = {"slices": data.slices, "sliced_rows": input_fingerprint(data)} if data.slices else {}
    return answered_rows(run.config) | own | sliced


def run(run: Run, out: Path) -> DataResult:
    config = run.config
    # Scores of `kdc label` repeat people's labels: the teacher would always be right.
    people_judge = config.teacher.scores is None
    report = prepare(out, task_of(config.data), config.data, seed=config.run.seed, people_judge=people_judge)
    for warning in report.warnings:
        run.say(f"warning: {warning}")
    task = open_data(out).task
    choose_exporter(config.export.exporter)
    sources = {ensemble.role(place): source for place, source in enumerate(config.teacher.sources)}
    if not config.student.kind.is_of_teacher:
        sources["student"] = config.student.model
    max_length: dict[str, int] = {}
    tokens: dict[str, dict[str, TokenCounts]] = {}
    for role, source in sources.items():
        tokenizer = loading.load_tokenizer(source, config.data.prefix)
        longest = loading.longest_input(loading.load_config(source), tokenizer)
        max_length[role] = min(config.data.max_length or task.max_length, longest)
        windows = windows_for(tokenizer, config.long, max_length[role], is_pair=task.is_pair)
        tokens[role] = tokenise(out, role, tokenizer, max_length[role], run.progress, windows)
    if "student" not in sources:  # made of the teacher
        os.symlink("tokens-teacher", out / "tokens-student")
        max_length["student"], tokens["student"] = max_length["teacher"], tokens["teacher"]
    headline = _headline(task.name, tokens["teacher"], max_length["teacher"], config.long.of(max_length["teacher"]))
    return DataResult(max_length=max_length, tokens=tokens, report=report, headline=headline)


def _headline(name: str, splits: Mapping[str, TokenCounts], length: int, long: LongTexts | None) -> str:
    rows = ", ".join(f"{split} {counts.rows}" for split, counts in splits.items())
    cut = sum(counts.truncated for counts in splits.values())
    room = f"{length} tokens" if long is None else f"{long.windows} windows of {length} tokens"
    return f"{name}, {rows} rows; {cut} longer than {room} were cut"


def check(run: Run) -> None:
    """Raise InputError for settings that do not fit the task."""
    config, data = run.config, run.data()
    operating, task = config.operating, data.task
    check_windows(config.long, task.kind, (config.teacher.window_loss, config.student.window_loss))
    aims_of(operating.aims, task)
    abstain_of(operating.abstain, operating.aims, task, defer=operating.defer)
    check_sets(operating.sets, task)
    questions_of(operating.question, task)
    _check_rows_for_sets(operating.sets, data.groups("tune"))
    check_second(run)
    for requirement in config.contract.require:
        required_label(requirement, task)
    check_slices(data.slices(config.data.slices, "student"), config.contract.require)
    check_models(config.student, config.teacher, task, is_searched=config.searches)
    if config.data.audit_labels:
        check_audit(config.teacher, task)
    contract = config.contract.terms
    if contract is not None:
        length = run.result(DataResult).max_length["student"]
        check_length(contract.at, longest_row(length, config.long.of(length)))


def _check_rows_for_sets(coverage: float | None, groups: Groups) -> None:
    rows = int(independent_rows(groups, len(groups)))
    if coverage is not None and rows < fewest_rows(coverage):
        most = math.floor(1e3 * rows / (rows + 1)) / 1e3
        raise InputError(
            "the tuning set has too few rows for sets that hold the true label so often",
            given=f"operating.sets={coverage:g}, {rows} independent rows, and {fewest_rows(coverage)} are needed",
            remedy=f"more training rows (and so tuning rows), or --set operating.sets={most:g}",
        )
