"""One stage's folder: done as a whole or not at all, skipped while nothing changed, gone on with where it was cut off.

A stage works in `<stage>.partial/`, which is renamed to `<stage>/` at its end, so a folder that exists is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc.common.errors import KdcError
from kdc.common.memory import own_peak_memory_bytes, reset_peak_memory
from kdc.common.progress import Reporter
from kdc.pipeline.config.settings import Config
from kdc.pipeline.rundir.context import Run

_LAYOUT = 2  # of the stage folders: raising it makes older ones stale


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: of its folder.
        run: does the work in the folder it is given, returns its metrics.
        settings: what it depends on, beside the stages before it.
        after: stages whose results it reads; with the settings, their fingerprints make its own. "labelled" is the
            data without the unlabelled rows and the student: changing those does not train the teacher again.
        intact: whether what the stage keeps outside its folder is still in the run directory.
        wanted: whether the config asks for it.
        check: called when the stage is done, and when it is skipped; may refuse to go on.
    """

    name: str
    run: Callable[[Run, Path], dict[str, Any]]
    settings: Callable[[Run], dict[str, Any]]
    after: tuple[str, ...]
    intact: Callable[[Path], bool] = lambda root: True
    wanted: Callable[[Config], bool] = lambda config: True
    check: Callable[[Run], None] = lambda run: None


def fingerprint_of(name: str, settings: dict[str, Any], before: list[str]) -> str:
    """What tells a stage's result from another: its name, its settings, and the fingerprints that it builds on."""
    text = json.dumps([_LAYOUT, name, settings, before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def run_stage(run: Run, stage: Stage, settings: dict[str, Any], fingerprint: str, reporter: Reporter) -> dict[str, Any]:
    """Do one stage, go on with it, or skip it.

    Args:
        run: the run.
        stage: what to do.
        settings: that its record keeps.
        fingerprint: see `fingerprint_of`.
        reporter: whom to tell.

    Returns:
        Its record, and whether it was skipped.

    Raises:
        KdcError: its record is damaged; and what the stage says.
    """
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
    _publish(partial, folder)
    reporter.finished(stage.name, state["seconds"], metrics)
    return {"skipped": False, **state}


def kept_folder(root: Path, name: str) -> Path:
    """What a stage keeps for its next time, though its settings may be others then; files are named by what they depend
    on."""
    return root / f"{name}.kept"


def forget(root: Path, name: str) -> None:
    """Make a stage count as not done. On disk, before anything is redone: else a run that is cut off in between would
    leave later stages that were made from other results, and look finished."""
    _remove(root / f"{name}.partial")
    shutil.rmtree(kept_folder(root, name), ignore_errors=True)
    (root / name / "stage.json").unlink(missing_ok=True)


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
    _remove(partial)
    partial.mkdir(parents=True)
    mark.write_text(fingerprint)
    return False


def _remove(partial: Path) -> None:
    """First what says whose work it is: cut off in between, the rest must not count as the beginning of anything."""
    for name in ("stage.json", "fingerprint"):
        (partial / name).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    """Give the finished work its name. An older folder steps aside first; a kill in between loses neither."""
    shutil.rmtree(partial / "checkpoints", ignore_errors=True)  # not needed once the stage counts as done
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
