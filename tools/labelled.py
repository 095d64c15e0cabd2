"""An artifact on labelled rows: metrics for `kdc evaluate`, a comparison with the teacher for `kdc verify`. Needs the
compress extra.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.rates import parse_bound
from kdc.artifact.contract.terms import Contract
from kdc.artifact.decision import (
    Abstention,
    LabelSets,
    OperatingPoint,
    SliceFigures,
    decision_table,
    sets_table,
    slice_notes,
    slice_table,
)
from kdc.artifact.manifest import Device, TaskInfo
from kdc.common.frozen import Frozen
from kdc.common.records import Dialect
from kdc.common.tables import aligned
from kdc.pipeline.config import metrics
from kdc.pipeline.config.aims import check_slices
from kdc.pipeline.config.data_settings import LENGTH
from kdc.pipeline.config.metrics import Slices
from kdc.pipeline.config.tasks import TASKS, Task, custom_task
from kdc.pipeline.data.prepared import read_labelled, slices_of
from kdc.pipeline.quality.comparison import Other
from kdc.pipeline.quality.decision_rates import measured
from kdc.pipeline.quality.intervals import score_interval
from kdc.pipeline.quality.judging import Answers, EvaluationAnswers, judge_answers
from kdc.pipeline.quality.slices import slice_figures
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import Text
from kdc.tools.reference import kept_reference, reference_if_kept, refuse_better_baseline, teacher_of


class Evaluation(Frozen):
    artifact: str
    rows: int
    variant: str | None
    provider: str  # the execution provider
    metrics: dict[str, float]  # in points, by name
    interval: tuple[float, float]  # 95 %, of the deciding metric
    groups: int
    points: tuple[OperatingPoint, ...]  # `evaluation` holds these rows' rates
    abstain: Abstention | None  # likewise
    sets: LabelSets | None  # likewise
    slices: tuple[SliceFigures, ...]
    promised: dict[str, float]  # the manifest's, on the evaluation set


def evaluate_artifact(
    artifact: Path,
    data: Path,
    *,
    columns: Mapping[str, str | None],
    slices: Sequence[str] = (),
    variant: str | None = None,
    device: Device = "auto",
) -> Evaluation:
    """`columns` and `slices` are as in `read_rows_for`. Raises InputError if the file does not fit the task."""
    engine = Engine.load(artifact, variant=variant, device=device)
    manifest, info = engine.manifest, engine.task
    assert manifest is not None
    task, texts, labels, sliced = read_rows_for(engine, data, columns, slices)
    names = (TASKS.get(info.name) or task).metrics
    metric, logits = info.metric or names[0], engine.logits(texts)
    other, groups, _ = reference_if_kept(artifact, engine, texts, Contract(against="teacher"))
    models = {"": logits} | ({} if other is None else {"teacher": other.logits})
    answers = EvaluationAnswers(texts, labels, models, groups, slices=sliced)
    by_slice = slice_figures(answers, "", info, tuple(dict.fromkeys([metric, *names])), manifest.temperature)
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
        slices=by_slice,
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
    decisions = decision_table(evaluation.points, evaluation.abstain)
    for more in (decisions, sets_table(evaluation.sets), slice_table(evaluation.slices)):
        lines += ["", aligned(more)] if more else []
    lines += [f"warning: {note}" for note in slice_notes(evaluation.slices)]
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
    `kdc.verify`. The comparison is None without `max_drop`.

    Raises:
        InputError: the file does not fit, or rows without kept logits need a teacher.
    """
    info = engine.task
    bounds = map(parse_bound, contract.limits.require)
    named = dict.fromkeys(bound.slice[0] for bound in bounds if bound and bound.slice)
    task, texts, labels, slices = read_rows_for(engine, data, columns, tuple(named))
    has_drop = contract.limits.max_drop is not None
    if not has_drop and not contract.limits.require:
        return texts, (None, ())
    find = kept_reference if has_drop and teacher is None else reference_if_kept
    other, groups, look = find(artifact, engine, texts, contract)
    if has_drop and teacher is not None:  # known rows keep groups and look
        refuse_better_baseline(artifact, engine, contract)
        other = Other("teacher", teacher_of(task, teacher, engine.tokenizer_info)(texts))
    logits = engine.logits(texts)
    judged = partial(judge_answers, logits, engine.activated(logits), labels, info, contract=contract)
    return texts, judged(other=other, groups=groups, slices=slices, look=look)


def read_rows_for(
    engine: Engine, data: Path, columns: Mapping[str, str | None], slices: Sequence[str]
) -> tuple[Task, list[Text], NDArray[np.generic], Slices]:
    """Read a labelled file for an artifact's task.

    Args:
        columns: names of `text`, `text_pair` and `label`, by default as in training, the `separator` of labels, and
            the file's `delimiter` and `encoding`.
        slices: columns, or `LENGTH`.

    Returns:
        The task, texts, labels: (rows,), or (rows, outputs) in {0, 1} for multi-label, and slices.
    """
    task = task_with(engine.task, columns)
    dialect, separator = Dialect(columns.get("delimiter"), columns.get("encoding")), columns.get("separator")
    texts, labels, values = read_labelled(data, task, separator=separator, dialect=dialect, slices=slices)
    sliced = slices_of(slices, values, map(len, engine.encode(texts) if LENGTH in slices else ()))
    check_slices(sliced)
    return task, texts, np.asarray(labels), sliced


def task_with(info: TaskInfo, columns: Mapping[str, str | None]) -> Task:
    text, pair = columns.get("text") or info.text, columns.get("text_pair") or info.text_pair
    return custom_task(info.name, text, pair, columns.get("label") or "label", info.kind, info.labels)
