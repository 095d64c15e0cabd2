"""One stage's folder. A stage is done whole or not at all, skipped while nothing changed, and resumed if cut off.

A stage works in `<stage>.partial/`, which is renamed to `<stage>/` at its end: a folder that exists is complete. A
folder that a sibling run finished by the same fingerprint is taken over instead.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc.common.files import write_whole
from kdc.common.memory import own_peak_memory_bytes, reset_peak_memory
from kdc.common.progress import Reporter
from kdc.pipeline.config.settings import Config
from kdc.pipeline.results.base import StageResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.fingerprints import as_json, fingerprint_of
from kdc.pipeline.rundir.record import RECORD, StageRecord, read_record

_MARK = "fingerprint"  # file in a partial folder that says whose work it is


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline."""

    result: type[StageResult]  # the model of its result, which also names the stage and its folder
    run: Callable[[Run, Path], StageResult]  # does the work in a folder
    depends_on: Callable[[Run], dict[str, Any]]  # settings that its result depends on, beside the stages before it
    after: tuple[str, ...]  # stages whose results it reads: their fingerprints, with the settings, make its own
    # whether everything that the stage keeps outside its folder is still in the run directory
    is_intact: Callable[[Path], bool] = lambda root: True
    is_wanted: Callable[[Config], bool] = lambda config: True  # whether the settings ask for it
    check: Callable[[Run], None] = lambda run: None  # called when it is done or skipped; may refuse to go on

    @property
    def name(self) -> str:
        """The stage's name, which is also its folder's."""
        return self.result.STAGE


def run_stage(run: Run, stage: Stage, reporter: Reporter) -> StageRecord:
    """Do one stage, resume it, or skip it; then call its check. Notes its fingerprint in the run.

    Raises:
        KdcError: its record is damaged; or as the stage says.
    """
    settings = as_json(stage.depends_on(run))
    before = [run.fingerprints[name] for name in stage.after if name in run.fingerprints]  # the others are not wanted
    run.fingerprints[stage.name] = fingerprint = fingerprint_of(stage.name, settings, before)
    folder = run.root / stage.name
    record = read_record(folder)
    if not _is_done(stage, record, fingerprint, run.root) and _reuse(folder, run.siblings, fingerprint):
        record = read_record(folder)
    if record is not None and _is_done(stage, record, fingerprint, run.root):
        reporter.skipped(stage.name)
    else:
        why = "new" if record is None else "its settings or inputs changed"
        record = _do(run, stage, settings, fingerprint, reporter, why)
        _publish(run.root / f"{stage.name}.partial", folder)
        reporter.finished(stage.name, record.seconds, stage.result.model_validate(record.metrics).line)
    stage.check(run)
    return record


def _is_done(stage: Stage, record: StageRecord | None, fingerprint: str, root: Path) -> bool:
    return record is not None and record.fingerprint == fingerprint and stage.is_intact(root)


def _reuse(folder: Path, siblings: tuple[Path, ...], fingerprint: str) -> bool:
    """Publish a finished folder of the stage, if there is one. Its own partial folder is finished after a kill between
    the last write and the rename. Files of a sibling's folder get further names if the disk allows it: no file of a
    finished folder is ever written again."""
    partial = folder.with_name(f"{folder.name}.partial")
    for source in (partial, *(sibling / folder.name for sibling in siblings)):
        record = read_record(source)
        if record is not None and record.fingerprint == fingerprint:
            if source != partial:
                _remove(partial)
                # The record comes last: the copying may be cut off.
                ignored = shutil.ignore_patterns(RECORD, _MARK)
                shutil.copytree(source, partial, symlinks=True, copy_function=_link, ignore=ignored)
                _link(str(source / RECORD), str(partial / RECORD))
            _publish(partial, folder)
            return True
    return False


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without such names
        shutil.copy2(source, target)


def _do(
    run: Run, stage: Stage, settings: dict[str, Any], fingerprint: str, reporter: Reporter, why: str
) -> StageRecord:
    """Have the stage work in its partial folder, and write its record there."""
    partial = run.root / f"{stage.name}.partial"
    mark = partial / _MARK
    if mark.exists() and mark.read_text() == fingerprint:
        why = "goes on where it was cut off"
    else:
        _remove(partial)
        partial.mkdir(parents=True)
        mark.write_text(fingerprint)
    reporter.started(stage.name, why)
    reset_peak_memory()
    began = time.monotonic()
    result = stage.run(run, partial)
    record = StageRecord(
        skipped=False,
        stage=stage.name,
        fingerprint=fingerprint,
        settings=settings,
        metrics=result.to_json(),
        seconds=round(time.monotonic() - began, 2),
        peak_memory_bytes=own_peak_memory_bytes(),
    )
    write_whole(partial / RECORD, json.dumps(record.model_dump(exclude={"skipped"}), indent=2))
    return record


def kept_folder(root: Path, name: str) -> Path:
    """The folder of files that a stage keeps for its next start with other settings. A file's name says what it depends
    on."""
    return root / f"{name}.kept"


def forget(root: Path, name: str) -> None:
    """Make a stage count as not done, on disk, before anything is redone. Otherwise a run that is cut off would leave
    later stages that look finished but were made from other results."""
    _remove(root / f"{name}.partial")
    shutil.rmtree(kept_folder(root, name), ignore_errors=True)
    (root / name / RECORD).unlink(missing_ok=True)


def _remove(partial: Path) -> None:
    """Remove a working folder. Record and mark go first: if the process is killed in between, the rest must not count
    as the beginning of anything."""
    for name in (RECORD, _MARK):
        (partial / name).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    """Give the finished work its name. An older folder steps aside first: a kill in between loses neither."""
    shutil.rmtree(partial / "checkpoints", ignore_errors=True)  # not needed once the stage counts as done
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
