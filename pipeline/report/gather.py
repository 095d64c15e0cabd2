"""Gathers a finished run's facts from its folders. Runs no model."""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
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
from kdc.pipeline.config.metrics import Floats, Groups, Labels, Outputs
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.student_kinds import UNCUT_NAME
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import FEWER
from kdc.pipeline.evaluation.evidence import read_logits
from kdc.pipeline.evaluation.second_model import scaled, second_model
from kdc.pipeline.evaluation.variants import CASCADE
from kdc.pipeline.quality.calibration import reliability
from kdc.pipeline.quality.cascading import curve
from kdc.pipeline.quality.decision_rates import having, sweep
from kdc.pipeline.quality.feasibility import as_stored, fitting_students
from kdc.pipeline.quality.intervals import difference, score_interval, widest
from kdc.pipeline.quality.shares import prefixes
from kdc.pipeline.report import facts
from kdc.pipeline.report.disagreements import disagreements
from kdc.pipeline.report.facts import SCHEMA, Facts, ModelFacts
from kdc.pipeline.results.artifact import CascadeResult, EvaluateResult, PackageResult
from kdc.pipeline.results.base import Table
from kdc.pipeline.results.data import DataResult, VocabularyResult
from kdc.pipeline.results.training import (
    CandidatesResult,
    ControlsResult,
    SearchResult,
    StudentResult,
    TeacherResult,
    TrainingSummary,
)
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.directory import read_commands
from kdc.pipeline.rundir.files import MADE_FROM, SETTINGS
from kdc.pipeline.rundir.record import RECORD, read_record
from kdc.serving.engine.deciding import sureness
from kdc.serving.engine.engine import activate

_THRESHOLDS = 101  # of a curve
_NAMED_CLASSES = 3
_MOST_CLASSES = 40


@dataclass(frozen=True)
class _Evaluation:
    task: Task
    manifest: Manifest
    labels: Labels
    groups: Groups
    logits: Mapping[str, NDArray[np.float32]]  # (rows, outputs) by model

    @property
    def served(self) -> str:
        return str(self.manifest.providers[CPU_PROVIDER])

    def probabilities(self, model: str, *, calibrated: bool) -> Outputs:
        return activate(self.logits[model], self.task.kind, self.manifest.temperature if calibrated else 1.0)


def gather(root: Path, *, examples: int) -> Facts:
    """Gather the facts, with at most `examples` rows.

    Raises:
        InputError: this is not the directory of a finished run.
        KdcError: the run's artifact is damaged.
    """
    run = _open(root)
    manifest = load_manifest(root / run.result(PackageResult).artifact)
    data = run.data()
    task, split = data.task, data.eval_splits[0]
    rows, kept = data.rows(split), read_logits(run.folder("evaluate"), split)
    logits = {name: kept[name] for name in in_order(kept)}
    evaluation = _Evaluation(task, manifest, np.asarray(rows["label"][:]), data.groups(split), logits)
    teacher, student = logits["teacher"], logits[evaluation.served]
    controls = run.result(ControlsResult) if run.config.run.controls else None
    models = {"teacher": run.result(TeacherResult), "student": run.result(StudentResult)} | dict(controls or ())
    trainings = {name: model.training for name, model in models.items() if getattr(model, "training", None) is not None}
    tokens, role = run.result(DataResult), run.student_role
    train = (run.result(VocabularyResult).tokens if role == FEWER else tokens.tokens[role])["train"]
    gathered = Facts(
        schema=SCHEMA,
        task=facts.TaskFacts(
            name=task.name,
            kind=task.kind,
            labels=task.labels,
            metric=task.metrics[0],
            columns=(task.text, task.text_pair) if task.text_pair else (task.text,),
        ),
        served=evaluation.served,
        models=_models(run.result(EvaluateResult).table, trainings, evaluation),
        training={
            name: facts.TrainingFacts(**dict(training.history), best_step=training.best_step, steps=training.steps)
            for name, training in trainings.items()
        },
        confusion=_confusion(evaluation),
        calibration=_calibration(evaluation),
        decisions=_decisions(evaluation),
        abstention=_abstention(evaluation),
        sets=manifest.task.sets,
        slices=manifest.slices,
        cascade=_cascade(run.result_or_none(CascadeResult), second_model(run).entry, evaluation),
        lengths=facts.LengthFacts(**dict(train.lengths), cut=manifest.tokenizer.longest, truncated=train.truncated),
        disagreements=disagreements(
            rows, teacher, student, evaluation.labels, task, temperature=manifest.temperature, most=examples
        ),
        contract=manifest.contract,
        candidates=_candidates(
            run.result(CandidatesResult) if run.config.measures_first else None,
            run.result(SearchResult) if run.config.searches else None,
            run.config.contract.terms,
        ),
        where=_origin(root, manifest, tokens),
        replaced=tokens.report.replaced,
        notes=run.result(PackageResult).notes,
    )
    words = verdict(gathered) + wide(student, teacher, evaluation.labels, task, evaluation.groups)
    return gathered.model_copy(update={"verdict": words})


