"""Gathers the facts of a finished run from the folders of its stages; runs no model.

Every figure is a stage's own, or is computed here from the logits that stage `evaluate` kept.
"""

import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.terms import Contract
from kdc.artifact.folder import load_manifest
from kdc.artifact.inspection import in_order, share
from kdc.artifact.manifest import CPU_PROVIDER, Manifest
from kdc.common.errors import InputError
from kdc.pipeline.config import metrics
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.student_kinds import UNCUT_NAME
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import FEWER
from kdc.pipeline.evaluation.answers import read_logits
from kdc.pipeline.evaluation.second_model import scaled, second_model
from kdc.pipeline.evaluation.variants import CASCADE
from kdc.pipeline.quality.calibration import reliability
from kdc.pipeline.quality.cascading import curve
from kdc.pipeline.quality.feasibility import as_stored, fitting_students
from kdc.pipeline.quality.intervals import difference, score_interval, widest
from kdc.pipeline.quality.operating import having, sweep
from kdc.pipeline.quality.shown import prefixes
from kdc.pipeline.report.disagreements import disagreements
from kdc.pipeline.report.facts import (
    SCHEMA,
    AbstentionFacts,
    CalibrationFacts,
    CandidateFacts,
    CascadeFacts,
    DecisionFacts,
    Facts,
    LengthFacts,
    ModelFacts,
    Origin,
    TaskFacts,
    TrainingFacts,
)
from kdc.pipeline.results.artifact import CascadeResult, EvaluateResult, PackageResult
from kdc.pipeline.results.base import Table
from kdc.pipeline.results.data import DataResult, VocabularyResult
from kdc.pipeline.results.training import (
    CandidatesResult,
    ControlsResult,
    ModelResult,
    SearchResult,
    StudentResult,
    TeacherResult,
    TrainingSummary,
    Trial,
)
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.directory import read_commands
from kdc.pipeline.rundir.files import CONTROLS, MADE_FROM, SETTINGS
from kdc.pipeline.rundir.record import RECORD, read_record
from kdc.serving.engine.deciding import sureness
from kdc.serving.engine.engine import activate

_THRESHOLDS = 101  # of a curve
_NAMED_CLASSES = 3  # of those that make an interval wide
_MOST_CLASSES = 40  # of a confusion matrix that can still be looked at

Logits = Mapping[str, NDArray[np.float32]]  # (rows, outputs) by model


def gather(root: Path, *, examples: int) -> Facts:
    """Gather all facts of a run.

    Args:
        root: the run directory.
        examples: most rows that are quoted; 0 quotes none.

    Raises:
        InputError: this is not the directory of a finished run.
        KdcError: the run's artifact is damaged.
    """
    run = _open(root)
    manifest = load_manifest(root / run.result(PackageResult).artifact)
    data = run.data()
    task, split = data.task, data.eval_splits[0]
    kept = read_logits(run.folder("evaluate"), split)
    logits = {name: kept[name] for name in in_order(kept)}
    labels = np.asarray(data.rows(split)["label"][:])
    served = str(manifest.providers[CPU_PROVIDER])
    controls = run.result(ControlsResult) if run.config.run.controls else None
    trainings = _trainings(run.result(TeacherResult), run.result(StudentResult), controls)
    table = run.result(EvaluateResult).table
    tokens, role = run.result(DataResult), run.student_role
    train = (run.result(VocabularyResult).tokens if role == FEWER else tokens.tokens[role])["train"]
    calibration = None
    if task.kind != "regression":
        calibration = CalibrationFacts(
            temperature=manifest.temperature,
            before=reliability(activate(logits[served], task.kind), labels, task.kind),
            after=reliability(activate(logits[served], task.kind, manifest.temperature), labels, task.kind),
        )
    facts = Facts(
        schema=SCHEMA,
        task=TaskFacts(
            name=task.name,
            kind=task.kind,
            labels=task.labels,
            metric=task.metrics[0],
            columns=(task.text, task.text_pair) if task.text_pair else (task.text,),
        ),
        served=served,
        models=_models(table, trainings, task, logits, labels, data.groups(split)),
        training={
            name: TrainingFacts(**dict(training.history), best_step=training.best_step, steps=training.steps)
            for name, training in trainings.items()
        },
        confusion=_confusion(task, logits["teacher"], logits[served], labels),
        calibration=calibration,
        decisions=_decisions(manifest, logits[served], labels),
        abstention=_abstention(manifest, logits["teacher"], logits[served], labels),
        sets=manifest.task.sets,
        cascade=_cascade(run.result_or_none(CascadeResult), second_model(run).entry, manifest, logits, labels, task),
        lengths=LengthFacts(**dict(train.lengths), cut=manifest.tokenizer.longest, truncated=train.truncated),
        disagreements=disagreements(
            data.rows(split),
            logits["teacher"],
            logits[served],
            labels,
            task,
            temperature=manifest.temperature,
            most=examples,
        ),
        contract=manifest.contract,
        candidates=_candidates(
            run.result(CandidatesResult) if run.config.measures_first else None,
            run.result(SearchResult) if run.config.searches else None,
            run.config.contract.terms,
        ),
        where=_origin(root, manifest, tokens),
        notes=run.result(PackageResult).notes,
    )
    words = verdict(facts) + wide(logits[served], logits["teacher"], labels, task, data.groups(split))
    return facts.model_copy(update={"verdict": words})


