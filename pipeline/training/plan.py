"""From a stage's settings to the plain numbers that a training takes: steps, rates, weights of the classes."""

from __future__ import annotations

import math

import numpy as np

from kdc.common.errors import InputError
from kdc.pipeline.config.settings import TrainSettings
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.training import ranks
from kdc.pipeline.training.loop import Plan


def plan_for(settings: TrainSettings, rows: int, *, seed: int, device: str, bf16: bool) -> Plan:
    """Epochs as steps, at least `min_steps`, rounded up so that the tuning slice is looked at after the last step.

    Args:
        settings: of the stage.
        rows: that are trained on.
        seed: of order and dropout.
        device: "cpu" or "cuda".
        bf16: whether to train in bf16 autocast.
    """
    rows_per_update = settings.batch_size * settings.accumulate
    least = max(math.ceil(settings.epochs * math.ceil(rows / rows_per_update)), settings.min_steps)
    every = math.ceil(least / settings.evaluations)
    steps = every * math.ceil(least / every)
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
        ranks=ranks.size(),
    )


def check_class_weights(setting: str | dict[str, float], task: Task) -> None:
    """Refuse weights that the task cannot have.

    Raises:
        InputError: they name a label that the task does not have, or the task is regression.
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
    """Factors by label, in the order of the outputs, scaled so that the average training row weighs 1; None for none.

    Args:
        setting: "none"; "balanced", which weighs a class by the inverse of its share of the training rows; or factors
            by label name, 1 for those not named.
        data: the rows.

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
