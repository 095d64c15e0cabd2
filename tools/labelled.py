"""An artifact on a file of labelled rows: its metrics, for `kdc evaluate`, and beside its teacher, for `kdc verify`.

Needs the compress extra. The rows of the artifact's own evaluation need no teacher: the artifact keeps its answers.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import judge_drop
from kdc.artifact.contract.terms import Contract, Quality, Verdict, replace
from kdc.artifact.decision import Abstention, LabelSets, OperatingPoint, decision_table, sets_table
from kdc.artifact.manifest import Device, TaskInfo
from kdc.common.errors import KdcError
from kdc.common.frozen import Frozen
from kdc.common.tables import aligned
from kdc.pipeline.config import metrics
from kdc.pipeline.config.tasks import TASKS, Task, custom_task
from kdc.pipeline.data.prepared import groups_of, read_labelled
from kdc.pipeline.quality.comparison import Other, compare
from kdc.pipeline.quality.decision_rates import measured
from kdc.pipeline.quality.intervals import score_interval
from kdc.pipeline.quality.judging import Answers, judge_answers
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import Text
from kdc.tools.compared import kept_answers, look_of, refuse_better_baseline, teacher_of

_MAX_DROP = 1.0  # points, where the artifact has no contract that says


class Evaluation(Frozen):
    """What `kdc evaluate --json` prints."""

    artifact: str  # folder of the artifact
    rows: int  # how many the file holds
    variant: str | None  # the ONNX file that answered them
    provider: str  # the execution provider that ran it
    metrics: dict[str, float]  # points by name of the metric
    interval: tuple[float, float]  # of the task's deciding metric, in points, with a confidence of 95 %
    groups: int  # how many groups the rows form, which the interval counts
    # Beside what it is compared with in a contract, whose answers the artifact keeps; None on rows that it was not
    # evaluated on.
    compared: Quality | None
    max_drop: float | None  # points that it may lose there: the contract's, or one
    verdict: Verdict | None  # whether it is shown to keep to that
    points: tuple[OperatingPoint, ...]  # the labels' thresholds, with how they do on these rows as `evaluation`
    abstain: Abstention | None  # likewise, which rows are answered; None where all are
    sets: LabelSets | None  # likewise, sets of labels; None where there are none
    promised: dict[str, float]  # what the artifact's manifest states for this variant, of its own evaluation split


def evaluate_artifact(
    artifact: Path,
    data: Path,
    *,
    columns: Mapping[str, str | None],
    variant: str | None = None,
    device: Device = "auto",
) -> Evaluation:
    """Answer the rows of a file and compare the answers with the labels.

    Args:
        artifact: its folder.
        data: the file.
        columns: see `read_rows_for`.
        variant: None takes the manifest's choice.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: the file does not fit the artifact's task.
    """
    engine = Engine.load(artifact, variant=variant, device=device)
    task, texts, labels = read_rows_for(engine.task, data, columns)
    known = TASKS.get(engine.task.name)
    names = known.metrics if known is not None else task.metrics
    promised = engine.manifest.variants[engine.variant].metrics if engine.manifest is not None else {}  # type: ignore[index]
    logits, metric = engine.logits(texts), engine.task.metric or names[0]
    compared, contract, groups = _compared(artifact, engine, texts, logits, labels, metric)
    decisions = measured(engine.task, "evaluation", engine.activated(logits), labels)
    return Evaluation(
        artifact=str(artifact),
        rows=len(texts),
        variant=engine.variant,
        provider=engine.provider,
        metrics=metrics.compute(logits, labels, task.kind, names),
        interval=score_interval(logits, labels, task.kind, metric, groups=groups),
        groups=len(np.unique(groups)),
        compared=compared,
        max_drop=None if compared is None else contract.limits.max_drop,
        verdict=None if compared is None else judge_drop(contract, compared),
        points=decisions.points,
        abstain=decisions.abstain,
        sets=decisions.sets,
        promised=promised,
    )


def _compared(
    artifact: Path,
    engine: Engine,
    texts: Sequence[Text],
    logits: NDArray[np.floating],
    labels: NDArray[np.generic],
    metric: str,
) -> tuple[Quality | None, Contract, NDArray[np.integer]]:
    """The artifact beside what its contract compares with, None where it keeps no answers to these rows; that contract,
    or one about a point where it has none; and the rows' groups, (rows,)."""
    task, judged = engine.task, None if engine.manifest is None else engine.manifest.contract
    contract = Contract() if judged is None else judged.contract
    if contract.limits.max_drop is None:
        contract = replace(Contract(), {"max_drop": _MAX_DROP})
    try:
        other, groups = kept_answers(artifact, engine.manifest, texts, contract)
    except KdcError:
        return None, contract, groups_of(texts)
    look = look_of(engine)
    quality = compare(logits, other, labels, task.kind, metric, contract=contract, groups=groups, look=look)
    return quality, contract, groups


