"""Where the model of a run comes from, as the artifact's manifest says it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import Lineage
from kdc.common import machine
from kdc.pipeline.config.settings import TeacherSettings
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.fingerprints import gpu_name
from kdc.pipeline.training.minilm import HUB_ID

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
    """Teacher, student, recipe, data, versions and machine of a run."""
    config, data = run.config, run.data()
    student = run.student.model
    cut_from = "finetuned" if config.teacher.finetuned else config.student.cut_from
    if config.teacher.scores is not None:
        cut_from = "pretrained"
    return Lineage(
        teacher=_teacher_name(config.teacher),
        student=f"{student} of the {cut_from} teacher" if student.startswith("layers:") else _public_name(student),
        recipe=config.run.recipe,
        data_fingerprint=run.fingerprints["data"],
        seed=config.run.seed,
        packages=machine.versions(_PACKAGES),
        cpu=machine.cpu().model,
        gpu=gpu_name(run.device),
        label_share=label_share(np.asarray(data.rows("train")["label"][:]), data.task),
    )


def label_share(labels: NDArray[np.generic], task: Task) -> tuple[float, ...] | None:
    """The share of the training rows that carry each label, so that a service can tell when its answers drift; None
    for regression. Labels are (rows,), or (rows, outputs) for multi-label."""
    if task.kind == "regression":
        return None
    if task.kind == "classification":
        labels = labels[:, None] == np.arange(task.outputs)
    return tuple(np.asarray(labels, dtype=np.float64).mean(axis=0).round(6).tolist())


def _teacher_name(settings: TeacherSettings) -> str:
    if settings.scores is not None:
        return f"a black box ({settings.scores.name})"
    return " + ".join(_public_name(source) for source in settings.sources)


def _public_name(model: str) -> str:
    """An id as it is, a local path as its last part: the artifact says nothing of the machine's folders."""
    if model == "minilm":
        return HUB_ID
    return Path(model).name if Path(model).exists() else model