def _open(root: Path) -> Run:
    if not (root / "package" / MADE_FROM).exists():
        raise InputError("no finished run there", given=root, remedy="name the directory of a finished `kdc compress`")
    # A later, unfinished start would mix old answers and new rows.
    made_from = json.loads((root / "package" / MADE_FROM).read_text(encoding="utf-8"))
    for stage, fingerprint in made_from.items():
        if stage in ("labelled", "answered"):  # parts of `data`, without a folder
            continue
        record = read_record(root / stage)
        if record is None or record.fingerprint != fingerprint:
            raise InputError(
                "a later start has changed the run since its artifact was made",
                given=root / stage,
                remedy="finish `kdc compress`; the previous report is still in the directory",
            )
    settings = Config.model_validate_json((root / "package" / SETTINGS).read_text(encoding="utf-8"))
    return Run(root=root, config=settings, fingerprints=made_from)


def wide(logits: Outputs, others: Outputs, labels: Labels, task: Task, groups: Groups) -> str:
    if task.metrics[0] != "macro_f1" or len(task.labels) <= _NAMED_CLASSES:
        return ""
    columns = widest(logits, others, labels, task.kind, groups=groups)[:_NAMED_CLASSES]
    named = [f"{task.labels[column]} ({having(labels, column).sum()} rows)" for column in columns]
    return f" More rows of these labels would narrow the interval most: {', '.join(named)}." if named else ""


def _calibration(evaluation: _Evaluation) -> facts.CalibrationFacts | None:
    labels, kind, manifest = evaluation.labels, evaluation.task.kind, evaluation.manifest
    if not evaluation.task.traits.has_labels:
        return None
    uncalibrated = activate(evaluation.logits[evaluation.served], kind, 1 / (manifest.folded_temperature or 1.0))
    return facts.CalibrationFacts(
        temperature=manifest.fitted_temperature,
        before=reliability(uncalibrated, labels, kind),
        after=reliability(evaluation.probabilities(evaluation.served, calibrated=True), labels, kind),
    )


def _decisions(evaluation: _Evaluation) -> tuple[facts.DecisionFacts, ...]:
    task, thresholds, decisions = evaluation.manifest.task, np.linspace(0, 1, _THRESHOLDS), []
    for point in task.points:
        column = task.labels.index(point.label)
        probabilities = evaluation.probabilities(evaluation.served, calibrated=True)[:, column]
        curves = sweep(probabilities, having(evaluation.labels, column), thresholds)
        precision, recall, given = (_rounded(curve) for curve in curves)
        at = tuple(thresholds.tolist())
        decision = facts.DecisionFacts(point=point, thresholds=at, precision=precision, recall=recall, given=given)
        decisions.append(decision)
    return tuple(decisions)


def _rounded(curve: Floats) -> Any:
    return tuple(None if np.isnan(value) else round(float(value), 4) for value in curve)


def _abstention(evaluation: _Evaluation) -> facts.AbstentionFacts | None:
    abstain, labels = evaluation.manifest.task.abstain, evaluation.labels
    if abstain is None:
        return None
    counts = np.unique(np.ceil(np.linspace(0.05, 1, _THRESHOLDS) * len(labels)).astype(np.int64))
    curves = []
    for model, calibrated in (("teacher", False), (evaluation.served, True)):
        probabilities = evaluation.probabilities(model, calibrated=calibrated)
        rows, _, right = prefixes(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, counts)
        points = np.stack([rows / len(labels), right / rows], axis=1).round(4)
        curves.append(tuple((share, accuracy) for share, accuracy in points.tolist()))
    return facts.AbstentionFacts(abstain=abstain, teacher=curves[0], student=curves[1])


def _cascade(cascade: CascadeResult | None, entry: str, evaluation: _Evaluation) -> facts.CascadeFacts | None:
    pair, manifest = None if cascade is None else cascade.best, evaluation.manifest
    if cascade is None or pair is None or f"{entry}_{pair.second}" not in evaluation.logits:
        return None
    first, second = evaluation.logits[pair.first], evaluation.logits[f"{entry}_{pair.second}"]
    sure = sureness(evaluation.probabilities(pair.first, calibrated=True), manifest.task)
    rows = first, scaled(second, pair.temperature, manifest.temperature), sure, evaluation.labels, evaluation.task
    (chosen,) = curve(*rows, thresholds=[pair.answered_from])
    return facts.CascadeFacts(
        second=cascade.second,
        taken=CASCADE in manifest.variants,
        pair=pair,
        share=chosen.share,
        score=chosen.score,
        curve=tuple((point.share, point.score) for point in curve(*rows)),
    )