def wide(
    logits: NDArray[np.floating],
    others: NDArray[np.floating],
    labels: NDArray[np.generic],
    task: Task,
    groups: NDArray[np.integer],
) -> str:
    """A sentence on the classes that make the interval of a macro F1 wide; "" if there are too few to tell apart."""
    if task.metrics[0] != "macro_f1" or len(task.labels) <= _NAMED_CLASSES:
        return ""
    places = widest(logits, others, labels, task.kind, groups=groups)[:_NAMED_CLASSES]
    named = [f"{task.labels[place]} ({having(labels, place).sum()} rows)" for place in places]
    return f" More rows of these labels would narrow the interval most: {', '.join(named)}." if named else ""


def _decisions(
    manifest: Manifest, logits: NDArray[np.floating], labels: NDArray[np.generic]
) -> tuple[DecisionFacts, ...]:
    """The operating points, and what thresholds beside them do; logits and labels are of the evaluation rows."""
    task, thresholds = manifest.task, np.linspace(0, 1, _THRESHOLDS)
    facts = []
    for point in task.points:
        place = task.labels.index(point.label)
        found = sweep(activate(logits, task.kind, manifest.temperature)[:, place], having(labels, place), thresholds)
        curves = (tuple(None if np.isnan(each) else round(float(each), 4) for each in curve) for curve in found)
        precision, recall, given = curves
        facts.append(
            DecisionFacts(
                point=point, thresholds=tuple(thresholds.tolist()), precision=precision, recall=recall, given=given
            )
        )
    return tuple(facts)


def _abstention(
    manifest: Manifest,
    teacher: NDArray[np.floating],
    student: NDArray[np.floating],
    labels: NDArray[np.generic],
) -> AbstentionFacts | None:
    """What answering fewer rows does for teacher and student; logits and labels are of the evaluation rows."""
    task, counts = manifest.task, np.unique(np.ceil(np.linspace(0.05, 1, _THRESHOLDS) * len(labels)).astype(np.int64))
    if task.abstain is None:
        return None
    curves = []
    for logits, temperature in ((teacher, 1.0), (student, manifest.temperature)):
        probabilities = activate(logits, task.kind, temperature)
        surest = prefixes(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, counts)
        points = np.stack([surest.rows / len(labels), surest.right / surest.rows], axis=1).round(4)
        curves.append(tuple((share, right) for share, right in points.tolist()))
    return AbstentionFacts(abstain=task.abstain, teacher=curves[0], student=curves[1])


