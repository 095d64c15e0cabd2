"""An artifact on labelled rows: metrics for `kdc evaluate`, a comparison with the teacher for `kdc verify`. Needs the
compress extra."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.terms import Contract
from kdc.artifact.decision import Abstention, LabelSets, OperatingPoint, decision_table, sets_table
from kdc.artifact.manifest import Device, TaskInfo
from kdc.common.frozen import Frozen
from kdc.common.records import Dialect
from kdc.common.tables import aligned
from kdc.pipeline.config import metrics
from kdc.pipeline.config.tasks import TASKS, Task, custom_task
from kdc.pipeline.data.prepared import read_labelled
from kdc.pipeline.quality.comparison import Other
from kdc.pipeline.quality.decision_rates import measured
from kdc.pipeline.quality.intervals import score_interval
from kdc.pipeline.quality.judging import Answers, judge_answers
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import Text
from kdc.tools.reference import kept_reference, reference_if_kept, refuse_better_baseline, teacher_of


class Evaluation(Frozen):
    """Output of `kdc evaluate --json`."""

    artifact: str
    rows: int
    variant: str | None
    provider: str  # the execution provider
    metrics: dict[str, float]  # in points, by name
    interval: tuple[float, float]  # 95 %, of the deciding metric
    groups: int
    points: tuple[OperatingPoint, ...]  # with rates on these rows as `evaluation`
    abstain: Abstention | None  # likewise
    sets: LabelSets | None  # likewise
    promised: dict[str, float]  # the manifest's metrics on the evaluation set


def evaluate_artifact(
    artifact: Path,
    data: Path,
    *,
    columns: Mapping[str, str | None],
    variant: str | None = None,
    device: Device = "auto",
) -> Evaluation:
    """`columns` are as in `read_rows_for`.

    Raises:
        InputError: the file does not fit the task.
    """
    engine = Engine.load(artifact, variant=variant, device=device)
    manifest, info = engine.manifest, engine.task
    assert manifest is not None
    task, texts, labels = read_rows_for(info, data, columns)
    names = (TASKS.get(info.name) or task).metrics
    metric, logits = info.metric or names[0], engine.logits(texts)
    groups = reference_if_kept(artifact, engine, texts, Contract()).groups
    decisions = measured(info, "evaluation", engine.activated(logits), labels)
    return Evaluation(
        artifact=str(artifact),
        rows=len(texts),
        variant=engine.variant,
        provider=engine.provider,
        metrics=metrics.compute(logits, labels, info.kind, names),
        interval=score_interval(logits, labels, info.kind, metric, groups=groups),
        groups=len(np.unique(groups)),
        points=decisions.points,
        abstain=decisions.abstain,
        sets=decisions.sets,
        promised=manifest.variants[engine.variant].metrics,  # type: ignore[index]
    )


def render(evaluation: Evaluation) -> str:
    lines = [f"{evaluation.rows} rows through {evaluation.variant} on {evaluation.provider}"]
    for name, value in evaluation.metrics.items():
        promised = evaluation.promised.get(name)
        beside = "" if promised is None else f"   (on its own evaluation split {promised:.2f})"
        lines.append(f"{name:<12}{value:8.2f}{beside}")
    low, high = evaluation.interval
    lines.append(f"95 % interval, by {evaluation.groups} groups of rows: {low:.2f} to {high:.2f}")
    if evaluation.points or evaluation.abstain is not None:
        lines.append("(by the most probable label, or each label at 0.5; decisions at thresholds are below)")
    for decisions in (decision_table(evaluation.points, evaluation.abstain), sets_table(evaluation.sets)):
        lines += ["", aligned(decisions)] if decisions else []
    return "\n".join(lines)


def compare_again(
    artifact: Path,
    engine: Engine,
    contract: Contract,
    data: Path,
    columns: Mapping[str, str | None],
    teacher: str | None,
) -> tuple[list[Text], Answers]:
    """Compare an artifact with its teacher, or the logits that it keeps, and count its decisions. Arguments are as in
    `kdc.verify`.

    Returns:
        Texts, comparison (None without `max_drop`), and decisions.

    Raises:
        InputError: the file does not fit, or rows without kept logits need a teacher.
    """
    info = engine.task
    task, texts, labels = read_rows_for(info, data, columns)
    has_drop = contract.limits.max_drop is not None
    if not has_drop and not contract.limits.require:
        return texts, (None, ())
    find = kept_reference if has_drop and teacher is None else reference_if_kept
    other, groups, look = find(artifact, engine, texts, contract)
    if has_drop and teacher is not None:  # evaluation rows keep their groups and their look
        refuse_better_baseline(artifact, engine, contract)
        other = Other("teacher", teacher_of(task, teacher, engine.tokenizer_info)(texts))
    logits = engine.logits(texts)
    return texts, judge_answers(
        logits, engine.activated(logits), labels, info, contract=contract, other=other, groups=groups, look=look
    )


def read_rows_for(
    info: TaskInfo, data: Path, columns: Mapping[str, str | None]
) -> tuple[Task, list[Text], NDArray[np.generic]]:
    """Read a labelled file for an artifact's task.

    Args:
        columns: names of `text`, `text_pair` and `label`, by default as in training, the `separator` of labels, and
            the file's `delimiter` and `encoding`.

    Returns:
        The task, texts, and labels: (rows,), or (rows, outputs) in {0, 1} for multi-label.
    """
    task = task_with(info, columns)
    dialect = Dialect(columns.get("delimiter"), columns.get("encoding"))
    texts, labels = read_labelled(data, task, separator=columns.get("separator"), dialect=dialect)
    return task, texts, np.asarray(labels)


def task_with(info: TaskInfo, columns: Mapping[str, str | None]) -> Task:
    """An artifact's task with a file's columns."""
    text, pair = columns.get("text") or info.text, columns.get("text_pair") or info.text_pair
    return custom_task(info.name, text, pair, columns.get("label") or "label", info.kind, info.labels)
