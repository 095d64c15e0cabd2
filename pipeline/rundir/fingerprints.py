"""What a stage's result depends on, as plain settings whose hash is the stage's fingerprint.

A finished stage is skipped while its fingerprint is the same. So these settings name contents and not places: a file
that was moved, or a model under another name, is the same input.
"""

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import torch

from kdc.common import machine
from kdc.pipeline.config.graph_settings import QuantizeSettings
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.student_names import UNCUT, is_shallow
from kdc.pipeline.config.tasks import task_of
from kdc.pipeline.config.training_settings import StudentSettings, TeacherSettings
from kdc.pipeline.data.sources import input_fingerprint
from kdc.pipeline.models import loading
from kdc.pipeline.models.cutting import parse_cut
from kdc.pipeline.models.shallow import parse_shape

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
    later = ("group", "time", "metric")  # runs of before had no such
    unused = {name for name in later if getattr(config.data, name) is None}
    return {
        **config.data.model_dump(mode="json", exclude=paths | unused),
        "task_name": task_of(config.data).name,
        "seed": config.run.seed,
        "rows": input_fingerprint(config.data.model_copy(update={"unlabeled": None})),
        "teacher_models": [loading.fingerprint(source) for source in config.teacher.sources],
        **_long(config, {"join"}),
    }


def _long(config: Config, unused: set[str]) -> dict[str, Any]:
    """The windows of long rows, where they are not cut, as in runs of before."""
    return {} if config.long.mode == "cut" else {"long": config.long.model_dump(exclude=unused)}


def answered_rows(config: Config) -> dict[str, Any]:
    """What the rows depend on that the teacher answers: not the student."""
    rows = {"rows": input_fingerprint(config.data), "student_model": "the teacher's"}
    most = config.data.max_unlabeled_rows
    return labelled_rows(config) | rows | ({} if most is None else {"max_unlabeled_rows": most})


def later(settings: TeacherSettings | StudentSettings) -> set[str]:
    """Names of settings that runs of before did not have, where they stand at what these did."""
    fields = type(settings).model_fields
    names = fields.keys() & {"kept_step", "vocabulary", "window_loss"}
    did = {"kept_step": "loss" if isinstance(settings, StudentSettings) else "score"}
    return {name for name in names if getattr(settings, name) in (did.get(name, fields[name].default), "all")}


def vector_bits(bits: "VectorBits | Literal['auto']") -> dict[str, Any]:
    """How token vectors are stored, where otherwise than in runs of before."""
    return {"vector_bits": bits} if bits == 4 else {}


def quantising(settings: QuantizeSettings, bits: "VectorBits") -> dict[str, Any]:
    """What int8 depends on, its token vectors in so many bits."""
    return settings.model_dump(exclude={"vector_bits"}) | vector_bits(bits)


def training(config: Config, settings: TeacherSettings | StudentSettings) -> dict[str, Any]:
    """What a training depends on: not how its result is judged, nor how long it might have taken at most."""
    unused = {"model", "more", "scores", "allow_majority", "hours"} | later(settings)
    return {
        **settings.model_dump(exclude=unused),
        "model": _model_of(config.teacher.model, settings),
        "seed": config.run.seed,
        "precision": config.run.precision,
        **_long(config, set()),
    }


def _model_of(teacher: str, settings: TeacherSettings | StudentSettings) -> Any:
    """What is trained: layers of the teacher, its token vectors, all of it, or a checkpoint by its contents."""
    source = settings.model
    if isinstance(settings, StudentSettings) and source == UNCUT:
        return UNCUT
    if isinstance(settings, StudentSettings) and is_shallow(source):
        sizes = asdict(parse_shape(source))
        return {name: size for name, size in sizes.items() if name != "pairs" or size}  # runs of before had no such
    if source.startswith("layers:"):
        cut = parse_cut(source, loading.load_config(teacher))
        widths = {name: count for name, count in (("ffn", cut.ffn), ("heads", cut.heads)) if count is not None}
        return {"layers": cut.layers, **widths} if widths else list(cut.layers)  # as runs of before say it
    return loading.fingerprint(source)


def gpu_name(device: str) -> str | None:
    """The name of the GPU that a run trains on; None on a CPU."""
    return str(torch.cuda.get_device_name()) if device == "cuda" else None


def this_machine(device: str) -> dict[str, Any]:
    """What latencies, and int8's and fp16's arithmetic, depend on: in a run directory that moved to another machine
    they are measured again."""
    return {"machine": [machine.cpu().model, machine.cores().usable, gpu_name(device)]}
