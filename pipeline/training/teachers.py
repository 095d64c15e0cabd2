"""Train a teacher, or load a fine-tuned one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, set_seed

from kdc.artifact.manifest import Join
from kdc.common.errors import InputError
from kdc.common.progress import Progress
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import TeacherSettings
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.models import loading
from kdc.pipeline.models.opening import open_classifier
from kdc.pipeline.results.training import TrainingSummary
from kdc.pipeline.training import adapters
from kdc.pipeline.training.baselines import Linear, with_head
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.environment import Environment
from kdc.pipeline.training.finetuning import fine_tune
from kdc.pipeline.training.joining import best_join, set_join
from kdc.pipeline.training.predict import predict_parts


def train_teacher(
    source: str,
    settings: TeacherSettings,
    data: PreparedData,
    environment: Environment,
    *,
    role: str,
    checkpoints: Path,
    progress: Progress,
    head: Linear | None = None,
    join: tuple[Join, ...] | None = None,
) -> tuple[Any, TrainingSummary]:
    """Fine-tune a teacher, on the CPU at the end. A linear probe's `head` to start from forces mean pooling."""
    set_seed(environment.seed)
    pooling = settings.pooling if head is None else "mean"
    loaded = loading.load_model(source, data.task, pooling=pooling, dropout=settings.dropout_rate)
    model = loaded.model if head is None else with_head(loaded.model, head)
    set_join(model, join)
    if settings.method == "lora":
        model = adapters.with_adapters(model, loaded.new_modules, settings.lora)
    training = fine_tune(
        model,
        settings,
        data,
        environment,
        role=role,
        pad_id=loading.load_tokenizer(source).pad_token_id,
        checkpoints=checkpoints,
        progress=progress,
        new_modules=loaded.new_modules if head is None else (),
    )
    model = model.to("cpu")
    return model.merge_and_unload() if settings.method == "lora" else model, training


def choose_join(model: Any, tune: Rows, task: Task, pad_id: int) -> None:
    parts, counts = predict_parts(model, tune, pad_id=pad_id)
    labels = np.asarray(tune.dataset["label"][:])
    if not task.traits.has_labels:
        labels = (labels - task.center) / task.spread
    set_join(model, best_join(parts, counts, labels, task.kind))


def load_finetuned(source: str, task: Task, names: tuple[str, ...] | None) -> Any:
    """Load a fine-tuned teacher (path or hub id), its outputs in label order.

    Args:
        names: for a config that only says LABEL_0, LABEL_1, ...

    Raises:
        InputError: missing, not fine-tuned, or other labels.
    """
    try:
        model, info = open_classifier(loading.locate(source), dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load the teacher: {error}", given=source, remedy="check --teacher") from error
    if info["missing_keys"]:
        raise InputError(
            "the teacher is not fine-tuned: its checkpoint has no weights for these modules",
            given=", ".join(sorted(info["missing_keys"])),
            remedy="drop teacher.finetuned to fine-tune it here",
        )
    order = label_order(model.config, task, names)
    head = _output_layer(model, task.outputs)
    bias = torch.zeros(head.out_features) if head.bias is None else head.bias
    with torch.no_grad():
        if order is None:  # to (answer - center) / spread
            head.bias = torch.nn.Parameter((bias - task.center) / task.spread)
            head.weight.div_(task.spread)
        else:
            head.weight.copy_(head.weight[order])
            bias.copy_(bias[order])
    model.config.update(loading.outputs_of(task))
    return model


def label_order(config: Any, task: Task, names: tuple[str, ...] | None) -> list[int] | None:
    """The teacher's output index for each label; None for regression.

    Raises:
        InputError: other outputs than the task's, or `names` in another order than the config's.
    """
    if config.num_labels != task.outputs:
        raise InputError(
            "the teacher has another number of outputs than the task",
            given=f"{config.num_labels}, task {task.outputs}",
            remedy=f"bring a teacher for the labels {', '.join(task.labels) or '(one number)'}",
        )
    if not task.traits.has_labels:
        return None
    own = tuple(config.id2label[index] for index in range(config.num_labels))
    outputs = names or own
    lower, own_lower = ([name.lower() for name in labels] for labels in (outputs, own))
    if lower != own_lower and sorted(lower) == sorted(own_lower):
        raise InputError(
            "the teacher's own label names are in another order than teacher.labels",
            given=f"its config.json {', '.join(own)}; teacher.labels {', '.join(outputs)}",
            remedy="leave out teacher.labels, which is for all teachers, or correct the one that is wrong (id2label "
            "in its config.json)",
        )
    if sorted(set(lower)) != sorted(name.lower() for name in task.labels):
        raise InputError(
            "the teacher's labels are not the task's",
            given=f"teacher {', '.join(outputs)}; task {', '.join(task.labels)}",
            remedy="rename the labels in the data, or name the teacher's outputs, in their order, for example --set "
            f"teacher.labels={','.join(task.labels)}",
        )
    return [lower.index(name.lower()) for name in task.labels]


def _output_layer(model: PreTrainedModel, outputs: int) -> torch.nn.Linear:
    *_, head = (
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module.out_features == outputs
        and not name.startswith(model.base_model_prefix + ".")
    )
    return head