def render(evaluation: Evaluation) -> str:
    """The metrics on the file beside those that the artifact promises, a line for each."""
    lines = [f"{evaluation.rows} rows through {evaluation.variant} on {evaluation.provider}"]
    for name, value in evaluation.metrics.items():
        promised = evaluation.promised.get(name)
        beside = "" if promised is None else f"   (on its own evaluation split {promised:.2f})"
        lines.append(f"{name:<12}{value:8.2f}{beside}")
    low, high = evaluation.interval
    lines.append(f"95 % interval, by {evaluation.groups} groups of rows: {low:.2f} to {high:.2f}")
    if (found := evaluation.compared) is not None:
        gap = f"{found.difference:+.2f} ({found.interval[0]:+.2f} to {found.interval[1]:+.2f})"
        asked = f"at most {evaluation.max_drop:g} points below the {found.against}"
        lines.append(f"{asked}: {gap}, {evaluation.verdict}")
    if evaluation.points or evaluation.abstain is not None:
        lines.append("(of the most probable label, or of labels from one half on; decisions by thresholds are below)")
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
    """Read a labelled file, compare the artifact with its teacher on its rows, and count its decisions.

    Args:
        artifact: its folder, whose `evaluation.npz` keeps the teacher's logits by the rows' fingerprints.
        engine: the artifact, loaded.
        contract: what is asked.
        data: the labelled file.
        columns: see `read_rows_for`.
        teacher: path or hub id of a teacher that answers all rows; None takes the logits that the artifact keeps.

    Returns:
        The texts of the rows, the comparison, None where the contract asks for no `max_drop`, and the decisions.

    Raises:
        InputError: the file does not fit the task, or holds rows whose logits the artifact does not keep and no
            teacher is given.
    """
    info = engine.task
    task, texts, labels = read_rows_for(info, data, columns)
    other: Other | None = None
    groups: NDArray[np.integer] = groups_of(texts)
    look = 1
    if contract.limits.max_drop is not None and teacher is None:
        other, groups = kept_answers(artifact, engine.manifest, texts, contract)
        look = look_of(engine)
    else:
        if contract.limits.max_drop is not None and teacher is not None:
            refuse_better_baseline(artifact, engine.manifest, contract)
            other = Other("teacher", teacher_of(task, teacher, engine.tokenizer_info)(texts))
        with contextlib.suppress(KdcError):  # the rows may be those of the evaluation all the same
            _, groups = kept_answers(artifact, engine.manifest, texts, contract)
            look = look_of(engine)
    if other is None and not contract.limits.require:
        return texts, (None, ())
    logits = engine.logits(texts)
    probabilities = engine.activated(logits)
    return texts, judge_answers(
        logits, probabilities, labels, info, contract=contract, other=other, groups=groups, look=look
    )


def read_rows_for(
    info: TaskInfo, data: Path, columns: Mapping[str, str | None]
) -> tuple[Task, list[Text], NDArray[np.generic]]:
    """Read a labelled file as an artifact takes its rows.

    Args:
        info: the artifact's task.
        data: the labelled file.
        columns: names of the columns `text`, `text_pair` and `label`, and the `separator` of labels in one cell; None,
            or left out, for those that are named as in training.

    Returns:
        The artifact's task with the file's columns, the texts, and the labels: (rows,), or (rows, outputs) in {0, 1}
        for multi-label.

    Raises:
        InputError: the file does not fit the task.
    """
    task = task_with(info, columns)
    texts, labels = read_labelled(data, task, separator=columns.get("separator"))
    return task, texts, np.asarray(labels)


def task_with(info: TaskInfo, columns: Mapping[str, str | None]) -> Task:
    """An artifact's task with a file's columns, as in `read_rows_for`."""
    return custom_task(
        info.name,
        columns.get("text") or info.text,
        columns.get("text_pair") or info.text_pair,
        columns.get("label") or "label",
        info.kind,
        info.labels,
    )
