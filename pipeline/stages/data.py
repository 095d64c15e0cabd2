"""Stage `data`: rows read, checked, split and tokenised, once.

Reads what the settings' section `data` names. Writes `rows/`, `tokens-<role>/`, `task.json` and `report.json`.
"""

import math
import os
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from kdc.artifact.manifest import LEAST_WINDOW, LongTexts, longest_row
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.aims import abstain_of, aims_of, check_sets, required_label
from kdc.pipeline.config.data_settings import LongSettings
from kdc.pipeline.config.metrics import Groups
from kdc.pipeline.config.student_names import UNCUT, is_of_teacher, is_shallow
from kdc.pipeline.config.tasks import Task, task_of
from kdc.pipeline.config.training_settings import StudentSettings, TeacherSettings
from kdc.pipeline.data.prepared import open_data, prepare
from kdc.pipeline.data.tokens import tokenise
from kdc.pipeline.evaluation.second_model import check_second
from kdc.pipeline.graphs.onnx_graph import choose_exporter
from kdc.pipeline.models import loading
from kdc.pipeline.models.architectures import check_student
from kdc.pipeline.models.cutting import check_cut
from kdc.pipeline.models.shallow import check_shape
from kdc.pipeline.quality.conformal import fewest_rows
from kdc.pipeline.quality.latency import check_length
from kdc.pipeline.quality.shown import independent_rows
from kdc.pipeline.results.data import DataResult, TokenCounts
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.fingerprints import answered_rows
from kdc.pipeline.training import ensemble
from kdc.pipeline.training.finetuning import check_class_weights


def depends_on(run: Run) -> dict[str, Any]:
    """What the rows and their tokens depend on: the contents of the files, not where they lie."""
    student = run.config.student.model
    own = {} if is_of_teacher(student) else {"student_model": loading.fingerprint(student)}
    return answered_rows(run.config) | own


def run(run: Run, out: Path) -> DataResult:
    """Make the rows and their tokens in `out`."""
    config = run.config
    report = prepare(out, task_of(config.data), config.data, seed=config.run.seed)
    for warning in report.warnings:
        run.say(f"warning: {warning}")
    if unused := report.unused_unlabeled_rows:
        taken = report.splits["unlabeled"].rows
        run.say(f"of the unlabelled texts {taken:,} are learned from, drawn at random; {unused:,} are not")
    task = open_data(out).task
    _check_plan(config.teacher, config.student, task)
    choose_exporter(config.export.exporter)

    sources = {ensemble.role(place): source for place, source in enumerate(config.teacher.sources)}
    if not is_of_teacher(config.student.model):
        sources["student"] = config.student.model
    max_length: dict[str, int] = {}
    tokens: dict[str, dict[str, TokenCounts]] = {}
    for role, source in sources.items():
        tokenizer = loading.load_tokenizer(source)
        longest = loading.longest_input(loading.load_config(source), tokenizer)
        max_length[role] = min(config.data.max_length or task.max_length, longest)
        special = tokenizer.num_special_tokens_to_add(pair=task.text_pair is not None)
        long = _windows(config.long, max_length[role], special)
        if long is not None and long.keep and tokenizer.truncation_side == "left":
            raise InputError(
                "the beginning of a text cannot be kept by a tokenizer that cuts it",
                given=f"long.keep={long.keep}, {source} cuts the left side",
                remedy="--set long.keep=0",
            )
        tokens[role] = tokenise(out, role, tokenizer, max_length[role], on_rows=run.progress, long=long)
    if "student" not in sources:  # it is made of the teacher, and takes the same tokens
        os.symlink("tokens-teacher", out / "tokens-student")
        max_length["student"], tokens["student"] = max_length["teacher"], tokens["teacher"]

    rows = ", ".join(f"{name} {split.rows}" for name, split in tokens["teacher"].items())
    cut = sum(split.truncated for split in tokens["teacher"].values())
    length, long = max_length["teacher"], config.long.of(max_length["teacher"])
    room = f"{length} tokens" if long is None else f"{long.windows} windows of {length} tokens"
    headline = f"{task.name}, {rows} rows; {cut} longer than {room} were cut"
    return DataResult(max_length=max_length, tokens=tokens, report=report, headline=headline)


def _windows(settings: LongSettings, max_length: int, special: int) -> LongTexts | None:
    """The windows of rows of more than so many tokens, of which some are special; None where these are cut.

    Raises:
        InputError: the settings leave no room in a window.
    """
    long = settings.of(max_length)
    if long is None:
        return None
    problem, most = "", max_length - special
    if max_length < LEAST_WINDOW:
        problem, remedy = "windows of so few tokens hold too little", f"--set data.max_length={LEAST_WINDOW} or more"
    elif 2 * long.keep > most:
        problem, remedy = "what is kept leaves no room in a window", f"--set long.keep={most // 2} or less"
    elif long.stride > most - long.keep:
        problem, remedy = "text between two windows would be left out", f"--set long.stride={most - long.keep} or less"
    if problem:
        given = f"windows of {max_length} tokens, {settings.model_dump(exclude={'mode'})}"
        raise InputError(problem, given=given, remedy=remedy)
    return long


