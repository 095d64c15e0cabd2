"""What a stage's result depends on, as plain settings whose hash is the stage's fingerprint.

A finished stage is skipped while its fingerprint is the same. So these settings name contents and not places: a file
that was moved, or a model under another name, is the same input.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from kdc.common import machine
from kdc.pipeline.config.graph_settings import QuantizeSettings
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import task_of
from kdc.pipeline.config.training_settings import StudentSettings, TeacherSettings
from kdc.pipeline.data.sources import input_fingerprint
from kdc.pipeline.models import loading

if TYPE_CHECKING:
    from kdc.pipeline.graphs.int8_storage import VectorBits

_LAYOUT = 2  # version of the stages' folders: raising it makes older ones stale


def fingerprint_of(name: str, settings: dict[str, Any], before: list[str]) -> str:
    """What tells a stage's result from another: its name, its settings, and the fingerprints that it builds on."""
    text = json.dumps([_LAYOUT, name, settings, before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them, so that they compare equal after they were read from a file."""
    return json.loads(json.dumps(settings, default=str))


def labelled_rows(config: Config) -> dict[str, Any]:
    """What the teacher's rows depend on: neither the unlabelled rows nor the student, whose change shall not train the
    teacher again."""
    paths = {"data", "train", "eval", "unlabeled", "max_unlabeled_rows"}
    return {
        **config.data.model_dump(mode="json", exclude=paths),
        "task_name": task_of(config.data).name,
        "seed": config.run.seed,
        "rows": input_fingerprint(config.data.model_copy(update={"unlabeled": None})),
        "teacher_models": [loading.fingerprint(source) for source in config.teacher.sources],
        **_long(config, {"join"}),
    }


def _long(config: Config, unused: set[str]) -> dict[str, Any]:
    """The windows of long rows, if rows are not cut."""
    return {} if config.long.mode == "cut" else {"long": config.long.model_dump(exclude=unused)}


def answered_rows(config: Config) -> dict[str, Any]:
    """What the rows depend on that the teacher answers: not the student."""
    rows = {"rows": input_fingerprint(config.data), "student_model": "the teacher's"}
    return labelled_rows(config) | rows | {"max_unlabeled_rows": config.data.max_unlabeled_rows}


def quantising(settings: QuantizeSettings, bits: "VectorBits") -> dict[str, Any]:
    """What int8 depends on, its token vectors in so many bits."""
    return settings.model_dump() | {"vector_bits": bits}


def training(config: Config, settings: TeacherSettings | StudentSettings) -> dict[str, Any]:
    """What a training depends on: not how its result is judged, nor how long it might have taken at most."""
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
    """The name of the GPU that a run trains on; None on a CPU."""
    return str(torch.cuda.get_device_name()) if device == "cuda" else None


def this_machine(device: str) -> dict[str, Any]:
    """What latencies, and int8's and fp16's arithmetic, depend on: in a run directory that moved to another machine
    they are measured again."""
    return {"machine": [machine.cpu().model, machine.cores().usable, gpu_name(device)]}
