"""Stage `baselines`: cheap models that the teacher should beat.

Reads `data/`, but no evaluation labels. Writes `logits.npz`, and `probe.npz`: weight (outputs, width) and bias.
"""

from pathlib import Path
from typing import Any

import numpy as np

from kdc.pipeline.config import metrics
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import TeacherSettings
from kdc.pipeline.results.data import DataResult
from kdc.pipeline.results.training import BaselinesResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import BASELINE_LOGITS, PROBE
from kdc.pipeline.training.baselines import Encoder, Fitted, Sample, fit_probe, fit_tfidf, majority

_FORM_ROWS = 1000  # rows to choose `probe_form`


def depends_on(run: Run) -> dict[str, Any]:
    return {**run.config.baselines.model_dump(), "probed": _is_probed(run.config.teacher)}


def run(run: Run, out: Path) -> BaselinesResult:
    data, task, most = run.data(), run.data().task, run.config.baselines.max_rows
    rows, tokens = data.rows("train"), data.tokens("teacher", "train")
    train = Sample.of(rows, tokens, _some(len(rows), most, run.config.run.seed))
    tune = Sample.of(data.rows("tune"), data.tokens("teacher", "tune"))

    fitted: dict[str, Fitted] = {"tfidf": fit_tfidf(train, tune, task)}
    run.progress(1, 2)
    form = None
    if _is_probed(run.config.teacher):
        length = run.result(DataResult).max_length["teacher"]
        source, prefix = run.config.teacher.model, run.config.data.prefix
        encoder = Encoder(source, task, environment=run.environment, max_length=length, prefix=prefix)
        fitted["probe"], form = _probe(encoder, train, tune, task, out / PROBE, seed=run.config.run.seed)
    run.progress(2, 2)

    answers: dict[str, Any] = {f"tune/{name}": baseline.tune for name, baseline in fitted.items()}
    answers["tune/majority"] = majority(train.labels, len(tune.labels), task)
    for split in data.eval_splits:
        texts, their_tokens = data.rows(split).remove_columns("label"), data.tokens("teacher", split)
        answers |= {f"{split}/{name}": baseline.answer(texts, their_tokens) for name, baseline in fitted.items()}
        answers[f"{split}/majority"] = majority(train.labels, len(texts), task)
    np.savez_compressed(out / BASELINE_LOGITS, **{name: answers[name] for name in sorted(answers)})

    scores = {
        name: metrics.compute(answers[f"tune/{name}"], tune.labels, task.kind, task.metrics)
        for name in ("majority", *fitted)
    }
    metric = task.metrics[0]
    listed = ", ".join(f"{name} {score[metric]:.1f}" for name, score in scores.items())
    return BaselinesResult(
        tune=scores,
        best=max(scores, key=lambda name: scores[name][metric]),
        train_rows=len(train.labels),
        probe_form=form,
        headline=f"tuning set, {metric}: {listed}",
    )


def _is_probed(teacher: TeacherSettings) -> bool:
    return not teacher.finetuned and teacher.scores is None


def _some(rows: int, most: int, seed: int) -> list[int] | None:
    if rows <= most:
        return None
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False)).tolist()


def _probe(encoder: Encoder, train: Sample, tune: Sample, task: Task, file: Path, *, seed: int) -> tuple[Fitted, str]:
    """Also gives the better form on the tuning set, "together" or "apart" ("" for single texts).

    The file keeps the "together" head: only that fits a classifier.
    """
    encoder.settle(train.tokens)

    def fitted(rows: Sample, *, apart: bool) -> Fitted:
        return fit_probe(encoder, rows, tune, task, apart=apart)

    if task.text_pair is None:
        probe = head = fitted(train, apart=False)
        form = ""
    else:
        positions = _some(len(train.labels), _FORM_ROWS, seed)
        few = Sample.of(train.rows, train.tokens, positions)
        tried = {"together": fitted(few, apart=False), "apart": fitted(few, apart=True)}
        form = max(tried, key=lambda name: tried[name].score)
        probe = tried[form] if positions is None else fitted(train, apart=form == "apart")
        head = probe if form == "together" else tried["together"]
    encoder.forget()
    np.savez(file, weight=head.model.weight, bias=head.model.bias)
    return probe, form