def _cascade(
    found: CascadeResult | None,
    entry: str,
    manifest: Manifest,
    logits: Logits,
    labels: NDArray[np.generic],
    task: Task,
) -> CascadeFacts | None:
    """What a second model, whose rows of the table begin with `entry`, does with more rows or fewer; logits and labels
    are of the evaluation rows."""
    pair = None if found is None else found.best
    if found is None or pair is None:
        return None
    second = f"{entry}_{pair.second}"
    if second not in logits:
        return None
    first = logits[pair.first]
    sure = sureness(activate(first, task.kind, manifest.temperature), manifest.task)
    rows = first, scaled(logits[second], pair.temperature, manifest.temperature), sure, labels, task
    (chosen,) = curve(*rows, thresholds=[pair.answered_from])
    return CascadeFacts(
        second=found.second,
        taken=CASCADE in manifest.variants,
        pair=pair,
        share=chosen.share,
        score=chosen.score,
        curve=tuple((point.share, point.score) for point in curve(*rows)),
    )


def verdict(facts: Facts) -> str:
    """What was compressed, what was kept, how much smaller and faster it is, and what the uncut teacher does."""
    served, teacher = facts.models[facts.served], facts.models["teacher"]
    metric = facts.task.metric
    low, high = served.difference_interval
    scores = f"{served.metrics[metric]:.1f} of {teacher.metrics[metric]:.1f} points"
    sentence = (
        f"On {facts.task.name}, the student ({facts.where.student}, {facts.served}) keeps "
        f"{served.kept_percent:.1f} % of its teacher's {metric.replace('_', ' ')} ({scores}; the difference is "
        f"{served.difference:+.1f}, 95 % interval {low:+.1f} to {high:+.1f})"
    )
    if teacher.size_bytes and served.size_bytes:  # the size of a black box is not known
        ratio = teacher.size_bytes / served.size_bytes
        sentence += f", is {ratio:.1f} times smaller" if ratio >= 1 else f", is {1 / ratio:.1f} times larger"
    is_uncut = facts.where.student == UNCUT_NAME
    fp32, int8 = facts.models.get("fp32" if is_uncut else "teacher_fp32"), facts.models.get("teacher_int8")
    # Of a cascade the median row may be one that the first model answers: there the mean tells more.
    is_cascade = facts.cascade is not None and facts.cascade.taken
    latency = operator.attrgetter("latency_mean_ms" if is_cascade else "latency_p50_ms")
    own, on_average = latency(served), ", on average," if is_cascade else ""
    against = [(model, latency(model)) for model in (fp32, teacher) if model is not None and latency(model)]
    if own and against:
        told = [f"{other / own:.1f} times faster than the teacher in {model.runtime}" for model, other in against]
        sentence += f" and answers one row{on_average} {told[0]}" + "".join(f" ({more})" for more in told[1:])
    sentence += "."
    if int8 is not None and latency(int8) and own:
        sentence += (
            f" The teacher itself, uncut, in int8 has {int8.metrics[metric]:.1f} points and takes "
            f"{latency(int8) / own:.1f} times as long."
        )
    return sentence


def _open(root: Path) -> Run:
    """The run as it was when its artifact was made.

    Raises:
        InputError: the run is not finished, or was changed since.
    """
    if not (root / "package" / MADE_FROM).exists():
        raise InputError("no finished run there", given=root, remedy="name the directory of a finished `kdc compress`")
    # Where a later, unfinished start has redone stages, old answers would stand beside new rows.
    made_from = json.loads((root / "package" / MADE_FROM).read_text(encoding="utf-8"))
    for stage, fingerprint in made_from.items():
        if stage in ("labelled", "answered"):  # parts of `data`, without a folder
            continue
        record = read_record(root / stage)
        if record is None or record.fingerprint != fingerprint:
            raise InputError(
                "a later start has changed the run since its artifact was made",
                given=root / stage,
                remedy="run `kdc compress` to its end; the report of before is still in the directory",
            )
    config = root / "package" / SETTINGS
    settings = Config.model_validate_json(config.read_text(encoding="utf-8"))
    return Run(root=root, config=settings, fingerprints=made_from)


