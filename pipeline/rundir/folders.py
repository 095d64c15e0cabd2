"""Run a stage in `<stage>.partial/`, renamed at the end; skip it if unchanged, resume it if interrupted."""

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

_MARK = "fingerprint"


@dataclass(frozen=True)
class Stage:
    result: type[StageResult]
    run: Callable[[Run, Path], StageResult]
    depends_on: Callable[[Run], dict[str, Any]]
    after: tuple[str, ...]  # stages in its fingerprint
    is_intact: Callable[[Path], bool] = lambda root: True  # files outside its folder
    is_wanted: Callable[[Config], bool] = lambda config: True  # by the settings
    check: Callable[[Run], None] = lambda run: None  # afterwards; may stop the run

    @property
    def name(self) -> str:
        return self.result.STAGE


def run_stage(run: Run, stage: Stage, reporter: Reporter) -> StageRecord:
    """Add the fingerprint to the run; run, resume or skip; then check.

    Raises:
        KdcError: the record is damaged, or the stage fails.
    """
    settings = as_json(stage.depends_on(run))
    before = [run.fingerprints[name] for name in stage.after if name in run.fingerprints]  # others not wanted
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
    """Publish a sibling's finished folder, or its own if killed before the rename.

    A sibling's files are hard-linked: nothing writes finished files.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    for source in (partial, *(sibling / folder.name for sibling in siblings)):
        record = read_record(source)
        if record is not None and record.fingerprint == fingerprint:
            if source != partial:
                _remove(partial)
                # The record comes last: copying may be interrupted.
                ignored = shutil.ignore_patterns(RECORD, _MARK)
                shutil.copytree(source, partial, symlinks=True, copy_function=_link, ignore=ignored)
                _link(str(source / RECORD), str(partial / RECORD))
            _publish(partial, folder)
            return True
    return False


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # e.g. another disk
        shutil.copy2(source, target)


def _do(
    run: Run, stage: Stage, settings: dict[str, Any], fingerprint: str, reporter: Reporter, why: str
) -> StageRecord:
    partial = run.root / f"{stage.name}.partial"
    mark = partial / _MARK
    if mark.exists() and mark.read_text() == fingerprint:
        why = "resumes where it stopped"
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
    """For runs with other settings; file names say what a file depends on."""
    return root / f"{name}.kept"


def forget(root: Path, name: str) -> None:
    """Forget all before any is redone: an interruption must leave no stage that used old results."""
    _remove(root / f"{name}.partial")
    shutil.rmtree(kept_folder(root, name), ignore_errors=True)
    (root / name / RECORD).unlink(missing_ok=True)


def _remove(partial: Path) -> None:
    """Record and mark go first, so a kill leaves nothing that counts."""
    for name in (RECORD, _MARK):
        (partial / name).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    """An older folder steps aside first, so a kill loses neither."""
    shutil.rmtree(partial / "checkpoints", ignore_errors=True)
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
