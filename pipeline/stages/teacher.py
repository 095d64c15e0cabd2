"""Stage `teacher`: fine-tune the teacher, or check a fine-tuned one.

Reads `data/`. Writes `model/` (outputs in label order, with tokenizer), and `model-2/`, ... for further teachers. For
a black box it only writes `scores.npy`.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.common.errors import InputError
from kdc.common.files import write_whole
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import TeacherSettings
from kdc.pipeline.data.fingerprint import input_fingerprint
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.data.scores import scores_of_rows
from kdc.pipeline.data.sources import unsliced
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

_PROBE_CHECKPOINTS, _RATES_CHECKPOINTS = "checkpoints-probe", "checkpoints-rates"

_REMEDY = (
    "try --set teacher.learning_rate=2e-5, more --epochs, or look at the labels; "
    "--set student.allow_majority=true continues anyway"
)


def depends_on(run: Run) -> dict[str, Any]:
    settings, file = run.config.teacher, run.config.teacher.scores
    scores = None
    if file is not None and file.is_file():  # they include unlabelled rows
        data = unsliced(run.config.data)
        scores = [hashlib.sha256(file.read_bytes()).hexdigest(), input_fingerprint(data), data.max_unlabeled_rows]
    more = [loading.fingerprint(source) for source in settings.sources[1:]]
    return fingerprints.training(run.config, settings) | {"more": more, "scores": scores}


def run(run: Run, out: Path) -> TeacherResult:
    if run.config.teacher.scores is not None:
        result = _keep_scores(run.config.teacher.scores, run.config.data.train, run.data(), out, run.say)
        _check(run, result)
        return TeacherResult(**result.to_json())
    makers = [_Maker(run, number, out) for number in range(len(run.config.teacher.sources))]
    first, *others = [maker.made() for maker in makers]
    return first.model_copy(update={"others": tuple(others)}) if others else first


class _Maker:
    def __init__(self, run: Run, number: int, out: Path) -> None:
        self.run, self.out, self.data, self.is_first = run, out, run.data(), number == 0
        self.name, self.role = ensemble.folder(number), ensemble.role(number)
        self.checkpoints = "checkpoints" + self.name.removeprefix("model")
        self.source = run.config.teacher.sources[number]
        self.join = run.config.long.trained_join(self.data.task.kind)
        self.metric = self.data.task.metrics[0]

    def made(self) -> TeacherResult:
        """An interrupted run may have made it."""
        record = self.out / f"{self.name}.json"
        if not record.exists():
            write_whole(record, self.make().model_dump_json(exclude_unset=True))
        for done in (self.checkpoints, _PROBE_CHECKPOINTS, _RATES_CHECKPOINTS):
            shutil.rmtree(self.out / done, ignore_errors=True)
        return TeacherResult.model_validate_json(record.read_text(encoding="utf-8"))

    def make(self) -> TeacherResult:
        settings = self.run.config.teacher
        if settings.finetuned:
            model: Any = load_finetuned(self.source, self.data.task, settings.labels)
            set_join(model, self.join)
            result, _ = self.score(model)
        else:
            model, result = self.fine_tune(settings)
        if self.join is not None:
            ways = ", ".join(join_of(model.config))
            self.run.say(f"teacher: the answers of a row's windows are joined by {ways}")
        _check(self.run, result)
        model.save_pretrained(self.out / self.name)
        loading.load_tokenizer(self.source, self.run.config.data.prefix).save_pretrained(self.out / self.name)
        return result.model_copy(update={"parameters": model.num_parameters()})

    def fine_tune(self, settings: TeacherSettings) -> tuple[Any, TeacherResult]:
        if settings.search == "quick":
            settings = self.with_rates(settings)
        model, training = self.train(settings, self.checkpoints)
        result, answers = self.score(model, training)
        probe = self.run.folder("baselines") / PROBE
        tries_probe = self.is_first and settings.from_probe == "auto" and probe.exists()
        comparison = compared_with_baselines(self.run, answers) if tries_probe else None
        if comparison is None or comparison.is_shown:
            return model, result
        self.run.say(f"teacher: {worded(comparison, self.metric)}; fine-tunes it from the probe's head too")
        return self.best_of({"fine-tuned": (model, result)} | self.from_probe(probe, settings))

    def train(
        self, settings: TeacherSettings, checkpoints: str, head: Linear | None = None
    ) -> tuple[Any, TrainingSummary]:
        return train_teacher(
            self.source,
            settings,
            self.data,
            self.run.environment,
            role=self.role,
            checkpoints=self.out / checkpoints,
            progress=self.run.progress,
            head=head,
            join=self.join,
        )

    def score(self, model: Any, training: TrainingSummary | None = None) -> tuple[TeacherResult, NDArray[np.float32]]:
        """Result and logits (rows, outputs) on the tuning set; chooses the windows' join if asked."""
        tune, pad_id = Rows([self.data.tokens(self.role, "tune")]), loading.load_tokenizer(self.source).pad_token_id
        model.to(self.run.device)
        if self.join is not None and self.run.config.long.join == "auto":
            choose_join(model, tune, self.data.task, pad_id)
        answers = predict(model, tune, pad_id=pad_id)
        model.to("cpu")
        result = TeacherResult(**score_logits(answers, self.data).to_json())
        return result.model_copy(update={"training": training}), answers

    def with_rates(self, settings: TeacherSettings) -> TeacherSettings:
        """A file keeps losses for resuming."""
        if ranks.size() > 1:  # a diverged trial would end the helpers
            raise InputError(
                "a search of rates does not run in several processes",
                given=f"teacher.search=quick, {ranks.size()} processes",
                remedy="search in one process, with --until teacher, and set the rates that it names",
            )
        record = self.out / f"rates-{self.role}.json"
        hours = None if settings.hours is None else settings.hours / SHARE / MOST_TRIALS
        losses: dict[str, float] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}

        def trial(rates: Rates, steps: int) -> float:
            name = f"{rates.encoder:g}, {rates.head:g}, {steps} steps"
            if name not in losses:
                short = {"min_steps": steps, "epochs": 1e-3, "evaluations": 1, "patience": None, "hours": hours}
                shutil.rmtree(self.out / _RATES_CHECKPOINTS, ignore_errors=True)
                try:
                    tried = settings.model_copy(update=_rates_of(rates) | short)
                    losses[name] = self.train(tried, _RATES_CHECKPOINTS)[1].history.tune_loss[-1][1]
                except Diverged:
                    losses[name] = math.inf
                write_whole(record, json.dumps(losses, indent=1))
            return losses[name]

        steps = plan_for(settings, len(self.data.tokens(self.role, "train")), self.run.environment).steps
        rates = search_rates(Rates(settings.learning_rate, settings.new_modules_rate), steps, trial)
        how = f"after {len(losses)} short trainings" if losses else "as set: the training is too short for a search"
        self.run.say(f"teacher: learning rates {rates.encoder:g} (encoder) and {rates.head:g} (head), {how}")
        return settings.model_copy(update=_rates_of(rates))

    def from_probe(self, probe: Path, settings: TeacherSettings) -> dict[str, tuple[Any, TeacherResult]]:
        """A teacher fine-tuned from the probe's head (LP-FT, Kumar et al. 2022, arXiv 2202.10054), and the probe."""
        with np.load(probe) as kept:
            head = Linear(kept["weight"], kept["bias"])
        probing = with_head(loading.load_model(self.source, self.data.task, pooling="mean").model, head)
        set_join(probing, self.join)
        second, training = self.train(settings, _PROBE_CHECKPOINTS, head)
        return {
            "fine-tuned from the probe's head": (second, self.score(second, training)[0]),
            "the probe": (probing, self.score(probing)[0]),
        }

    def best_of(self, tries: dict[str, tuple[Any, TeacherResult]]) -> tuple[Any, TeacherResult]:
        attempts = tuple(Attempt(how=how, score=tried.tune[self.metric]) for how, (_, tried) in tries.items())
        best = max(attempts, key=lambda attempt: attempt.score).how
        listed = ", ".join(f"{attempt.how} {attempt.score:.1f}" for attempt in attempts)
        self.run.say(f"teacher: {listed} ({self.metric}, tuning set); the teacher is {best}")
        model, result = tries[best]
        return model, result.model_copy(update={"attempts": attempts})


