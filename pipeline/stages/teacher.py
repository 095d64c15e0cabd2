"""Stage `teacher`: fine-tune the teacher, or check a fine-tuned one.

Reads `data/`. Writes `model/` (save_pretrained, outputs in label order, with tokenizer), and `model-2/`, ... for
further teachers; for a black box only `scores.npy`, (rows, outputs) by row id.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import Join
from kdc.common.errors import InputError
from kdc.common.files import write_whole
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import TeacherSettings
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.data.scores import scores_of_rows
from kdc.pipeline.data.sources import input_fingerprint
from kdc.pipeline.evaluation.evidence import compared_with_baselines, worded
from kdc.pipeline.models import loading
from kdc.pipeline.results.training import Attempt, ModelResult, TeacherResult, TrainingSummary
from kdc.pipeline.rundir import fingerprints
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import PROBE, SCORES
from kdc.pipeline.training import ensemble, ranks
from kdc.pipeline.training.baselines import Linear, with_head
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.callbacks import Diverged
from kdc.pipeline.training.finetuning import check_learned, plan_for, score_logits
from kdc.pipeline.training.joining import join_of, set_join
from kdc.pipeline.training.predict import predict
from kdc.pipeline.training.rates import MOST_TRIALS, SHARE, Rates, search_rates
from kdc.pipeline.training.teachers import choose_join, load_finetuned, train_teacher

_PROBE_CHECKPOINTS = "checkpoints-probe"
_RATES_CHECKPOINTS = "checkpoints-rates"  # rate search
Train = Callable[..., tuple[Any, TrainingSummary]]  # partial `train_teacher`
Score = Callable[..., tuple[TeacherResult, NDArray[np.float32]]]  # `_scored`

_REMEDY = (
    "try --set teacher.learning_rate=2e-5, more --epochs, or look at the labels; "
    "--set student.allow_majority=true continues anyway"
)


def depends_on(run: Run) -> dict[str, Any]:
    settings, file = run.config.teacher, run.config.teacher.scores
    scores = None
    if file is not None and file.is_file():  # they include unlabelled rows
        data = run.config.data
        scores = [hashlib.sha256(file.read_bytes()).hexdigest(), input_fingerprint(data), data.max_unlabeled_rows]
    more = [loading.fingerprint(source) for source in settings.sources[1:]]
    return fingerprints.training(run.config, settings) | {"more": more, "scores": scores}


def run(run: Run, out: Path) -> TeacherResult:
    """Make the teachers."""
    if run.config.teacher.scores is not None:
        result = _keep_scores(run.config.teacher.scores, run.data(), out)
        _check(run, result)
        return TeacherResult(**result.to_json())
    results: list[TeacherResult] = []
    for number in range(len(run.config.teacher.sources)):
        name = ensemble.folder(number)
        record, checkpoints = out / f"{name}.json", out / ("checkpoints" + name.removeprefix("model"))
        if not record.exists():  # else already finished
            result = _make_teacher(run, number, out / name, checkpoints)
            write_whole(record, result.model_dump_json(exclude_unset=True))
        for done in (checkpoints, out / _PROBE_CHECKPOINTS, out / _RATES_CHECKPOINTS):
            shutil.rmtree(done, ignore_errors=True)
        results.append(TeacherResult.model_validate_json(record.read_text(encoding="utf-8")))
    first, *others = results
    return first.model_copy(update={"others": tuple(others)}) if others else first


def _make_teacher(run: Run, number: int, target: Path, checkpoints: Path) -> TeacherResult:
    settings, data, role = run.config.teacher, run.data(), ensemble.role(number)
    source, join = settings.sources[number], run.config.long.trained_join(data.task.kind)
    tokenizer = loading.load_tokenizer(source)
    score = partial(
        _scored,
        data=data,
        role=role,
        pad_id=tokenizer.pad_token_id,
        device=run.device,
        chooses_join=join is not None and run.config.long.join == "auto",
    )
    if settings.finetuned:
        model: Any = load_finetuned(source, data.task, settings.labels)
        set_join(model, join)
        result, _ = score(model)
    else:
        train = partial(
            train_teacher, source, data=data, environment=run.environment, role=role, progress=run.progress, join=join
        )
        if settings.search == "quick":
            steps = plan_for(settings, len(data.tokens(role, "train")), run.environment).steps
            settings = _with_rates(settings, steps, train, target.with_name(f"rates-{role}.json"), run.say)
        model, training = train(settings, checkpoints=checkpoints)
        result, answers = score(model, training)
        probe = run.folder("baselines") / PROBE
        tries_probe = number == 0 and settings.from_probe == "auto" and probe.exists()
        comparison = compared_with_baselines(run, answers) if tries_probe else None
        if comparison is not None and not comparison.is_shown:
            run.say(f"teacher: {worded(comparison, data.task.metrics[0])}; fine-tunes it from the probe's head too")
            checkpoints, tries = checkpoints.with_name(_PROBE_CHECKPOINTS), {"fine-tuned": (model, result)}
            tries |= _from_probe(probe, settings, data.task, train, score, checkpoints, join)
            model, result = _best_of(tries, data.task.metrics[0], run.say)
    if join is not None:
        run.say(f"teacher: the answers of a row's windows are joined by {', '.join(join_of(model.config))}")
    _check(run, result)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return result.model_copy(update={"parameters": model.num_parameters()})


def _scored(
    model: Any,
    training: TrainingSummary | None = None,
    *,
    data: PreparedData,
    role: str,
    pad_id: int,
    device: str,
    chooses_join: bool,
) -> tuple[TeacherResult, NDArray[np.float32]]:
    """Result and logits (rows, outputs) on the tuning set, after choosing the windows' join if asked. The model starts
    and ends on the CPU."""
    tune = Rows([data.tokens(role, "tune")])
    model.to(device)
    if chooses_join:
        choose_join(model, tune, data.task, pad_id)
    answers = predict(model, tune, pad_id=pad_id)
    model.to("cpu")
    result = TeacherResult(**score_logits(answers, data).to_json())
    return result if training is None else result.model_copy(update={"training": training}), answers


def _with_rates(
    settings: TeacherSettings, steps: int, train: Train, record: Path, say: Callable[[str], None]
) -> TeacherSettings:
    """Search the learning rates. `steps`: of a full training; `record` keeps losses for resuming."""
    default = Rates(settings.learning_rate, settings.new_modules_rate)
    if ranks.size() > 1:  # a diverged trial would end the helpers
        raise InputError(
            "a search of rates does not run in several processes",
            given=f"teacher.search=quick, {ranks.size()} processes",
            remedy="search in one process, with --until teacher, and set the rates that it names",
        )
    hours = None if settings.hours is None else settings.hours / SHARE / MOST_TRIALS
    losses: dict[str, float] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}

    def trial(rates: Rates, steps: int) -> float:
        name = f"{rates.encoder:g}, {rates.head:g}, {steps} steps"
        if name not in losses:
            short = {"min_steps": steps, "epochs": 1e-3, "evaluations": 1, "patience": None, "hours": hours}
            tried = settings.model_copy(update=_rates_of(rates) | short)
            checkpoints = record.with_name(_RATES_CHECKPOINTS)
            shutil.rmtree(checkpoints, ignore_errors=True)
            try:
                _, training = train(tried, checkpoints=checkpoints)
                losses[name] = training.history.tune_loss[-1][1]
            except Diverged:
                losses[name] = math.inf
            write_whole(record, json.dumps(losses, indent=1))
        return losses[name]

    rates = search_rates(default, steps, trial)
    words = f"{rates.encoder:g} for the encoder and {rates.head:g} for its head, after {len(losses)} short trainings"
    say(f"teacher: learning rates {words if losses else 'as set, as the training is too short for a search'}")
    return settings.model_copy(update=_rates_of(rates))


def _rates_of(rates: Rates) -> dict[str, float]:
    return {"learning_rate": rates.encoder, "head_learning_rate": rates.head}


def _from_probe(
    probe: Path,
    settings: TeacherSettings,
    task: Task,
    train: Train,
    score: Score,
    checkpoints: Path,
    join: tuple[Join, ...] | None,
) -> dict[str, tuple[Any, TeacherResult]]:
    """A teacher fine-tuned from the probe's head (LP-FT, Kumar et al. 2022, arXiv 2202.10054), and the probe itself."""
    with np.load(probe) as kept:
        head = Linear(kept["weight"], kept["bias"])
    probing = with_head(loading.load_model(settings.model, task, pooling="mean").model, head)
    set_join(probing, join)
    second, training = train(settings, checkpoints=checkpoints, head=head)
    return {
        "fine-tuned from the probe's head": (second, score(second, training)[0]),
        "the probe": (probing, score(probing)[0]),
    }


def _best_of(
    tries: Mapping[str, tuple[Any, TeacherResult]], metric: str, say: Callable[[str], None]
) -> tuple[Any, TeacherResult]:
    attempts = tuple(Attempt(how=how, score=tried.tune[metric]) for how, (_, tried) in tries.items())
    best = max(attempts, key=lambda attempt: attempt.score).how
    listed = ", ".join(f"{attempt.how} {attempt.score:.1f}" for attempt in attempts)
    say(f"teacher: {listed} ({metric}, tuning set); the teacher is {best}")
    model, result = tries[best]
    return model, result.model_copy(update={"attempts": attempts})


def _keep_scores(file: Path, data: PreparedData, out: Path) -> ModelResult:
    scores = scores_of_rows(file, data)
    np.save(out / SCORES, scores)
    return score_logits(scores[np.asarray(data.rows("tune")["row"][:])], data)


def _check(run: Run, result: ModelResult) -> None:
    allow = run.config.student.allow_majority
    warning = check_learned(result, run.data().task, who="teacher", allow=allow, remedy=_REMEDY)
    if warning:
        run.say(f"warning: {warning}")
