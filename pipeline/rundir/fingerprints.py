"""Fingerprints: hashes of what a stage's result depends on, without the paths of files and models."""

import hashlib
import json
from typing import Any

import torch

from kdc.common import machine
from kdc.pipeline.config.labelled import read_description
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import task_of
from kdc.pipeline.config.training_settings import StudentSettings, TeacherSettings
from kdc.pipeline.data.fingerprint import input_fingerprint
from kdc.pipeline.data.sources import unsliced
from kdc.pipeline.models import loading

_LAYOUT = 2  # raise to make older stage folders stale


def fingerprint_of(name: str, settings: dict[str, Any], before: list[str]) -> str:
    text = json.dumps([_LAYOUT, name, settings, before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=str))


def labelled_rows(config: Config) -> dict[str, Any]:
    """Without unlabelled rows and slices: new ones must not retrain the teacher."""
    files = {"data", "train", "eval", "unlabeled", "delimiter", "encoding"}
    unused = files | {"max_unlabeled_rows", "audit_labels", "slices"}
    described = [read_description(table) for table in (config.data.train, config.data.eval)]
    labellers = [table and table.model for table in described]
    by = {"labellers": labellers, "people_judge": config.teacher.scores is None} if any(labellers) else {}
    return {
        **by,
        **config.data.model_dump(mode="json", exclude=unused),
        "task_name": task_of(config.data).name,
        "seed": config.run.seed,
        "rows": input_fingerprint(unsliced(config.data).model_copy(update={"unlabeled": None})),
        "teacher_models": [loading.fingerprint(source) for source in config.teacher.sources],
        **_long(config, {"join"}),
    }


def _long(config: Config, unused: set[str]) -> dict[str, Any]:
    return {} if config.long.mode == "cut" else {"long": config.long.model_dump(exclude=unused)}


def answered_rows(config: Config) -> dict[str, Any]:
    rows = {"rows": input_fingerprint(unsliced(config.data)), "student_model": "the teacher's"}
    return labelled_rows(config) | rows | {"max_unlabeled_rows": config.data.max_unlabeled_rows}


def training(config: Config, settings: TeacherSettings | StudentSettings) -> dict[str, Any]:
    """Without judgement and time limit."""
    unused = {"model", "more", "scores", "allow_majority", "hours"}
    if isinstance(settings, StudentSettings) and settings.has_all_pieces:
        unused.add("vocabulary")  # None and "all" train the same student
    return {
        **settings.model_dump(exclude=unused),
        "model": settings.kind.fingerprint(settings.model, config.teacher.model)
        if isinstance(settings, StudentSettings)
        else loading.fingerprint(settings.model),
        "seed": config.run.seed,
        "precision": config.run.precision,
        **_long(config, set()),
    }


def gpu_name(device: str) -> str | None:
    """None on a CPU."""
    return str(torch.cuda.get_device_name()) if device == "cuda" else None


def this_machine(device: str) -> dict[str, Any]:
    """Latencies, int8 and fp16 depend on the machine."""
    return {"machine": [machine.cpu().model, machine.cores().usable, gpu_name(device)]}
