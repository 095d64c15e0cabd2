"""Make, train and load a student.

Its folder holds `base/` (untrained, with tokenizer) and `trained_logits.npy`. LoRA adds `adapter/`, and `below/` if its
initialisation changed the weights; full training adds `full/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from kdc.artifact.manifest import Join
from kdc.common.progress import Progress
from kdc.pipeline.config.student_kinds import UNCUT, kind_of
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import StudentSettings
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.models import loading
from kdc.pipeline.models.opening import as_served
from kdc.pipeline.models.pooling import is_mean_pooled
from kdc.pipeline.models.units import Importance, Part, first_units
from kdc.pipeline.models.vocabulary import cut_vectors
from kdc.pipeline.results.training import ModelResult, TrainingSummary
from kdc.pipeline.training import adapters
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.callbacks import SECONDS_OF_AN_HOUR
from kdc.pipeline.training.checkpoints import last_checkpoint
from kdc.pipeline.training.environment import Environment
from kdc.pipeline.training.finetuning import fine_tune, score_model
from kdc.pipeline.training.importance import unit_importance
from kdc.pipeline.training.joining import set_join
from kdc.pipeline.training.predict import predict

TRAINED_LOGITS = "trained_logits.npy"  # of `probe_rows`
_PROBE_ROWS = 64
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class StudentOrigin:
    """Source of weights and tokens."""

    cut_from: str  # a checkpoint ignores it
    role: str  # "teacher", "student" or "fewer"
    vocabulary: Path | None = None  # as `save_smaller` wrote it; None keeps all tokens
    join: tuple[Join, ...] | None = None
    prefix: str = ""


def distil(
    settings: StudentSettings,
    origin: StudentOrigin,
    data: PreparedData,
    teacher_logits: Path | None,
    out: Path,
    environment: Environment,
    *,
    progress: Progress,
    unlabeled: bool = True,
) -> ModelResult:
    """Make and train a student in `out`. Without `teacher_logits` it learns from labels only."""
    set_seed(environment.seed)
    new_modules, pad_id = _make_base(settings, origin, data, out, environment)

    def train(model: Any, settings: StudentSettings, checkpoints: Path) -> TrainingSummary:
        return fine_tune(
            model,
            settings,
            data,
            environment,
            role=origin.role,
            pad_id=pad_id,
            checkpoints=checkpoints,
            progress=progress,
            new_modules=new_modules,
            teacher_logits=teacher_logits,
            unlabeled=unlabeled,
        )

    def base() -> Any:  # reloaded: some architectures build a layer by its number
        return loading.load_model(str(out / "base"), data.task, dropout=settings.dropout_rate).model

    student = base()
    parameters = as_served(student).num_parameters()
    if settings.method == "lora":
        student = adapters.with_adapters(student, new_modules, settings.lora)
        adapters.save_rewritten(student, out / "base", out / "below")
    training = train(student, settings, out / _CHECKPOINTS)
    shorter = _shorter(settings, training)
    if shorter is not None:
        set_seed(environment.seed)
        again = base()
        whole = train(again, shorter, out / _CHECKPOINTS / "shorter")
        seconds = round(training.seconds + whole.seconds, 1)
        if _kept_loss(whole) < _kept_loss(training):
            student, training = again, whole
        training = training.model_copy(update={"seconds": seconds})
    result = score_model(student, data, origin.role, pad_id, training)
    student.to("cpu")
    if settings.method == "lora":
        adapters.save_adapters(student, out / "adapter")
    else:
        student.save_pretrained(out / "full")
    np.save(out / TRAINED_LOGITS, predict(student, probe_rows(data, origin.role), pad_id=pad_id))
    return result.model_copy(update={"parameters": parameters})


def _shorter(settings: StudentSettings, training: TrainingSummary) -> StudentSettings | None:
    """Settings for a second training of twice the best step: at an early step the learning rate has hardly fallen.

    None for students with layers, which train once.
    """
    hours = None if settings.hours is None else settings.hours - training.seconds / SECONDS_OF_AN_HOUR
    steps = 2 * training.best_step
    is_over = settings.patience is None or (hours is not None and hours <= 0)
    if settings.kind.has_layers or is_over or steps >= training.planned_steps:
        return None
    return settings.model_copy(update={"epochs": 1e-3, "min_steps": steps, "patience": None, "hours": hours})


def _kept_loss(training: TrainingSummary) -> float:
    return dict(training.history.tune_loss)[training.best_step]


def _make_base(
    settings: StudentSettings, origin: StudentOrigin, data: PreparedData, out: Path, environment: Environment
) -> tuple[tuple[str, ...], int]:
    """Make `base/`. Resuming keeps it: another machine might choose other neurons."""

    def importance(model: Any, parts: Sequence[Part]) -> list[torch.Tensor]:
        source = origin.cut_from if origin.vocabulary is None else str(origin.vocabulary)
        return unit_importance(
            model,
            parts,
            Rows.read(data, origin.role, ["train"]),
            pad_id=loading.load_tokenizer(source).pad_token_id,
            device=environment.device,
            batch_size=settings.batch_size,
            seed=environment.seed,
        )

    begun = last_checkpoint(out / _CHECKPOINTS) is not None
    loaded, source = new_student(
        settings.model,
        data.task,
        cut_from=origin.cut_from,
        vocabulary=origin.vocabulary,
        importance=first_units if begun else importance,
    )
    if settings.pooling == "first" and is_mean_pooled(loaded.model.config):
        loaded = loading.reading_the_first_token(loaded.model)
    tokenizer = loading.load_tokenizer(source, origin.prefix)
    set_join(loaded.model, origin.join)
    if not begun:
        loaded.model.save_pretrained(out / "base")
        tokenizer.save_pretrained(out / "base")
    return loaded.new_modules, tokenizer.pad_token_id


def new_student(
    model: str, task: Task, *, cut_from: str, vocabulary: Path | None = None, importance: Importance = first_units
) -> tuple[loading.Loaded, str]:
    """The untrained student, and its tokenizer's path or hub id."""

    def teacher() -> loading.Loaded:
        whole = loading.load_model(cut_from, task)
        if vocabulary is not None:
            cut_vectors(whole.model, vocabulary)
        return whole

    kind = kind_of(model)
    source = str(vocabulary or cut_from) if kind.is_of_teacher else model
    return kind.make(model, task, teacher, importance), source


