"""The pipeline, top to bottom: from a labelled task to a verified artifact.

A stage whose fingerprint (its settings, and everything before it) still matches is skipped; one that was cut off goes
on from what its folder holds (`rundir/folders.py`, which says at `Stage` what `after`, `check` and the rest mean).
"""

from functools import partial
from pathlib import Path

from kdc.common.errors import InputError
from kdc.common.progress import Reporter
from kdc.pipeline.config.settings import Config
from kdc.pipeline.results.artifact import (
    CascadeResult,
    EvaluateResult,
    ExportResult,
    PackageResult,
    QuantizeResult,
    UncutResult,
)
from kdc.pipeline.results.data import DataResult, VocabularyResult
from kdc.pipeline.results.training import (
    BaselinesResult,
    CandidatesResult,
    ControlsResult,
    MergeResult,
    SearchResult,
    StudentResult,
    TargetsResult,
    TeacherResult,
)
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

STAGES = (
    # Rows are read, checked, split into training, tuning and evaluation, and tokenised.
    Stage(DataResult, data.run, data.depends_on, after=(), check=data.check),
    # Where a student is to have a part of the teacher's vocabulary, or a contract's size may ask for that: the pieces
    # that the texts use, and the rows as these cut them.
    Stage(
        VocabularyResult,
        vocabulary.run,
        vocabulary.depends_on,
        after=("data",),
        is_wanted=lambda config: config.makes_vocabulary,
    ),
    # Where a contract limits costs: students that could come out are exported untrained and timed.
    Stage(
        CandidatesResult,
        candidates.run,
        candidates.depends_on,
        after=("data",),
        is_intact=candidates.is_intact,
        is_wanted=lambda config: config.measures_first,
        check=candidates.check,
    ),
    # What is cheap to beat. "labelled" is stage `data` without its unlabelled rows and the student's tokens: changing
    # those does not train the teacher again.
    Stage(
        BaselinesResult,
        baselines.run,
        baselines.depends_on,
        after=("labelled",),
        is_wanted=lambda config: config.baselines.enabled,
    ),
    # The teacher is fine-tuned, or one that was brought along is checked.
    Stage(TeacherResult, teacher.run, teacher.depends_on, after=("labelled", "baselines")),
    # The teacher answers every row that the student learns from. "answered" is stage `data` without the student's
    # tokens: another tokenizer asks nothing again.
    Stage(TargetsResult, targets.run, targets.depends_on, after=("answered", "baselines", "teacher")),
    # Where a contract limits costs: short trainings say which student gets the full one.
    Stage(
        SearchResult,
        search.run,
        search.depends_on,
        after=("targets",),
        is_wanted=lambda config: config.searches,
    ),
    # The student, by `depends_on` the one that the search chose, learns from the teacher's answers and from the labels,
    # through LoRA adapters, or in all its weights.
    Stage(StudentResult, student.run, student.depends_on, after=("targets",)),
    # What was trained beside the weights is merged into them.
    Stage(MergeResult, merge.run, lambda run: {}, after=("student",)),
    # The merged model becomes an ONNX graph, in fp32 and fp16.
    Stage(ExportResult, export.run, export.depends_on, after=("merge",)),
    # int8 candidates are made and judged, and the fastest good one is chosen.
    Stage(QuantizeResult, quantize.run, quantize.depends_on, after=("export",)),
    # The teacher itself becomes ONNX graphs too, in fp32 and int8: what every student is compared with.
    Stage(
        UncutResult,
        uncut.run,
        uncut.depends_on,
        after=("teacher",),
        is_wanted=lambda config: config.export.teacher and config.has_one_teacher,
    ),
    # On request, or where a contract's student is searched for: a second model for the rows that the student is not
    # sure of, where the two together gain.
    Stage(
        CascadeResult,
        cascade.run,
        cascade.depends_on,
        after=("targets", "quantize", "uncut"),
        is_wanted=lambda config: config.cascades,
    ),
    # On request: what KD-LoRA is compared with is trained too.
    Stage(ControlsResult, controls.run, controls.depends_on, after=("teacher", "student")),
    # All models answer the evaluation split, and are timed side by side.
    Stage(EvaluateResult, evaluate.run, evaluate.depends_on, after=("quantize", "uncut", "controls")),
    # The artifact is put together, and judged against the contract.
    Stage(PackageResult, package.run, package.depends_on, after=("evaluate",), is_intact=package.is_intact),
)

_LAST_SHARED = "student"  # under torchrun all processes train; the stages after this one are the leader's alone


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
        config: resolved settings.
        reporter: whom to tell.
        start_from: redo from that stage on, though its fingerprint matches.
        until: stop after that stage.
        force: redo all.
        siblings: run directories, in which nobody works, whose finished stages are taken over where they are the same.

    Returns:
        What came of it; without stages in a process that only helped another one train.

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
    """See that this process has the leader's settings and run directory.

    Raises:
        InputError: it has not.
    """
    file = root / "config.json"
    if config.model_dump_json() != settings:
        raise InputError("the processes were given different settings", remedy="the same command for all of them")
    if not file.exists() or Config.model_validate_json(file.read_text(encoding="utf-8")) != config:
        raise InputError(
            "the processes do not see the same run directory",
            given=root.absolute(),
            remedy="--out on a disk that all hosts share",
        )
