"""Fine-tune a model and score it on the tuning set."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.common.errors import InputError, KdcError
from kdc.common.progress import Progress
from kdc.pipeline.config import metrics
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import StudentSettings, TrainSettings
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.results.training import ModelResult, TrainingSummary
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.checkpoints import last_checkpoint
from kdc.pipeline.training.environment import Environment, settle
from kdc.pipeline.training.loop import Objective, Plan, train
from kdc.pipeline.training.predict import predict

_MOST_EVALUATIONS = 40  # with patience
_LIKELY = 0.05  # with a larger p-value, a score may be chance


def fine_tune(
    model: Any,
    settings: TrainSettings,
    data: PreparedData,
    environment: Environment,
    *,
    role: str,
    pad_id: int,
    checkpoints: Path,
    progress: Progress,
    new_modules: tuple[str, ...] = (),
    teacher_logits: Path | None = None,
    unlabeled: bool = True,
) -> TrainingSummary:
    """Train a model in place; it stays on the environment's device.

    Args:
        role: see `PreparedData.tokens`.
        new_modules: see `Loaded`.
        teacher_logits: .npy file, (row ids, outputs); None: labels only.
    """
    objective = Objective(
        data.task, class_weights(settings.class_weights, data), each_window=settings.window_loss == "each"
    )
    if isinstance(settings, StudentSettings):
        objective = replace(objective, alpha=settings.alpha, temperature=settings.temperature)
    splits = ["train", "unlabeled"] if teacher_logits and unlabeled and data.has("unlabeled") else ["train"]
    rows = Rows.read(data, role, splits, teacher_logits)
    environment = settle(environment, model, rows, pad_id=pad_id)
    return train(
        model,
        rows,
        Rows.read(data, role, ["tune"], teacher_logits),
        pad_id=pad_id,
        objective=objective,
        plan=replace(plan_for(settings, len(rows), environment), new_modules=new_modules),
        folder=checkpoints,
        resume=last_checkpoint(checkpoints),
        progress=progress,
        groups=data.groups("tune"),
    )


def plan_for(settings: TrainSettings, rows: int, environment: Environment) -> Plan:
    """Turn epochs into steps: at least `min_steps`, rounded up to whole evaluation intervals.

    Small tables are learnt by heart in a few passes, so with patience each pass has an evaluation.
    """
    updates = math.ceil(rows / (settings.batch_size * settings.accumulate))
    least = max(math.ceil(settings.epochs * updates), settings.min_steps)
    passes = 0 if settings.patience is None else min(least // updates, _MOST_EVALUATIONS)
    every = math.ceil(least / max(settings.evaluations, passes))
    return Plan(settings, environment, steps=every * math.ceil(least / every), evaluate_every=every)


def check_class_weights(setting: str | dict[str, float], task: Task) -> None:
    """Raise InputError for unknown labels, and in regression."""
    if setting != "none" and not task.traits.has_labels:
        raise InputError("regression has no classes to weigh", given=setting, remedy="drop class_weights")
    unknown = sorted(set(setting) - set(task.labels)) if isinstance(setting, dict) else []
    if unknown:
        raise InputError(
            "class_weights names labels that the task does not have",
            given=", ".join(unknown),
            remedy=f"its labels: {', '.join(task.labels)}",
        )


def class_weights(setting: str | dict[str, float], data: PreparedData) -> tuple[float, ...] | None:
    """Class weights in output order; the average training label weighs 1."""
    task = data.task
    if setting == "none":
        return None
    labels = np.asarray(data.tokens("teacher", "train")["label"][:])
    counts = labels.sum(0) if task.traits.has_lists else np.bincount(labels, minlength=len(task.labels))
    if isinstance(setting, dict):
        raw = np.array([setting.get(name, 1.0) for name in task.labels])
    else:
        raw = len(labels) / np.maximum(counts, 1)
    return tuple(float(weight) for weight in raw * counts.sum() / (raw * counts).sum())


def score_model(
    model: Any, data: PreparedData, role: str, pad_id: int, training: TrainingSummary | None = None
) -> ModelResult:
    result = score_logits(predict(model, Rows([data.tokens(role, "tune")]), pad_id=pad_id), data)
    return result.model_copy(update={"training": training})


def score_logits(logits: NDArray[np.floating], data: PreparedData) -> ModelResult:
    """`logits` (tuning rows, outputs)."""
    task, labels = data.task, np.asarray(data.rows("tune")["label"][:])
    return ModelResult(
        tune=metrics.compute(logits, labels, task.kind, task.metrics),
        majority=metrics.majority(labels, task.kind, task.metrics),
        constant=metrics.is_constant(logits, task.kind),
        chance=metrics.chance(logits, labels, task.kind, task.metrics[0], groups=data.groups("tune")),
    )


def check_learned(result: ModelResult, task: Task, *, who: str, allow: bool, remedy: str) -> str | None:
    """Raise KdcError, or warn with `allow`, if answers are constant, no better than the majority's, or maybe chance."""
    name = task.metrics[0]
    score, floor = result.tune[name], result.majority[name]
    if result.constant:
        problem = f"the {who} gives every text the same answer"
    elif score <= floor:
        problem = f"the {who} does not beat the majority answer on the tuning set"
    elif result.chance > _LIKELY:
        problem = f"the {who} is not shown to be better than chance on the tuning set"
    else:
        return None
    by_chance = f"chance answers do as well in {100 * result.chance:.1f} % of cases"
    scores = f"{name} {score:.1f}, majority {floor:.1f}; {by_chance}"
    if allow:
        return f"{problem} ({scores})"
    raise KdcError(problem, given=scores, remedy=remedy)
