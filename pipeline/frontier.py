"""The whole curve of a task: students from the teacher itself to one without any of its layers, each a run of its own
with an artifact that serves, and all of them measured side by side.

The first point is the run directory's own run. The others lie below it, in `frontier/<student>/`, and take over what
all have in common: rows, teacher and its answers. A student that learned nothing, or cannot be made of this teacher, is
named with its reason and left out. Writes `frontier.html`, `frontier.json` and `frontier.md` beside the first run's
report.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common import machine
from kdc.common.errors import InputError, KdcError
from kdc.common.files import disk_is_full
from kdc.common.progress import Reporter
from kdc.pipeline.config import metrics
from kdc.pipeline.config.aims import parse_abstain, parse_aim
from kdc.pipeline.config.judging_settings import EvaluateSettings
from kdc.pipeline.config.metrics import Floats
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.student_names import UNCUT, is_shallow
from kdc.pipeline.evaluation.evidence import answers_of, look_of
from kdc.pipeline.quality.frontier import FrontierFacts, Left, Point
from kdc.pipeline.quality.intervals import difference, score_interval
from kdc.pipeline.quality.judging import EvaluationAnswers, judged_device
from kdc.pipeline.quality.latency import BATCH, in_pieces, interval_of_median, time_in_turns
from kdc.pipeline.report.frontier import read_facts, write_frontier
from kdc.pipeline.results.training import StudentResult, TargetsResult
from kdc.pipeline.run import STAGES, compress
from kdc.pipeline.rundir.context import Run, open_run
from kdc.pipeline.rundir.directory import FRONTIER, locked, root_of
from kdc.pipeline.rundir.folders import forget
from kdc.pipeline.rundir.record import RECORD, read_record, read_result
from kdc.pipeline.stages.candidates import curve_of
from kdc.pipeline.training import ranks
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import Text

_CONFIDENCE = 0.95  # with which all intervals of scores hold at once, and each one of a time
_ROUNDS = 9  # see `interval_of_median`
_WARM_UP_CALLS = 5
_SHARED = ("data", "vocabulary", "baselines", "teacher", "targets", "uncut")  # stages that points have in common
_LAST_SHARED, _FIRST_OWN = "targets", "student"
_LEAST_HOURS = 1 / 60  # of a training, however late it is
_SECONDS_OF_AN_HOUR = 3600.0


@dataclass(frozen=True)
class _Made:
    """A point's run, finished."""

    student: str
    run: Run
    artifact: Path  # its folder
    sha256: str


def make_frontier(
    config: Config,
    *,
    reporter: Reporter,
    start_from: str | None = None,
    force: bool = False,
) -> FrontierFacts:
    """Make all points that are not there yet, and measure them.

    Args:
        config: resolved settings, of the first point. `student.hours` bounds the trainings of all students together.
        reporter: whom to tell.
        start_from, force: what each point does again, see `kdc.pipeline.run.compress`.

    Raises:
        InputError: a contract, a bound on decisions, a full search or a student without layers was asked for, or this
            is one of several processes; or as the stages say that all points have in common.
        KdcError: what all points have in common could not be made, or none of them.
    """
    _check(config)
    root, students = root_of(config), curve_of(config)
    with locked(root, again=True):  # from the first stage to the page, so that all points are of one teacher
        compress(config, reporter=reporter, start_from=start_from, until=_LAST_SHARED, force=force)
        names = [stage.name for stage in STAGES]
        if force or (start_from is not None and names.index(start_from) <= names.index(_LAST_SHARED)):
            start_from = _FIRST_OWN
        made: list[_Made] = []
        left: list[Left] = []
        roots: list[Path] = []
        hours = config.student.hours
        for place, student in enumerate(students):
            reporter.say(f"frontier: {student}, {place + 1} of {len(students)}")
            share = None if hours is None else max(hours / (len(students) - place), _LEAST_HOURS)
            own = _config_of(config, student, place, share)
            _forget_other_teachers(root, root_of(own))
            began = time.monotonic()
            try:
                made.append(_make(student, own, tuple(roots), reporter, start_from))
                hours = hours and hours - _hours_trained(root_of(own))
            except KdcError as error:
                if disk_is_full(error) or (place == len(students) - 1 and not made):
                    raise
                left.append(Left(student=student, why=_in_one_line(error)))
                reporter.say(f"frontier: {student} is left out: {left[-1].why}")
                spent = (time.monotonic() - began) / _SECONDS_OF_AN_HOUR
                hours = hours and hours - min(share or 0.0, spent)
            roots.append(root_of(own))
        return _facts(root, made, left, reporter)