def _rates_of(rates: Rates) -> dict[str, float]:
    return {"learning_rate": rates.encoder, "head_learning_rate": rates.head}


def _keep_scores(
    file: Path, train: Path | None, data: PreparedData, out: Path, say: Callable[[str], None]
) -> ModelResult:
    scores = scores_of_rows(file, data)
    np.save(out / SCORES, scores)
    rows = data.rows("tune")
    logits, labels = scores[np.asarray(rows["row"][:])], np.asarray(rows["label"][:])
    is_train = train is not None and train.resolve() == file.resolve()  # the labels are the black box's answers
    if not is_train and are_the_labels(logits, labels, data.task):
        say(
            f"warning: {file.name} gives all {len(labels)} rows of the tuning set their true label: is its column the "
            "labels, and not the black box's answers?"
        )
    return score_logits(logits, data)


def are_the_labels(logits: NDArray[np.float32], labels: NDArray[np.generic], task: Task) -> bool:
    if not task.traits.has_labels:
        return bool(np.allclose(task.center + task.spread * logits[:, 0], labels, atol=1e-5 * task.spread))
    return bool((task.traits.predictions(logits) == labels).all())


def _check(run: Run, result: ModelResult) -> None:
    allow = run.config.student.allow_majority
    warning = check_learned(result, run.data().task, who="teacher", allow=allow, remedy=_REMEDY)
    if warning:
        run.say(f"warning: {warning}")
