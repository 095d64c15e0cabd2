"""One training, from settings to a trained model: what stages `teacher`, `student` and `controls` share."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.settings import TrainSettings
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.quality import metrics
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.checkpoints import last_checkpoint
from kdc.pipeline.training.loop import Objective, Plan, train
from kdc.pipeline.training.predict import predict


@dataclass(frozen=True)
class Distillation:
    """What a student learns from beside the labels.

    Attributes:
        file: the teacher's logits (.npy), (row ids, outputs) indexed by row id.
        alpha: weight of the teacher's term.
        temperature: T.
    """

    file: Path
    alpha: float
    temperature: float

    @property
    def logits(self) -> NDArray[np.float32]:
        """The teacher's logits, memory-mapped."""
        return np.load(self.file, mmap_mode="r")


def fit(
    run: Run,
    model: Any,
    settings: TrainSettings,
    *,
    role: str,
    pad_id: int,
    folder: Path,
    distillation: Distillation | None = None,
    by_loss: bool = False,
) -> dict[str, Any]:
    """Train `model` in place on the run's rows; checkpoints live in `folder` until the training is done.

    Args:
        run: the run.
        model: a sequence classifier or a PEFT model over one.
        settings: of the stage.
        role: whose tokens: "teacher" or "student".
        pad_id: the tokenizer's padding id.
        folder: for checkpoints.
        distillation: None trains on labels alone.
        by_loss: choose the best step by the loss on the tuning slice, not by the metric.

    Returns:
        `training.train`'s summary, with the tuning slice's metrics, the majority's, and whether it is constant.
    """
    summary: dict[str, Any] = run.ranks.together(
        _train,
        run,
        model=model,
        settings=settings,
        role=role,
        pad_id=pad_id,
        folder=folder,
        resume=last_checkpoint(folder),
        distillation=distillation,
        by_loss=by_loss,
    )
    data = run.data()
    summary.update(judge(model, Rows([data.tokens(role, "tune")]), data.task, pad_id))
    model.to("cpu")
    return summary


def planned_steps(run: Run, settings: TrainSettings, *, role: str) -> int:
    """Steps of a whole distillation with these settings, on the labelled rows and the unlabelled ones."""
    data = run.data()
    rows = sum(len(data.tokens(role, split)) for split in ("train", "unlabeled") if data.has(split))
    return plan_for(settings, rows, seed=run.config.run.seed, device=run.device, bf16=run.bf16).steps


def _train(
    run: Run,
    *,
    model: Any,
    settings: TrainSettings,
    role: str,
    pad_id: int,
    folder: Path,
    resume: Path | None,
    distillation: Distillation | None,
    by_loss: bool,
) -> dict[str, Any]:
    """What every rank does of a training."""
    data = run.data()
    task, parts, logits = data.task, [data.tokens(role, "train")], None
    if distillation is not None:
        logits = distillation.logits
        parts += [data.tokens(role, "unlabeled")] if data.has("unlabeled") else []
    rows = Rows(parts, logits)
    return train(
        model.to(run.device),
        rows,
        Rows([data.tokens(role, "tune")], logits),
        pad_id=pad_id,
        objective=Objective(
            kind=task.kind,
            metric_names=task.metrics,
            alpha=distillation.alpha if distillation else 0.0,
            temperature=distillation.temperature if distillation else 1.0,
            class_weights=class_weights(settings.class_weights, data),
            center=task.center,
            spread=task.spread,
        ),
        plan=plan_for(
            settings, len(rows), seed=run.config.run.seed, device=run.device, bf16=run.bf16, ranks=run.ranks.size
        ),
        folder=folder,
        resume=resume,
        progress=run.progress,
        by_loss=by_loss,
    )


def finish(folder: Path) -> None:
    """Remove the checkpoints: the trained model is saved."""
    shutil.rmtree(folder, ignore_errors=True)


def plan_for(settings: TrainSettings, rows: int, *, seed: int, device: str, bf16: bool, ranks: int = 1) -> Plan:
    """Epochs as steps, at least `min_steps`, rounded up so that the last step is looked at."""
    a_step = settings.batch_size * settings.accumulate
    wanted = max(math.ceil(settings.epochs * math.ceil(rows / a_step)), settings.min_steps)
    every = math.ceil(wanted / settings.evaluations)
    steps = every * math.ceil(wanted / every)
    return Plan(
        steps=steps,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        evaluate_every=every,
        patience=settings.patience,
        seed=seed,
        device=device,
        bf16=bf16,
        gradient_checkpointing=settings.gradient_checkpointing,
        ranks=ranks,
    )


def judge(model: Any, tune: Rows, task: Task, pad_id: int) -> dict[str, Any]:
    """The tuning slice's metrics beside those of the majority, and whether all answers are the same."""
    logits = predict(model, tune, pad_id=pad_id)
    return judge_logits(logits, np.concatenate([np.asarray(part["label"][:]) for part in tune.parts]), task)


def judge_logits(logits: NDArray[np.floating], labels: NDArray[np.generic], task: Task) -> dict[str, Any]:
    """The same of logits that are there already."""
    return {
        "tune": metrics.compute(logits, labels, task.kind, task.metrics),
        "majority": metrics.majority(labels, task.kind, task.metrics),
        "constant": metrics.is_constant(logits, task.kind),
    }


def check_learned(summary: dict[str, Any], task: Task, *, who: str, allow: bool, remedy: str) -> str | None:
    """Refuse a model that learned nothing.

    Args:
        summary: of `judge`.
        task: names the deciding metric.
        who: "teacher" or "student".
        allow: only warn.
        remedy: what to try.

    Returns:
        The warning, or None where all is well.

    Raises:
        KdcError: the model gives one answer to all, or does not beat the majority.
    """
    name = task.metrics[0]
    score, floor = summary["tune"][name], summary["majority"][name]
    if summary["constant"]:
        problem = f"the {who} gives every text the same answer"
    elif score <= floor:
        problem = f"the {who} does not beat the majority answer on the tuning slice"
    else:
        return None
    given = f"{name} {score:.1f}, majority {floor:.1f}"
    if allow:
        return f"{problem} ({given})"
    raise KdcError(problem, given=given, remedy=remedy)


def check_class_weights(setting: str | dict[str, float], task: Task) -> None:
    """Refuse weights that the task cannot have.

    Raises:
        InputError: a label that the task does not have, or regression.
    """
    if setting != "none" and task.kind == "regression":
        raise InputError("regression has no classes to weigh", given=setting, remedy="drop class_weights")
    unknown = sorted(set(setting) - set(task.labels)) if isinstance(setting, dict) else []
    if unknown:
        raise InputError(
            "class_weights names labels that the task does not have",
            given=", ".join(unknown),
            remedy=f"its labels: {', '.join(task.labels)}",
        )


def class_weights(setting: str | dict[str, float], data: PreparedData) -> tuple[float, ...] | None:
    """Factors by label in output order, scaled so that the average training row weighs 1; None for none.

    Raises:
        InputError: as `check_class_weights`.
    """
    task = data.task
    check_class_weights(setting, task)
    if setting == "none":
        return None
    labels = np.asarray(data.tokens("teacher", "train")["label"][:])
    counts = labels.sum(0) if task.kind == "multilabel" else np.bincount(labels, minlength=len(task.labels))
    if isinstance(setting, dict):
        raw = np.array([setting.get(name, 1.0) for name in task.labels])
    else:
        raw = len(labels) / np.maximum(counts, 1)
    return tuple(float(weight) for weight in raw * counts.sum() / (raw * counts).sum())