def _check(config: Config) -> None:
    """Refuse what a frontier cannot be made of, before anything is done.

    Raises:
        InputError: see `make_frontier`.
    """
    if limits := config.contract.set_ones:
        raise InputError(
            "a frontier shows what each limit would cost, and takes none",
            given=", ".join(f"contract.{name}" for name in limits),
            remedy="drop the limits, or drop --frontier for the one student that keeps them",
        )
    if config.contract.search == "full":
        raise InputError(
            "a frontier shows students along the whole curve, and searches none",
            given="contract.search=full",
            remedy="drop contract.search, or drop --frontier and name the limits that a student has to keep",
        )
    bounds = [f"--aim {text}" for text in config.operating.aims if parse_aim(text).is_bound]
    abstain = config.operating.abstain
    if abstain is not None and parse_abstain(abstain).is_bound:
        bounds.append(f"--abstain {abstain}")
    if bounds:
        raise InputError(
            "a frontier shows every student, and would lose those of which a bound on decisions is not shown",
            given=", ".join(bounds),
            remedy="drop it here, and ask it of the student that you choose: the same command without --frontier, with "
            "that --student",
        )
    if is_shallow(config.student.model):
        raise InputError(
            "a frontier trains students with layers and without, and these settings are for one without",
            given=f"--student {config.student.model}",
            remedy="drop --student: a frontier has conv, static and linear in any case",
        )
    if ranks.is_launched():
        raise InputError(
            "a frontier is made by one process",
            given="torchrun",
            remedy="run it without torchrun; teacher and targets that torchrun made in the same --out are taken over",
        )


def _config_of(config: Config, student: str, place: int, hours: float | None) -> Config:
    """The settings of a point. Controls are trained beside the first one alone."""
    settings = config.student.of(student) if place else config.student
    run = config.run
    if place:
        root = root_of(config) / FRONTIER / "".join(letter if letter.isalnum() else "-" for letter in student)
        run = run.model_copy(update={"out": root, "controls": False})
    changes: dict[str, Any] = {"student": settings.model_copy(update={"hours": hours}), "run": run}
    if student == UNCUT:  # it is its own second model
        changes["cascade"] = config.cascade.model_copy(update={"second": "off"})
    return config.model_copy(update=changes)


def _forget_other_teachers(first: Path, root: Path) -> None:
    """Let a point count nothing as done that was made from a shared stage which the first point's run has done again
    since: the settings are the same, but it is another teacher."""
    names = [stage.name for stage in STAGES]
    for place, name in enumerate(names):
        ours, theirs = (folder / name / RECORD for folder in (root, first))
        if name in _SHARED and root != first:
            old, new = read_record(ours.parent), read_record(theirs.parent)
            same_settings = old is not None and new is not None and old.fingerprint == new.fingerprint
            if same_settings and ours.read_bytes() != theirs.read_bytes():
                for later in names[place:]:
                    forget(root, later)
                return


def _make(
    student: str, config: Config, siblings: tuple[Path, ...], reporter: Reporter, start_from: str | None
) -> _Made:
    """Run a point to its artifact, with what the points before it have of the same."""
    root = root_of(config)
    result = compress(config, reporter=reporter, start_from=start_from, siblings=siblings)
    assert result.artifact is not None  # without a contract none is rejected
    sha256 = load_manifest(result.artifact, verify=False).sha256
    return _Made(student, open_run(root, config, reporter), result.artifact, sha256)


def _in_one_line(error: KdcError) -> str:
    given = "" if error.given is None else f" ({error.given})"
    return f"{error.what}{given}" + (f"; {error.remedy}" if error.remedy else "")


def _hours_trained(root: Path) -> float:
    """How long a point's student was trained; 0 for one that was not."""
    if read_record(root / StudentResult.STAGE) is None:
        return 0.0
    training = read_result(root, StudentResult).training
    return 0.0 if training is None else training.seconds / _SECONDS_OF_AN_HOUR