def keep_teacher(
    teacher: Path, origin: StudentOrigin, data: PreparedData, out: Path | None = None, known: ModelResult | None = None
) -> ModelResult:
    """Score the uncut teacher with the origin's vocabulary; save it in `out`."""
    loaded, source = new_student(UNCUT, data.task, cut_from=str(teacher), vocabulary=origin.vocabulary)
    model, tokenizer = loaded.model, loading.load_tokenizer(source)
    result = known or score_model(model, data, origin.role, tokenizer.pad_token_id)
    if out is not None:
        model.save_pretrained(out / "base")
        tokenizer.save_pretrained(out / "base")
        rows = probe_rows(data, origin.role)
        np.save(out / TRAINED_LOGITS, predict(model, rows, pad_id=tokenizer.pad_token_id))
    return result.model_copy(update={"parameters": model.num_parameters()})


def load_student(folder: Path) -> Any:
    """The trained student in evaluation mode, fp32, on the CPU."""
    base, full, below, adapter = (folder / name for name in ("base", "full", "below", "adapter"))
    if not adapter.exists():
        return loading.load_plain(full if full.exists() else base)
    from peft import PeftModel

    return PeftModel.from_pretrained(loading.load_plain(below if below.exists() else base), str(adapter)).eval()


def merged_student(folder: Path) -> Any:
    """The trained student, with adapters or projection merged."""
    student = load_student(folder)
    return student.merge_and_unload(safe_merge=True) if (folder / "adapter").exists() else as_served(student)


def probe_rows(data: PreparedData, role: str) -> Rows:
    """Tuning rows for comparing a student's logits."""
    tokens = data.tokens(role, "tune")
    return Rows([tokens.select(range(min(_PROBE_ROWS, len(tokens))))])
