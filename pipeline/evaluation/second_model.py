"""The second model of a run's cascade: its files and checks."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER, LongTexts, Manifest
from kdc.common.errors import InputError
from kdc.pipeline.config.metrics import Outputs
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.graphs.files import FP32_ONNX, INT8_ONNX, TOKENIZER_INFO, TOKENIZER_JSON
from kdc.pipeline.models import loading
from kdc.pipeline.results.data import DataResult
from kdc.pipeline.rundir.context import Run

_FILES = {"fp32": FP32_ONNX, "int8": INT8_ONNX}


@dataclass(frozen=True)
class SecondModel:
    folder: Path  # with the tokenizer
    entry: str  # prefix of its table rows: "teacher" or "second"
    files: dict[str, Path]  # existing ONNX files by number format


def second_model(run: Run) -> SecondModel:
    """The teacher, or stage `cascade`'s copy of an artifact."""
    is_artifact = isinstance(run.config.cascade.second, Path)
    folder = run.folder("cascade" if is_artifact else "uncut")
    # A folder `uncut` may be from an earlier start.
    known = is_artifact or "uncut" in run.fingerprints
    return SecondModel(folder, "second" if is_artifact else "teacher", files_in(folder) if known else {})


def files_in(folder: Path) -> dict[str, Path]:
    return {name: folder / file for name, file in _FILES.items() if (folder / file).exists()}


def scaled(logits: Outputs, temperature: float, wanted: float) -> Outputs:
    """See `Engine.of_second`."""
    return logits * np.float32(wanted / temperature)


def check_second(run: Run) -> None:
    """Refuse an impossible second model before training, by InputError."""
    config, second = run.config, run.config.cascade.second
    if second is None or second == "off":
        return
    given, task = f"--cascade {second}", run.data().task
    if not task.traits.has_labels:
        what = "a regression can have no second model: a number does not tell how sure it is"
        raise InputError(what, given=f"{given}; {task.name} is a regression", remedy="drop --cascade")
    if not config.student.has_all_pieces:
        given = f"{given}, student.vocabulary={config.student.vocabulary}"
        remedy = "drop --cascade, or --set student.vocabulary=all"
        raise InputError("a cascade's models must read the same tokens", given=given, remedy=remedy)
    if isinstance(second, Path):
        student, length = config.student.model, run.result(DataResult).max_length["student"]
        reads = config.teacher.model if config.student.kind.is_of_teacher else student
        # A search may find a student that reads the teacher's tokens.
        tokenizer = None if config.searches and reads == student else reads
        _check_artifact(second, given, task, run.fingerprints["data"], tokenizer, length, config.long.of(length))
    elif not config.has_one_teacher or not config.export.teacher or not config.student.kind.is_trained:
        remedy = "one teacher with its weights, another --student, and export.teacher=true; or --cascade ARTIFACT"
        raise InputError("no exported, uncut teacher can be the second model", given=given, remedy=remedy)
    elif not config.student.kind.is_of_teacher and not config.searches:
        own, theirs = (loading.load_tokenizer(model) for model in (config.student.model, config.teacher.model))
        if own.get_vocab() != theirs.get_vocab():
            raise other_tokens(f"{given} --student {config.student.model}")


def _check_artifact(
    folder: Path, given: str, task: Task, rows: str, tokenizer: str | None, max_length: int, long: LongTexts | None
) -> None:
    """`rows` is a fingerprint. `tokenizer`: None if unknown."""
    manifest = load_manifest(folder)
    if any(variant.second is not None for variant in manifest.variants.values()):
        raise InputError("the second model is itself a cascade", given=given, remedy="name an artifact of one model")
    labels = list(manifest.task.labels)
    if (manifest.task.kind, labels) != (task.kind, list(task.labels)):
        given = f"{given}, which has {', '.join(labels)}; the task has {', '.join(task.labels)}"
        remedy = "name the artifact of another run on the same task"
        raise InputError("a cascade's models need the same labels in the same order", given=given, remedy=remedy)
    if tokenizer is not None:
        own, theirs = loading.load_tokenizer(tokenizer), Tokenizer.from_file(str(folder / TOKENIZER_JSON))
        windows = manifest.tokenizer.long
        if windows is not None:  # how they are joined is chosen later
            windows = windows.model_copy(update={"join": ("mean",)})
        lengths_differ = (manifest.tokenizer.max_length, windows) != (max_length, long)
        if theirs.get_vocab() != own.get_vocab() or lengths_differ:
            raise other_tokens(given)
    if manifest.lineage.data_fingerprint != rows:
        what = "the second model was made from other rows, or by another teacher: it may know rows that judge both"
        raise InputError(what, given=given, remedy="make it by the same command with another --student and --out")


def other_tokens(given: str) -> InputError:
    what = "a cascade's models must read the same tokens, but their tokenizers, lengths or windows differ"
    remedy = "a student that is made of the same teacher: --student layers:..., conv, static or linear"
    return InputError(what, given=given, remedy=remedy)


def copy_second(manifest: Manifest, artifact: Path, out: Path) -> None:
    """Also int8, if a CPU loads it."""
    variants = {str(name): variant for name, variant in manifest.variants.items()}
    for name, file in _FILES.items():
        if name in variants and name in ("fp32", manifest.providers[CPU_PROVIDER]):
            shutil.copyfile(artifact / variants[name].file, out / file)
    shutil.copyfile(artifact / TOKENIZER_JSON, out / TOKENIZER_JSON)
    (out / TOKENIZER_INFO).write_text(manifest.tokenizer.model_dump_json(indent=2), encoding="utf-8")