def verdict(report: Facts) -> str:
    """Compares the student with its teacher, in torch and ONNX."""
    served, teacher, metric = report.models[report.served], report.models["teacher"], report.task.metric
    low, high = served.difference_interval
    sentence = (
        f"On {report.task.name}, the student ({report.where.student}, {report.served}) keeps "
        f"{served.kept_percent:.1f} % of its teacher's {metric.replace('_', ' ')} ({served.metrics[metric]:.1f} of "
        f"{teacher.metrics[metric]:.1f} points; the difference is {served.difference:+.1f}, 95 % interval {low:+.1f} "
        f"to {high:+.1f})"
    )
    if teacher.size_bytes and served.size_bytes:  # the size of a black box is not known
        ratio = teacher.size_bytes / served.size_bytes
        sentence += f", is {ratio:.1f} times smaller" if ratio >= 1 else f", is {1 / ratio:.1f} times larger"
    is_uncut = report.where.student == UNCUT_NAME
    fp32, int8 = report.models.get("fp32" if is_uncut else "teacher_fp32"), report.models.get("teacher_int8")
    # A cascade's median row may use one model only: the mean tells more.
    is_cascade = report.cascade is not None and report.cascade.taken
    latency = operator.attrgetter("latency_mean_ms" if is_cascade else "latency_p50_ms")
    own, on_average = latency(served), ", on average," if is_cascade else ""
    against = [model for model in (fp32, teacher) if model is not None and latency(model)]
    if own and against:
        first, *others = [
            f"{latency(model) / own:.1f} times faster than the teacher in {model.runtime}" for model in against
        ]
        sentence += f" and answers one row{on_average} {first}" + "".join(f" ({other})" for other in others)
    sentence += "."
    if int8 is not None and latency(int8) and own:
        sentence += (
            f" The teacher itself, uncut, in int8 has {int8.metrics[metric]:.1f} points and takes "
            f"{latency(int8) / own:.1f} times as long."
        )
    return sentence


def _models(table: Table, trainings: Mapping[str, TrainingSummary], evaluation: _Evaluation) -> dict[str, ModelFacts]:
    labels, kind, groups = evaluation.labels, evaluation.task.kind, evaluation.groups
    metric = evaluation.task.metrics[0]
    floor = metrics.majority(labels, kind, (metric,))[metric]
    teacher_score: Any = table["teacher"][metric]
    models = {}
    for name, logits in evaluation.logits.items():
        row: dict[str, Any] = table[name]
        costs = {key: value for key, value in row.items() if key in ModelFacts.model_fields}
        training = trainings.get(name)
        beside = difference(logits, evaluation.logits["teacher"], labels, kind, metric, groups=groups)
        models[name] = ModelFacts(
            metrics={key: value for key, value in row.items() if key not in costs},
            collapsed=metrics.is_constant(logits, kind),
            interval=score_interval(logits, labels, kind, metric, groups=groups),
            kept_percent=share(row[metric], teacher_score),
            kept_above_chance_percent=share(row[metric], teacher_score, floor),
            difference=row[metric] - teacher_score,
            difference_interval=beside.interval,
            trainable_parameters=None if training is None else training.trainable_parameters,
            training_seconds=None if training is None else training.seconds,
            **costs,
        )
    return models


def _confusion(evaluation: _Evaluation) -> dict[str, Any] | None:
    from sklearn.metrics import confusion_matrix

    task, classes = evaluation.task, np.arange(len(evaluation.task.labels))
    if not task.traits.is_exclusive or len(classes) > _MOST_CLASSES:
        return None
    answers = {
        name: task.traits.predictions(evaluation.logits[model])
        for name, model in (("teacher", "teacher"), ("student", evaluation.served))
    }
    return {name: confusion_matrix(evaluation.labels, each, labels=classes).tolist() for name, each in answers.items()}


def _candidates(
    candidates: CandidatesResult | None, search: SearchResult | None, terms: Contract | None
) -> facts.CandidateFacts | None:
    if candidates is None:
        return None
    assert terms is not None
    measured = candidates.candidates
    return facts.CandidateFacts(
        measured={name: as_stored(costs, terms).costs for name, costs in measured.items()},
        kept=tuple(fitting_students(measured, terms)),
        trials=() if search is None else search.trials,
        chosen=next(iter(measured)) if search is None else search.student,
    )


def _origin(root: Path, manifest: Manifest, rows: DataResult) -> facts.Origin:
    files = sorted(root.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    records = {file.parent.name: read_record(file.parent) for file in files}
    return facts.Origin(
        **manifest.lineage.model_dump(exclude={"packages", "label_share"}),
        commands=tuple(read_commands(root)),
        rows={name: split.rows for name, split in rows.tokens["student"].items()},
        packages={"kdc": manifest.kdc_version, **manifest.lineage.packages},
        created=manifest.created,
        artifact_sha256=manifest.sha256,
        stage_seconds={name: record.seconds for name, record in records.items() if record is not None},
    )
