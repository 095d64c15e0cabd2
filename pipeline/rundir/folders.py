"""One stage's folder: done as a whole or not at all, skipped while nothing changed, gone on with where it was cut off.

A stage works in `<stage>.partial/`, which is renamed to `<stage>/` at its end, so a folder that exists is complete.
What a run beside this one finished by the same fingerprint is taken over instead.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
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

    result: type[StageResult]  # the model of what it hands on, which also names the stage and its folder
    run: Callable[[Run, Path], StageResult]  # does the work in the folder that it is given
    depends_on: Callable[[Run], dict[str, Any]]  # settings that its result depends on, beside the stages before it
    after: tuple[str, ...]  # stages whose results it reads: their fingerprints, with the settings, make its own
    # whether what the stage keeps outside its folder is still in the run directory
    is_intact: Callable[[Path], bool] = lambda root: True
    is_wanted: Callable[[Config], bool] = lambda config: True  # whether the settings ask for it
    check: Callable[[Run], None] = lambda run: None  # called when it is done or skipped; may refuse to go on

    @property
    def name(self) -> str:
        """The stage's name, which is also its folder's."""
        return self.result.STAGE


def run_stage(run: Run, stage: Stage, reporter: Reporter) -> StageRecord:
    """Do one stage, go on with it, or skip it; then its check. Notes its fingerprint in the run.

    Raises:
        KdcError: its record is damaged; and what the stage says.
    """
    settings = as_json(stage.depends_on(run))
    fingerprint = fingerprint_of(stage.name, settings, _fingerprints_before(run.fingerprints, stage))
    run.fingerprints[stage.name] = fingerprint
    folder, partial = run.root / stage.name, run.root / f"{stage.name}.partial"
    record = read_record(folder)
    why = _why_to_run(stage, record, fingerprint, run.root)
    finished = read_record(partial) if why else None
    if finished is not None and finished.fingerprint == fingerprint:
        _publish(partial, folder)  # the process was killed between its last write and the rename
        record = finished
        why = _why_to_run(stage, record, fingerprint, run.root)
    if why and _take_over(run.siblings, folder, fingerprint):
        record = read_record(folder)
        why = _why_to_run(stage, record, fingerprint, run.root)
    if record is not None and not why:
        reporter.skipped(stage.name)
    else:
        record = _do(run, stage, settings, fingerprint, reporter, why)
        _publish(partial, folder)
        reporter.finished(stage.name, record.seconds, stage.result.model_validate(record.metrics).line)
    stage.check(run)
    return record


def _fingerprints_before(fingerprints: Mapping[str, str], stage: Stage) -> list[str]:
    """The fingerprints of the stages whose results it reads, less those that the settings do not ask for."""
    return [fingerprints[name] for name in stage.after if name in fingerprints]


def _why_to_run(stage: Stage, record: StageRecord | None, fingerprint: str, root: Path) -> str:
    """Why a stage must be run, in words for the person who watches; "" where it is done."""
    if record is None:
        return "new"
    is_same = record.fingerprint == fingerprint and stage.is_intact(root)
    return "" if is_same else "its settings or inputs changed"


def _take_over(siblings: Iterable[Path], folder: Path, fingerprint: str) -> bool:
    """Take a finished stage's folder from a run beside this one, as further names of the same files where the disk has
    such; False where none of them has it. No file of a finished folder is ever written again."""
    for source in (sibling / folder.name for sibling in siblings):
        record = read_record(source)
        if record is not None and record.fingerprint == fingerprint:
            partial = folder.with_name(f"{folder.name}.partial")
            _remove(partial)
            # What says that it is done comes last: the copying may be cut off.
            says_done = shutil.ignore_patterns(RECORD, _MARK)
            shutil.copytree(source, partial, symlinks=True, copy_function=_link, ignore=says_done)
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
    resumes = _open_partial(partial, fingerprint)
    reporter.started(stage.name, "goes on where it was cut off" if resumes else why)
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
    """What a stage keeps for its next time, though its settings may be others then. Files are named by what they depend
    on."""
    return root / f"{name}.kept"


def forget(root: Path, name: str) -> None:
    """Make a stage count as not done, on disk and before anything is redone. Otherwise a run that is cut off in between
    would leave later stages that look finished but were made from other results."""
    _remove(root / f"{name}.partial")
    shutil.rmtree(kept_folder(root, name), ignore_errors=True)
    (root / name / RECORD).unlink(missing_ok=True)


def _open_partial(partial: Path, fingerprint: str) -> bool:
    """Make the stage's working folder; True where it holds the beginning of the same work."""
    mark = partial / _MARK
    if mark.exists() and mark.read_text() == fingerprint:
        return True
    _remove(partial)
    partial.mkdir(parents=True)
    mark.write_text(fingerprint)
    return False


def _remove(partial: Path) -> None:
    """Remove a working folder. The files that say whose work it is go first: if the process is killed in between, the
    rest must not count as the beginning of anything."""
    for name in (RECORD, _MARK):
        (partial / name).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    """Give the finished work its name. An older folder steps aside first, so that a kill in between loses neither."""
    shutil.rmtree(partial / "checkpoints", ignore_errors=True)  # not needed once the stage counts as done
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