def check(run: Run) -> None:
    """Refuse a student that cannot be, and a contract's conditions that the students cannot be timed under.

    Raises:
        InputError: windows that cannot be joined so; an aim that the task's labels cannot have; a second model that
            cannot be; an architecture that can only be a teacher; layers or widths that the teacher does not have; the
            teacher itself where there is no such one; sizes or ways of training that a student without layers does not
            have; rows longer than the students take.
    """
    student = run.config.student
    operating, task = run.config.operating, run.data().task
    _check_windows(run.config.long, task)
    _check_window_losses(run.config.long, (run.config.teacher.window_loss, student.window_loss))
    aims_of(operating.aims, task)
    abstain_of(operating.abstain, operating.aims, task)
    check_sets(operating.sets, task)
    _check_rows_for_sets(operating.sets, run.data().groups("tune"))
    check_second(run)
    for requirement in run.config.contract.require:
        required_label(requirement, task)
    teacher = run.config.teacher.model
    _check_shallow(student, teacher)
    if not (run.config.searches or is_shallow(student.model)):
        _check_architecture(student, teacher)
    if student.model.startswith("layers:"):
        check_cut(student.model, teacher)
    if not student.has_all_pieces and not is_of_teacher(student.model):
        raise InputError(
            "only a student that is made of the teacher can have a part of its vocabulary",
            given=f"student.vocabulary={student.vocabulary}, student.model={student.model}",
            remedy="--student layers:first-and-last, conv, static or teacher; or drop student.vocabulary",
        )
    if student.model == UNCUT and not run.config.has_one_teacher:
        raise InputError(
            "the student can be the teacher itself only where there is one, with its weights",
            given=f"student.model={UNCUT}",
            remedy="drop teacher.scores and further teachers, or name another --student",
        )
    contract = run.config.contract.terms
    if contract is not None:
        length = run.result(DataResult).max_length["student"]
        check_length(contract.at, longest_row(length, run.config.long.of(length)))


def _check_rows_for_sets(coverage: float | None, groups: Groups) -> None:
    rows = int(independent_rows(groups, len(groups)))
    if coverage is not None and rows < fewest_rows(coverage):
        most = math.floor(1e3 * rows / (rows + 1)) / 1e3
        raise InputError(
            "the tuning slice has too few rows for sets that hold the true label so often",
            given=f"operating.sets={coverage:g}, {rows} independent rows, and {fewest_rows(coverage)} are needed",
            remedy=f"more training rows, of which the slice is cut, or --set operating.sets={most:g}",
        )


def _check_windows(long: LongSettings, task: Task) -> None:
    if task.kind == "regression" and long.join == "noisy-or":
        raise InputError(
            "a window's number is no chance, of which noisy-or could be taken",
            given="data.kind=regression, long.join=noisy-or",
            remedy="--set long.join=mean, max or first",
        )


def _check_window_losses(long: LongSettings, losses: tuple[str, ...]) -> None:
    if long.mode == "cut" and "each" in losses:
        raise InputError(
            "there are no windows that could have losses of their own",
            given="window_loss=each",
            remedy="--long windows, or drop it",
        )


def _check_architecture(student: StudentSettings, teacher: str) -> None:
    source = _config_at_hand(teacher if is_of_teacher(student.model) else student.model)
    if source is None:
        return
    adapters = student.method == "lora" and student.model != UNCUT
    check_student(source, f"--student {student.model}", adapters=adapters)


def _config_at_hand(model: str) -> PretrainedConfig | None:
    """A checkpoint's config. Without it nothing is checked: a run that is done needs no hub, and one that is not says
    so."""
    try:
        return loading.load_config(model)
    except KdcError:
        return None


def _check_shallow(student: StudentSettings, teacher: str) -> None:
    """Also where the rows are there already: they are the same for all students that are made of the teacher."""
    if not is_shallow(student.model):
        return
    check_shape(student.model, _config_at_hand(teacher))
    wrong = ["student.method=lora"] * (student.method == "lora")
    wrong += ["student.gradient_checkpointing=true"] * student.gradient_checkpointing
    if wrong:
        raise InputError(
            "a student without layers has nothing for adapters or for checkpoints between layers",
            given=", ".join(wrong),
            remedy="drop that, or name a student with layers: --student layers:first-and-last",
        )


def _check_plan(teacher: TeacherSettings, student: StudentSettings, task: Task) -> None:
    """Refuse now what a later stage would refuse after hours of training.

    Raises:
        InputError: weights of unknown classes, or a black box beside other teachers.
    """
    if teacher.scores is not None and teacher.more:
        raise InputError(
            "a black box cannot be averaged with a second teacher",
            given=", ".join(teacher.more),
            remedy="drop teacher.scores, or all --teacher but the first",
        )
    for settings in (teacher, student):
        check_class_weights(settings.class_weights, task)
