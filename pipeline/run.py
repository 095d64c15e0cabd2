"""The pipeline, top to bottom: from a labelled task to a verified artifact.

A stage is skipped if its fingerprint (of its settings and all earlier stages) matches, and resumes if interrupted; see
`rundir/folders.py`.
"""

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
    """The stage of a file; the annotation of its `run` gives the result type."""
    more |= {name: getattr(module, name) for name in ("is_intact", "check") if hasattr(module, name)}
    depends_on: Callable[..., dict[str, Any]] = getattr(module, "depends_on", lambda run: {})
    return Stage(get_type_hints(module.run)["return"], module.run, depends_on, after, **more)


STAGES = (
    # Read, check, split (training, tuning, evaluation) and tokenise the rows.
    _stage(data),
    # A smaller vocabulary, if requested or if a size limit may need it.
    _stage(vocabulary, "data", is_wanted=lambda config: config.makes_vocabulary),
    # Export and time all students untrained, if a contract limits costs.
    _stage(candidates, "data", is_wanted=lambda config: config.measures_first),
    # Cheap models to beat. "labelled" leaves out what cannot affect the teacher: unlabelled rows, the student's tokens.
    _stage(baselines, "labelled", is_wanted=lambda config: config.baselines.enabled),
    # Fine-tune or check the teacher.
    _stage(teacher, "labelled", "baselines"),
    # Rows whose label is probably wrong, on request.
    _stage(label_errors, "teacher", is_wanted=lambda config: config.data.audit_labels),
    # The teacher's logits. "answered" leaves out the student's tokens.
    _stage(targets, "answered", "baselines", "teacher"),
    # Short trainings choose the student, if a contract limits costs.
    _stage(search, "targets", is_wanted=lambda config: config.searches),
    # Distil the student.
    _stage(student, "targets"),
    # Merge its adapters or projection, and calibrate its logits.
    _stage(merge, "student"),
    # ONNX graphs in fp32 and fp16.
    _stage(export, "merge"),
    # Choose the fastest good int8 model.
    _stage(quantize, "export"),
    # The teacher as ONNX too, to compare students with.
    _stage(uncut, "teacher", is_wanted=lambda config: config.export.teacher and config.has_one_teacher),
    # A second model for rows that the student is unsure of, on request or with a search.
    _stage(cascade, "targets", "quantize", "uncut", is_wanted=lambda config: config.cascades),
    # Models to compare KD-LoRA with, on request.
    _stage(controls, "teacher", "student"),
    # All models on the evaluation split, timed side by side.
    _stage(evaluate, "quantize", "uncut", "controls"),
    # Build the artifact and judge it against the contract.
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
        force: redo all.
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
    """Raises InputError if this rank has other settings or another run directory."""
    file = root / "config.json"
    if config.model_dump_json() != settings:
        raise InputError("the processes were given different settings", remedy="the same command for all of them")
    if not file.exists() or Config.model_validate_json(file.read_text(encoding="utf-8")) != config:
        raise InputError(
            "the processes do not see the same run directory",
            given=root.absolute(),
            remedy="--out on a disk that all hosts share",
        )
