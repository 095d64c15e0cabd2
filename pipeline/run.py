"""The pipeline, top to bottom; docs/explanation/pipeline.md describes the stages, `rundir/folders.py` runs them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from kdc.common.errors import InputError
from kdc.common.progress import Reporter
from kdc.pipeline.config.settings import Config
from kdc.pipeline.results.artifact import PackageResult
from kdc.pipeline.rundir.context import open_run
from kdc.pipeline.rundir.directory import claim, locked, root_of
from kdc.pipeline.rundir.fingerprints import answered_rows, as_json, fingerprint_of, labelled_rows
from kdc.pipeline.rundir.folders import Stage, forget, run_stage
from kdc.pipeline.rundir.record import CompressResult, StageRecord
from kdc.pipeline.stages import (
    baselines,
    candidates,
    cascade,
    controls,
    data,
    evaluate,
    export,
    label_errors,
    merge,
    package,
    quantize,
    search,
    student,
    targets,
    teacher,
    uncut,
    vocabulary,
)
from kdc.pipeline.training import ranks


def _stage(module: ModuleType, *after: str, **more: Any) -> Stage:
    """The annotation of the module's `run` gives the result type."""
    more |= {name: getattr(module, name) for name in ("is_intact", "check") if hasattr(module, name)}
    depends_on: Callable[..., dict[str, Any]] = getattr(module, "depends_on", lambda run: {})
    return Stage(get_type_hints(module.run)["return"], module.run, depends_on, after, **more)


STAGES = (
    _stage(data),
    _stage(vocabulary, "data", is_wanted=lambda config: config.makes_vocabulary),
    _stage(candidates, "data", is_wanted=lambda config: config.measures_first),
    # "labelled" leaves out what cannot affect the teacher: unlabelled rows, the student's tokens.
    _stage(baselines, "labelled", is_wanted=lambda config: config.baselines.enabled),
    _stage(teacher, "labelled", "baselines"),
    _stage(label_errors, "teacher", is_wanted=lambda config: config.data.audit_labels),
    # "answered" leaves out the student's tokens.
    _stage(targets, "answered", "baselines", "teacher"),
    _stage(search, "targets", is_wanted=lambda config: config.searches),
    _stage(student, "targets"),
    _stage(merge, "student"),
    _stage(export, "merge"),
    _stage(quantize, "export"),
    _stage(uncut, "teacher", is_wanted=lambda config: config.export.teacher and config.has_one_teacher),
    _stage(cascade, "targets", "quantize", "uncut", is_wanted=lambda config: config.cascades),
    _stage(controls, "teacher", "student"),
    _stage(evaluate, "quantize", "uncut", "controls"),
    _stage(package, "evaluate"),
)

_LAST_SHARED = "student"  # the last stage of all ranks under torchrun


def compress(
    config: Config,
    *,
    reporter: Reporter,
    start_from: str | None = None,
    until: str | None = None,
    force: bool = False,
    siblings: tuple[Path, ...] = (),
) -> CompressResult:
    """Run all stages that are not done yet.

    Args:
        start_from, until: first stage to redo, and last stage.
        siblings: idle run directories with stages to reuse.

    Returns:
        The result, without stages on a helper rank.

    Raises:
        InputError, KdcError: as the stages say.
    """
    stages = [stage for stage in STAGES if stage.is_wanted(config)]
    names = [stage.name for stage in stages]
    for name in (start_from, until):
        if name is not None and name not in names:
            raise InputError("no such stage in this run", given=name, remedy=f"one of {', '.join(names)}")
    redo_from = names.index(start_from) if start_from else (0 if force else len(stages))
    last = names.index(until) if until else len(stages) - 1
    root = root_of(config)
    run = open_run(root, config, reporter, siblings)
    check_same_run = partial(_check_same_run, config, root)
    ranks.join(run.device)
    if ranks.rank() > 0:
        ranks.help_leader(check_same_run)
        return CompressResult(out=root)
    records: dict[str, StageRecord] = {}
    with ranks.leading(), locked(root, again=True):
        claim(root, config.model_dump_json(indent=2), [stage.name for stage in STAGES])
        batches = {"teacher.batch_size": config.teacher.batch_size, "student.batch_size": config.student.batch_size}
        ranks.check_batches(batches, ranks.size())
        ranks.check_everywhere(check_same_run, config.model_dump_json())
        run.fingerprints["labelled"] = fingerprint_of("labelled", as_json(labelled_rows(config)), [])
        run.fingerprints["answered"] = fingerprint_of("data", as_json(answered_rows(config)), [])
        for stage in stages[redo_from:]:
            forget(root, stage.name)
        for stage in stages[: last + 1]:
            records[stage.name] = run_stage(run, stage, reporter)
            if stage.name == _LAST_SHARED:
                ranks.dismiss()
        if last < len(stages) - 1:
            return CompressResult(out=root, stages=records)
        package.note_run(run.folder(PackageResult.STAGE), config.model_dump_json(indent=2), run.fingerprints)
    result = run.result(PackageResult)
    artifact = root / (result.artifact if result.failed else "artifact")
    return CompressResult(out=root, stages=records, artifact=artifact, result=result)


def _check_same_run(config: Config, root: Path, settings: str) -> None:
    file = root / "config.json"
    if config.model_dump_json() != settings:
        raise InputError("the processes were given different settings", remedy="the same command for all of them")
    if not file.exists() or Config.model_validate_json(file.read_text(encoding="utf-8")) != config:
        raise InputError(
            "the processes do not see the same run directory",
            given=root.absolute(),
            remedy="--out on a disk that all hosts share",
        )