def _trainings(
    teacher: TeacherResult, student: StudentResult, controls: ControlsResult | None
) -> dict[str, TrainingSummary]:
    """What was trained, by model; nothing of a teacher that was brought along fine-tuned, or is a black box."""
    models: dict[str, ModelResult | None] = {"teacher": teacher, "student": student}
    if controls is not None:
        models |= {name: getattr(controls, name) for name in CONTROLS}
    return {name: model.training for name, model in models.items() if model is not None and model.training is not None}


def _models(
    table: Table,
    trainings: Mapping[str, TrainingSummary],
    task: Task,
    logits: Logits,
    labels: NDArray[np.generic],
    groups: NDArray[np.integer],
) -> dict[str, ModelFacts]:
    metric = task.metrics[0]
    floor = metrics.majority(labels, task.kind, (metric,))[metric]
    models = {}
    for name, answers in logits.items():
        row: dict[str, Any] = table[name]
        teacher_score: Any = table["teacher"][metric]
        costs = [key for key in row if key in ModelFacts.model_fields]
        training = trainings.get(name)
        beside = difference(answers, logits["teacher"], labels, task.kind, metric, groups=groups)
        models[name] = ModelFacts(
            metrics={key: value for key, value in row.items() if key not in costs},
            collapsed=metrics.is_constant(answers, task.kind),
            interval=score_interval(answers, labels, task.kind, metric, groups=groups),
            kept_percent=share(row[metric], teacher_score),
            kept_above_chance_percent=share(row[metric], teacher_score, floor),
            difference=row[metric] - teacher_score,
            difference_interval=beside.interval,
            trainable_parameters=None if training is None else training.trainable_parameters,
            training_seconds=None if training is None else training.seconds,
            **{key: row[key] for key in costs},
        )
    return models


def _confusion(
    task: Task, teacher: NDArray[np.float32], student: NDArray[np.float32], labels: NDArray[np.generic]
) -> dict[str, Any] | None:
    if task.kind != "classification" or len(task.labels) > _MOST_CLASSES:
        return None
    classes = len(task.labels)
    counts = {}
    for name, logits in (("teacher", teacher), ("student", student)):
        pairs = labels.astype(np.int64) * classes + metrics.predictions(logits, task.kind).astype(np.int64)
        counts[name] = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).tolist()
    return counts


def _candidates(
    found: CandidatesResult | None, search: SearchResult | None, terms: Contract | None
) -> CandidateFacts | None:
    if found is None:
        return None
    measured = found.candidates
    assert terms is not None  # otherwise nothing is measured
    trials: tuple[Trial, ...] = ()
    chosen = next(iter(measured))  # without a search only one student is measured
    if search is not None:
        trials, chosen = search.trials, search.student
    kept = tuple(fitting_students(measured, terms))
    stored = {name: as_stored(costs, terms).costs for name, costs in measured.items()}
    return CandidateFacts(measured=stored, kept=kept, trials=trials, chosen=chosen)


def _origin(root: Path, manifest: Manifest, rows: DataResult) -> Origin:
    files = sorted(root.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    records = {file.parent.name: read_record(file.parent) for file in files}
    return Origin(
        **manifest.lineage.model_dump(exclude={"packages", "label_share"}),
        commands=tuple(read_commands(root)),
        rows={name: split.rows for name, split in rows.tokens["student"].items()},
        packages={"kdc": manifest.kdc_version, **manifest.lineage.packages},
        created=manifest.created,
        artifact_sha256=manifest.sha256,
        stage_seconds={name: record.seconds for name, record in records.items() if record is not None},
    )
