"""What a trained model answers on the tuning slice, and whether it learned anything."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.common.errors import KdcError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.quality import metrics
from kdc.pipeline.results import ModelResult
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.predict import predict


def score_model(model: Any, tune: Rows, task: Task, pad_id: int) -> ModelResult:
    """A model's metrics on the tuning slice.

    Args:
        model: a sequence classifier, on the device where it shall answer.
        tune: the tuning slice, labelled.
        task: names the metrics.
        pad_id: the tokenizer's padding id.
    """
    logits = predict(model, tune, pad_id=pad_id)
    return score_logits(logits, np.concatenate([np.asarray(part["label"][:]) for part in tune.parts]), task)


def score_logits(logits: NDArray[np.floating], labels: NDArray[np.generic], task: Task) -> ModelResult:
    """The same of answers that are there already: logits (rows, outputs), labels (rows,) or multi-hot rows."""
    return ModelResult(
        tune=metrics.compute(logits, labels, task.kind, task.metrics),
        majority=metrics.majority(labels, task.kind, task.metrics),
        constant=metrics.is_constant(logits, task.kind),
    )


def check_learned(result: ModelResult, task: Task, *, who: str, allow: bool, remedy: str) -> str | None:
    """Refuse a model that learned nothing.

    Args:
        result: what it answers on the tuning slice.
        task: names the deciding metric.
        who: "teacher" or "student".
        allow: only warn.
        remedy: what to try.

    Returns:
        The warning, or None where all is well.

    Raises:
        KdcError: the model gives one answer to all rows, or does not beat the majority.
    """
    name = task.metrics[0]
    score, floor = result.tune[name], result.majority[name]
    if result.constant:
        problem = f"the {who} gives every text the same answer"
    elif score <= floor:
        problem = f"the {who} does not beat the majority answer on the tuning slice"
    else:
        return None
    scores = f"{name} {score:.1f}, majority {floor:.1f}"
    if allow:
        return f"{problem} ({scores})"
    raise KdcError(problem, given=scores, remedy=remedy)
