"""A student: how it is made from a teacher or a checkpoint, trained through adapters, and loaded again.

A trained student's folder holds `base/` (before training, with its tokenizer), `adapter/` (PEFT; beside it `below/`
where the adapters' initialisation changed the weights) or `full/` where all weights are trained, and
`trained_logits.npy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedModel, set_seed

from kdc.pipeline.config.settings import StudentSettings
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.results import ModelResult
from kdc.pipeline.training import adapters, models
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.checkpoints import last_checkpoint
from kdc.pipeline.training.loop import Objective, train
from kdc.pipeline.training.outcome import score_model
from kdc.pipeline.training.plan import class_weights, plan_for
from kdc.pipeline.training.predict import predict

TRAINED_LOGITS = "trained_logits.npy"  # of `probe_rows`, by the model in memory right after its training
_PROBE_ROWS = 64


@dataclass(frozen=True)
class TeacherLogits:
    """What a student learns from beside the labels.

    Attributes:
        file: the teacher's logits (.npy), (row ids, outputs), indexed by row id.
        alpha: weight of the teacher's term of the loss; 1 - alpha is the labels'.
        temperature: T, by which both sides' logits are divided.
    """

    file: Path
    alpha: float
    temperature: float

    def read(self) -> NDArray[np.float32]:
        """The logits, memory-mapped."""
        return np.load(self.file, mmap_mode="r")


def distil(
    settings: StudentSettings,
    data: PreparedData,
    teacher_logits: TeacherLogits | None,
    out: Path,
    *,
    cut_from: str,
    role: str,
    seed: int,
    device: str,
    bf16: bool,
    progress: Callable[[int, int], None],
) -> ModelResult:
    """Make a student and train it into a folder.

    Args:
        settings: of the student.
        data: the rows.
        teacher_logits: what to learn from; None trains on the labels alone (a control).
        out: the folder.
        cut_from: the model that a student of "layers:..." is cut from.
        role: whose tokens it takes: "teacher" or "student".
        seed: of initialisation, order and dropout.
        device: "cpu" or "cuda".
        bf16: train in bf16 autocast.
        progress: called with (step, steps).
    """
    task = data.task
    set_seed(seed)
    loaded, source = new_student(settings.model, task, cut_from=cut_from)
    tokenizer = models.load_tokenizer(source)
    loaded.model.save_pretrained(out / "base")
    tokenizer.save_pretrained(out / "base")
    # What is trained is what reading the file gives: an architecture may build a layer by its number.
    student: Any = models.load_model(str(out / "base"), task).model
    parameters = models.count_parameters(student)
    if settings.method == "lora":
        student = adapters.with_adapters(student, loaded.new_modules, settings.lora.model_dump())
        adapters.save_rewritten(student, out / "base", out / "below")

    splits = ["train", "unlabeled"] if teacher_logits and data.has("unlabeled") else ["train"]
    logits = teacher_logits.read() if teacher_logits else None
    rows = Rows([data.tokens(role, split) for split in splits], logits)
    training = train(
        student,
        rows,
        Rows([data.tokens(role, "tune")], logits),
        pad_id=tokenizer.pad_token_id,
        objective=Objective(
            kind=task.kind,
            metric_names=task.metrics,
            alpha=teacher_logits.alpha if teacher_logits else 0.0,
            temperature=teacher_logits.temperature if teacher_logits else 1.0,
            class_weights=class_weights(settings.class_weights, data),
            center=task.center,
            spread=task.spread,
        ),
        plan=plan_for(settings, len(rows), seed=seed, device=device, bf16=bf16),
        folder=out / "checkpoints",
        resume=last_checkpoint(out / "checkpoints"),
        progress=progress,
        by_loss=True,
    )
    result = score_model(student, Rows([data.tokens(role, "tune")]), task, tokenizer.pad_token_id)

    student.to("cpu")
    if settings.method == "lora":
        adapters.save_adapters(student, out / "adapter")
    else:
        student.save_pretrained(out / "full")
    np.save(out / TRAINED_LOGITS, predict(student, probe_rows(data, role), pad_id=tokenizer.pad_token_id))
    return result.model_copy(update={"training": training, "parameters": parameters})


def new_student(model: str, task: Task, *, cut_from: str) -> tuple[models.Loaded, str]:
    """The student before training, and where its tokenizer is.

    Args:
        model: a checkpoint of its own (id or path), or "layers:...".
        task: what it shall answer.
        cut_from: the model whose layers "layers:..." keeps.
    """
    if not model.startswith("layers:"):
        return models.load_model(model, task), model
    whole = models.load_model(cut_from, task)
    layers = models.parse_layers(model, whole.model.config.num_hidden_layers)
    return models.Loaded(models.cut(whole.model, layers), whole.new_modules), cut_from


def load_student(folder: Path) -> Any:
    """The trained student: base and adapters, or all weights; in evaluation mode, on the CPU, in fp32."""
    if (folder / "full").exists():
        return load_plain(folder / "full")
    from peft import PeftModel

    below = folder / "below"
    base = load_plain(below if below.exists() else folder / "base")
    return PeftModel.from_pretrained(base, str(folder / "adapter")).eval()


def merged_student(folder: Path) -> Any:
    """The trained student as one plain model, adapters merged into the weights in fp32."""
    student = load_student(folder)
    return student.merge_and_unload(safe_merge=True) if (folder / "adapter").exists() else student


def load_plain(folder: Path) -> PreTrainedModel:
    """A classifier as it was saved, in evaluation mode, on the CPU, in fp32."""
    return AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=torch.float32).eval()


def probe_rows(data: PreparedData, role: str) -> Rows:
    """The rows on which a student's answers are compared after every step of the way: the first of the tuning slice.

    Args:
        data: the rows.
        role: whose tokens the student takes.
    """
    tokens = data.tokens(role, "tune")
    return Rows([tokens.select(range(min(_PROBE_ROWS, len(tokens))))])