def _facts(root: Path, made: list[_Made], left: list[Left], reporter: Reporter) -> FrontierFacts:
    """Measure the points side by side, and write what they show; or read it, where the same artifacts were measured on
    this machine before."""
    first = made[0].run
    device = judged_device(first.device)
    where = {"cpu": machine.cpu().model, "threads": machine.cores().usable, "device": device}
    before = read_facts(root)
    if before is not None and before.is_of([each.sha256 for each in made], left, where):
        return before
    reporter.started(FRONTIER, f"{len(made)} artifacts are measured side by side")
    answers = [
        answers_of(each.run.data(), each.run.folder("evaluate"), each.run.result(TargetsResult).standing)
        for each in made
    ]
    with ExitStack() as stack:
        engines = {
            each.student: stack.enter_context(Engine.load(each.artifact, device=device, verify=False)) for each in made
        }
        timings = _timed(first.config.evaluate, engines, answers[0].texts)
        points = [
            _point(each, answered, engines[each.student], timings[each.student], root=root, points=len(made))
            for each, answered in zip(made, answers, strict=True)
        ]
    task, labels = first.data().task, answers[0].labels
    metric = task.metrics[0]
    told = {name: answers[0].students[name] for name in ("probe", "tfidf", "majority") if name in answers[0].students}
    facts = FrontierFacts(
        task=task.name,
        metric=metric,
        rows=len(labels),
        groups=len(np.unique(answers[0].groups)),
        teacher=metrics.compute(answers[0].teacher, labels, task.kind, (metric,))[metric],
        floors={name: metrics.compute(each, labels, task.kind, (metric,))[metric] for name, each in told.items()},
        points=tuple(points),
        left=tuple(left),
        **where,
    )
    write_frontier(root, facts)
    reporter.finished(FRONTIER, 0.0, f"{len(points)} points")
    return facts


def _timed(settings: EvaluateSettings, engines: Mapping[str, Engine], texts: Sequence[Text]) -> dict[str, Floats]:
    return time_in_turns(
        {student: engine.predict for student, engine in engines.items()},
        in_pieces(texts, settings.latency_rows, 1),
        in_pieces(texts, settings.throughput_rows, BATCH),
        percentiles=(50, 95),
        rounds=_ROUNDS,
        warm_up_calls=_WARM_UP_CALLS,
    )


def _point(
    made: _Made, answers: EvaluationAnswers, engine: Engine, timing: Floats, *, root: Path, points: int
) -> Point:
    """What was measured of one artifact. Its two intervals have their share of the error that those of all points may
    have; and it counts as a look at the evaluation rows, since a contract may be chosen by it."""
    task, result = made.run.data().task, made.run.result(StudentResult)
    metric, confidence = task.metrics[0], 1 - (1 - _CONFIDENCE) / (2 * points)
    logits = answers.student(str(engine.variant), on_gpu=engine.provider != CPU_PROVIDER)
    look_of(made.run.data(), root, metrics.predictions(logits, task.kind))
    scored = (logits, answers.labels, task.kind, metric)
    gap = difference(
        logits, answers.teacher, answers.labels, task.kind, metric, groups=answers.groups, confidence=confidence
    )
    score, teacher = (
        metrics.compute(each, answers.labels, task.kind, (metric,))[metric] for each in (logits, answers.teacher)
    )
    p50, p95, _, rows_per_second = np.median(timing, axis=0).tolist()
    assert engine.manifest is not None
    return Point(
        student=made.student,
        artifact=str(made.artifact.relative_to(root)),
        sha256=made.sha256,
        variant=str(engine.variant),
        score=score,
        interval=score_interval(*scored, groups=answers.groups, confidence=confidence),
        difference=score - teacher,
        difference_interval=gap.interval,
        latency_p50_ms=p50,
        latency_interval=interval_of_median(timing[:, 0], _CONFIDENCE),
        latency_p95_ms=p95,
        rows_per_second=rows_per_second,
        rows_interval=interval_of_median(timing[:, -1], _CONFIDENCE),
        size_mb=engine.manifest.variants[engine.variant].size_bytes / 1e6,  # type: ignore[index]
        parameters=result.parameters,
        training_seconds=None if result.training is None else result.training.seconds,
    )
