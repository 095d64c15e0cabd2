"""Runs and measures students from the teacher down to token vectors alone.

Later runs, in `frontier/<student>/`, reuse the first one's rows, teacher and logits.
"""

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
from kdc.pipeline.config.metrics import Floats
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.student_kinds import kind_of
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
from kdc.pipeline.rundir.record import RECORD, read_record
from kdc.pipeline.stages.candidates import curve_of
from kdc.pipeline.training import ranks
from kdc.serving.engine.engine import Engine

_CONFIDENCE = 0.95  # of all score intervals together, of each time interval
_ROUNDS = 9  # see `interval_of_median`
_SHARED = ("data", "vocabulary", "baselines", "teacher", "targets", "uncut")
_LAST_SHARED, _FIRST_OWN = "targets", "student"


@dataclass(frozen=True)
class _Made:
    student: str
    run: Run
    artifact: Path
    sha256: str

    def answers(self) -> EvaluationAnswers:
        comparison = self.run.result(TargetsResult).baseline_comparison
        return answers_of(self.run.data(), self.run.folder("evaluate"), comparison)


def make_frontier(
    config: Config,
    *,
    reporter: Reporter,
    start_from: str | None = None,
    force: bool = False,
) -> FrontierFacts:
    """Make missing points and measure all.

    Args:
        config: of the first point; `student.hours` bounds all trainings.
        start_from, force: for each point, see `compress`.

    Raises:
        KdcError: unsuitable settings, a shared stage failed, or no point could be made.
    """
    _check(config)
    root, students = root_of(config), curve_of(config)
    with locked(root, again=True):  # all points need one teacher
        compress(config, reporter=reporter, start_from=start_from, until=_LAST_SHARED, force=force)
        names = [stage.name for stage in STAGES]
        if force or (start_from is not None and names.index(start_from) <= names.index(_LAST_SHARED)):
            start_from = _FIRST_OWN
        made: list[_Made] = []
        left: list[Left] = []
        trained = sum(kind_of(student).is_trained for student in students)
        hours = config.student.hours and config.student.hours / trained
        for index, student in enumerate(students):
            reporter.say(f"frontier: {student}, {index + 1} of {len(students)}")
            own = _config_of(config, student, hours, is_first=index == 0)
            _forget_other_teachers(root, root_of(own))
            try:
                made.append(_make(student, own, (root,) if index else (), reporter, start_from))
            except KdcError as error:
                if disk_is_full(error) or (index == len(students) - 1 and not made):
                    raise
                given = "" if error.given is None else f" ({error.given})"
                why = f"{error.what}{given}" + (f"; {error.remedy}" if error.remedy else "")
                left.append(Left(student=student, why=why))
                reporter.say(f"frontier: {student} is left out: {why}")
        return _facts(root, made, left, reporter)


def _check(config: Config) -> None:
    if limits := config.contract.set_ones:
        raise InputError(
            "a frontier takes no limits: it shows what each would cost",
            given=", ".join(f"contract.{name}" for name in limits),
            remedy="drop the limits, or drop --frontier for the one student that keeps them",
        )
    if ranks.is_launched():
        raise InputError(
            "a frontier is made by one process",
            given="torchrun",
            remedy="run it without torchrun; teacher and targets that torchrun made in the same --out are reused",
        )


def _config_of(config: Config, student: str, hours: float | None, *, is_first: bool) -> Config:
    settings, run = config.student, config.run
    if not is_first:
        root = root_of(config) / FRONTIER / "".join(letter if letter.isalnum() else "-" for letter in student)
        settings, run = settings.of(student), run.model_copy(update={"out": root, "controls": False})
    changes: dict[str, Any] = {"student": settings.model_copy(update={"hours": hours}), "run": run}
    if not kind_of(student).is_trained:  # else its own second model
        changes["cascade"] = config.cascade.model_copy(update={"second": "off"})
    return config.model_copy(update=changes)


