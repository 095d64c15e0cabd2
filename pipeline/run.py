"""The pipeline, top to bottom: from a labelled task to a verified artifact.

Each stage works in `<stage>.partial/` and renames it to `<stage>/` at its end, so a folder that exists is complete.
A stage whose fingerprint (its settings, and everything before it) still matches is skipped; one that was cut off
goes on from what its partial folder holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import InputError, KdcError
from pipeline import (
    controls,
    data,
    evaluate,
    export,
    merge,
    models,
    package,
    quantize,
    student,
    targets,
    teacher,
)
from pipeline.config import Config, StudentSettings, TeacherSettings
from pipeline.context import Run
from pipeline.measure import own_peak_memory_bytes, reset_peak_memory
from pipeline.progress import Reporter
from pipeline.reading.sources import input_fingerprint
from pipeline.request import source_of, task_of

_LAYOUT = 2  # of the stage folders: raising it makes older ones stale


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: of its folder.
        run: does the work in the folder it is given, returns its metrics.
        settings: what of the config it depends on.
        after: stages whose results it reads; with the settings, their fingerprints make its own. "labelled" is the
            data without the unlabelled rows and the student: changing those does not train the teacher again.
        intact: whether what the stage keeps outside its folder is still in the run directory.
    """

    name: str
    run: Callable[[Run, Path], dict[str, Any]]
    settings: Callable[[Config], dict[str, Any]]
    after: tuple[str, ...]
    intact: Callable[[Path], bool] = lambda root: True


STAGES = (
    Stage("data", data.run, lambda config: _data_settings(config), ()),
    Stage("teacher", teacher.run, lambda config: _training(config, config.teacher), ("labelled",)),
    Stage("targets", targets.run, lambda config: {}, ("data", "teacher")),
    Stage("student", student.run, lambda config: _training(config, config.student), ("targets",)),
    Stage("merge", merge.run, lambda config: {}, ("student",)),
    Stage("export", export.run, lambda config: config.export.model_dump(), ("merge",)),
    Stage("quantize", quantize.run, lambda config: config.quantize.model_dump(), ("export",)),
    Stage("controls", controls.run, lambda config: {"controls": config.run.controls}, ("teacher", "student")),
    Stage(
        "evaluate",
        evaluate.run,
        lambda config: {**config.evaluate.model_dump(), "device": config.run.device},
        ("quantize", "controls"),
    ),
    Stage("package", package.run, lambda config: _contract(config), ("evaluate",), package.is_intact),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)


def _training(config: Config, settings: TeacherSettings | StudentSettings) -> dict[str, Any]:
    """What a training depends on: the model's contents, not its path, and not how its result is judged."""
    model = settings.model if settings.model.startswith("layers:") else models.fingerprint(settings.model)
    return {
        **settings.model_dump(exclude={"model", "allow_majority"}),
        "model": model,
        "seed": config.run.seed,
        "precision": config.run.precision,
    }


def _contract(config: Config) -> dict[str, Any]:
    terms = config.contract.terms
    return {} if terms is None else {"contract": terms.model_dump(mode="json")}


def _data_settings(config: Config) -> dict[str, Any]:
    """What the rows and their tokens depend on: the contents of the files, not where they lie."""
    return _labelled_settings(config) | {
        "rows": input_fingerprint(source_of(config)),
        "student_model": _student_tokenizer(config),
    }


def _labelled_settings(config: Config) -> dict[str, Any]:
    """What the teacher's rows depend on."""
    paths = {"data", "train", "eval", "unlabeled"}
    return {
        **config.data.model_dump(mode="json", exclude=paths),
        "task_name": task_of(config).name,
        "seed": config.run.seed,
        "rows": input_fingerprint(dataclasses.replace(source_of(config), unlabeled=None)),
        "teacher_model": models.fingerprint(config.teacher.model),
    }


def _student_tokenizer(config: Config) -> str:
    student = config.student.model
    return "the teacher's" if student.startswith("layers:") else models.fingerprint(student)


