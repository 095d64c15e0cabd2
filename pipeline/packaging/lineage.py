"""An artifact's lineage, and the models and data for its card."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import Lineage
from kdc.common import machine
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.student_kinds import kind_of
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import TeacherSettings
from kdc.pipeline.data.sources import HUB_NAME
from kdc.pipeline.models.minilm import HUB_ID
from kdc.pipeline.models.vocabulary import read_kept
from kdc.pipeline.results.data import DataResult
from kdc.pipeline.results.training import StudentResult, TrainingSummary
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.fingerprints import gpu_name

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "tokenizers",
    "datasets",
    "numpy",
)


def lineage_of(run: Run) -> Lineage:
    config, data = run.config, run.data()
    cut_from = "finetuned" if config.teacher.finetuned else config.student.cut_from
    if config.teacher.scores is not None:
        cut_from = "pretrained"
    vocabulary = run.vocabulary_of(run.student)
    pieces = "" if vocabulary is None else f", with {len(read_kept(vocabulary))} pieces of its vocabulary"
    return Lineage(
        teacher=_teacher_name(config.teacher),
        student=run.student.kind.title(_public_name(run.student.model), cut_from) + pieces,
        recipe=config.run.recipe,
        data_fingerprint=run.fingerprints["data"],
        seed=config.run.seed,
        packages=machine.versions(_PACKAGES),
        cpu=machine.cpu().model,
        gpu=gpu_name(run.device),
        trained=_trained(run.result(StudentResult).training),
        labels=run.result(DataResult).report.labels,
        label_share=label_share(np.asarray(data.rows("train")["label"][:]), data.task),
    )


def _trained(training: TrainingSummary | None) -> str:
    if training is None:
        return ""
    threads = "" if training.threads is None else f", {training.threads} thread{'s' if training.threads > 1 else ''}"
    return training.precision + threads


def label_share(labels: NDArray[np.generic], task: Task) -> tuple[float, ...] | None:
    """Each label's share of training rows, to notice drift; None for regression."""
    if not task.traits.has_labels:
        return None
    if task.traits.is_exclusive:
        labels = labels[:, None] == np.arange(task.outputs)
    return tuple(np.asarray(labels, dtype=np.float64).mean(axis=0).round(6).tolist())


def _teacher_name(settings: TeacherSettings) -> str:
    if settings.scores is not None:
        return f"a black box ({settings.scores.name})"
    return " + ".join(_public_name(source) for source in settings.sources)


def base_models(student: str, teacher: str) -> list[str]:
    """The hub id of the model that gave the weights."""
    name = teacher if kind_of(student).is_of_teacher else student
    is_public, public = name == "minilm" or not Path(name).exists(), _public_name(name).partition("@")[0]
    return [public] if is_public and _HUB_ID.fullmatch(public) else []


def hub_dataset(task: Task, source: DataSettings) -> tuple[str, str, str] | None:
    """Hub id, configuration and split of the evaluation rows."""
    if not task.hub_config or source.data is not None or source.train is not None:
        return None
    return HUB_NAME, task.hub_config, task.eval_splits[0]


def _public_name(model: str) -> str:
    """A hub id, or a path's last part: folders stay private."""
    if model == "minilm":
        return HUB_ID
    return Path(model).name if Path(model).exists() else model