def _forget_other_teachers(first: Path, root: Path) -> None:
    """The first point may have redone a shared stage: results may differ."""
    names = [stage.name for stage in STAGES]
    for name in _SHARED:
        old, new = read_record(root / name), read_record(first / name)
        same_settings = old is not None and new is not None and old.fingerprint == new.fingerprint
        if same_settings and (root / name / RECORD).read_bytes() != (first / name / RECORD).read_bytes():
            for later in names[names.index(name) :]:
                forget(root, later)
            return


def _make(
    student: str, config: Config, siblings: tuple[Path, ...], reporter: Reporter, start_from: str | None
) -> _Made:
    root = root_of(config)
    result = compress(config, reporter=reporter, start_from=start_from, siblings=siblings)
    assert result.artifact is not None
    assert result.result is not None
    return _Made(student, open_run(root, config, reporter), result.artifact, result.result.sha256)


def _facts(root: Path, made: list[_Made], left: list[Left], reporter: Reporter) -> FrontierFacts:
    first, settings = made[0].run, made[0].run.config.evaluate
    device = judged_device(first.device)
    where = {"cpu": machine.cpu().model, "threads": machine.cores().usable, "device": device}
    before = read_facts(root)
    if before is not None and before.is_of([point.sha256 for point in made], left, where):
        return before
    reporter.started(FRONTIER, f"{len(made)} artifacts are measured side by side")
    answers = {point.student: point.answers() for point in made}
    one = answers[made[0].student]
    with ExitStack() as stack:
        engines = {
            point.student: stack.enter_context(Engine.load(point.artifact, device=device, verify=False))
            for point in made
        }
        timings = time_in_turns(
            {student: engine.predict for student, engine in engines.items()},
            in_pieces(one.texts, settings.latency_rows, 1),
            in_pieces(one.texts, settings.throughput_rows, BATCH),
            percentiles=(50, 95),
            rounds=_ROUNDS,
            warm_up_calls=5,
        )
        points = [
            _point(point, answers[name], engines[name], timings[name], root=root, points=len(made))
            for name, point in zip(answers, made, strict=True)
        ]
    task = first.data().task
    metric = task.metrics[0]
    scores = {
        name: metrics.compute(logits, one.labels, task.kind, (metric,))[metric]
        for name, logits in {**one.students, "teacher": one.teacher}.items()
    }
    facts = FrontierFacts(
        task=task.name,
        metric=metric,
        labels=load_manifest(made[0].artifact).lineage.labels,
        rows=len(one.labels),
        groups=len(np.unique(one.groups)),
        teacher=scores["teacher"],
        floors={name: scores[name] for name in ("probe", "tfidf", "majority") if name in scores},
        points=tuple(points),
        left=tuple(left),
        **where,
    )
    write_frontier(root, facts)
    reporter.finished(FRONTIER, 0.0, f"{len(points)} points")
    return facts


def _point(
    made: _Made, answers: EvaluationAnswers, engine: Engine, timing: Floats, *, root: Path, points: int
) -> Point:
    """Counts as a look at the evaluation rows: people choose by it."""
    task, result = made.run.data().task, made.run.result(StudentResult)
    metric, confidence = task.metrics[0], 1 - (1 - _CONFIDENCE) / (2 * points)
    logits = answers.student(str(engine.variant), on_gpu=engine.provider != CPU_PROVIDER)
    look_of(made.run.data(), root, task.traits.predictions(logits))
    labels, groups = answers.labels, answers.groups
    gap = difference(logits, answers.teacher, labels, task.kind, metric, groups=groups, confidence=confidence)
    score, teacher = (
        metrics.compute(answered, labels, task.kind, (metric,))[metric] for answered in (logits, answers.teacher)
    )
    p50, p95, _, rows_per_second = np.median(timing, axis=0).tolist()
    assert engine.manifest is not None
    return Point(
        student=made.student,
        artifact=str(made.artifact.relative_to(root)),
        sha256=made.sha256,
        variant=str(engine.variant),
        score=score,
        interval=score_interval(logits, labels, task.kind, metric, groups=groups, confidence=confidence),
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