def compress(
    config: Config,
    *,
    reporter: Reporter,
    start_from: str | None = None,
    until: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Run all stages that are not done yet.

    Args:
        config: resolved settings.
        reporter: whom to tell.
        start_from: redo from that stage on, though its fingerprint matches.
        until: stop after that stage.
        force: redo all.

    Returns:
        out (run directory), stages (each with its metrics and whether it was skipped), and, when `package` ran,
        artifact (path).

    Raises:
        InputError, KdcError: as the stages say.
    """
    for name in (start_from, until):
        if name is not None and name not in STAGE_NAMES:
            raise InputError("no such stage", given=name, remedy=f"one of {', '.join(STAGE_NAMES)}")
    root = _root(config)
    redo_from = STAGE_NAMES.index(start_from) if start_from else (0 if force else len(STAGES))
    last = STAGE_NAMES.index(until) if until else len(STAGES) - 1
    results = {}
    with _locked(root):
        run = open_run(root, config, reporter)
        (root / "config.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")
        run.fingerprints["labelled"] = _fingerprint("labelled", _plain(_labelled_settings(config)), [])
        for stage in STAGES[redo_from:]:
            _forget(root, stage)
        for stage in STAGES[: last + 1]:
            settings = _plain(stage.settings(config))
            fingerprint = _fingerprint(stage.name, settings, [run.fingerprints[name] for name in stage.after])
            run.fingerprints[stage.name] = fingerprint
            results[stage.name] = _run_stage(run, stage, settings, fingerprint, reporter)
    summary: dict[str, Any] = {"out": str(root), "stages": results}
    if last == len(STAGES) - 1:
        result = run.metrics("package")
        failed = (result.get("contract") or {}).get("verdict") == "fail"
        summary["artifact"] = str(root / (result["artifact"] if failed else "artifact"))
        summary["result"] = result
    return summary


def _root(config: Config) -> Path:
    if config.run.out is not None:
        return config.run.out
    return Path("runs") / task_of(config).name


def open_run(root: Path, config: Config, reporter: Reporter) -> Run:
    """A run directory as stages are given it.

    Raises:
        InputError: the device that was asked for is not there.
    """
    device, bf16 = _device(config)
    return Run(root=root, config=config, device=device, bf16=bf16, progress=reporter.progress, say=reporter.say)


def _device(config: Config) -> tuple[str, bool]:
    """Where to train, and whether in bf16.

    Raises:
        InputError: CUDA was asked for and is not there, or bf16 was and the device has none.
    """
    import torch

    wanted = config.run.device
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise InputError("no CUDA device is available", given="--device cuda", remedy="`kdc doctor` says why")
    device = "cuda" if has_cuda and wanted != "cpu" else "cpu"
    if config.run.precision == "auto":
        return device, _has_fast_bf16(device)
    bf16 = config.run.precision == "bf16"
    if bf16 and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError("this GPU has no bf16", given="run.precision=bf16", remedy="--set run.precision=fp32")
    return device, bf16


def _has_fast_bf16(device: str) -> bool:
    """CUDA with bf16 units, or a CPU with AMX."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.6
    return bool(capabilities.get("amx_bf16"))


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One run a directory.

    Raises:
        InputError: the directory cannot be made, or another run works in it.
    """
    from filelock import FileLock, Timeout

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "run.lock", timeout=0):
            yield
    except Timeout:
        raise InputError(
            "another run works in this directory", given=root, remedy="wait for it, or name another --out"
        ) from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        if Path(error.filename or "") not in (root, *root.parents, root / "run.lock"):
            raise
        raise InputError(
            f"cannot work in this directory ({error.strerror})", given=root, remedy="name another --out"
        ) from None


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As JSON holds it, so that settings compare equal after a reading."""
    return json.loads(json.dumps(settings, default=str))


def _fingerprint(name: str, settings: dict[str, Any], before: list[str]) -> str:
    text = json.dumps([_LAYOUT, name, settings, before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _run_stage(
    run: Run, stage: Stage, settings: dict[str, Any], fingerprint: str, reporter: Reporter
) -> dict[str, Any]:
    folder, partial = run.root / stage.name, run.root / f"{stage.name}.partial"
    state = _read_state(folder)
    if state is not None and state["fingerprint"] == fingerprint and stage.intact(run.root):
        reporter.skipped(stage.name)
        return {"skipped": True, **state}
    if (partial / "stage.json").exists() and _read_state(partial, "stage.json")["fingerprint"] == fingerprint:
        _publish(partial, folder)  # killed between its last write and the rename
        reporter.skipped(stage.name)
        return {"skipped": True, **_read_state(folder)}
    why = "new" if state is None else "its settings or inputs changed"
    resumes = _open_partial(partial, fingerprint)
    reporter.started(stage.name, "goes on where it was cut off" if resumes else why)
    reset_peak_memory()
    began = time.monotonic()
    metrics = stage.run(run, partial)
    state = {
        "stage": stage.name,
        "fingerprint": fingerprint,
        "settings": settings,
        "metrics": metrics,
        "seconds": round(time.monotonic() - began, 2),
        "peak_memory_bytes": own_peak_memory_bytes(),
    }
    _write_json(partial / "stage.json", state)
    shutil.rmtree(partial / "checkpoints", ignore_errors=True)  # not needed once the stage counts as done
    _publish(partial, folder)
    reporter.finished(stage.name, state["seconds"], metrics)
    return {"skipped": False, **state}


def _forget(root: Path, stage: Stage) -> None:
    """Make a stage count as not done. On disk, before anything is redone: else a run that is cut off in between would
    leave later stages that were made from other results, and look finished."""
    shutil.rmtree(root / f"{stage.name}.partial", ignore_errors=True)
    (root / stage.name / "stage.json").unlink(missing_ok=True)


def _read_state(folder: Path, name: str = "stage.json") -> Any:
    """A stage's record, or None where the folder is not complete.

    Raises:
        KdcError: it is there and damaged.
    """
    file = folder / name
    if not file.exists():
        return None
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        state["fingerprint"], state["metrics"]
    except (ValueError, KeyError, TypeError) as error:
        raise KdcError(
            "the record of a stage is damaged", given=file, remedy=f"remove the folder {folder} and run again"
        ) from error
    return state


def _open_partial(partial: Path, fingerprint: str) -> bool:
    """Make the stage's working folder; True where it holds the beginning of the same work."""
    mark = partial / "fingerprint"
    if mark.exists() and mark.read_text() == fingerprint:
        return True
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    mark.write_text(fingerprint)
    return False


def _publish(partial: Path, folder: Path) -> None:
    """Give the finished work its name. An older folder steps aside first; a kill in between loses neither."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
