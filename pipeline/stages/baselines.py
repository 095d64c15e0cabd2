"""Stage `baselines`: what is cheap to beat, which stands beside the models in every table.

The majority, TF-IDF with a linear model, and a linear probe on the teacher's encoder before it is trained. Reads
`data/`, of the evaluation split the texts alone. Writes `logits.npz`, the answers by "<split>/<baseline>", and
`probe.npz`, a head for the encoder: weight (outputs, width) and bias.
"""

from pathlib import Path
from typing import Any

import numpy as np

from kdc.pipeline.quality import metrics
from kdc.pipeline.results import BaselinesResult, DataResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import BASELINE_LOGITS, PROBE
from kdc.pipeline.training.baselines import Encoder, Fitted, Sample, fit_probe, fit_tfidf, majority


def depends_on(run: Run) -> dict[str, Any]:
    """How many rows are fitted, and whether there is an encoder to probe."""
    return {**run.config.baselines.model_dump(), "probed": _is_probed(run)}


def run(run: Run, out: Path) -> BaselinesResult:
    """Fit the baselines, and keep their answers in `out`."""
    data, task, most = run.data(), run.data().task, run.config.baselines.max_rows
    rows, tokens = data.rows("train"), data.tokens("teacher", "train")
    places = None
    if len(rows) > most:
        places = np.sort(np.random.default_rng(run.config.run.seed).choice(len(rows), most, replace=False)).tolist()
    train = Sample.of(rows, tokens, places)
    tune = Sample.of(data.rows("tune"), data.tokens("teacher", "tune"))

    fitted: dict[str, Fitted] = {"tfidf": fit_tfidf(train, tune, task)}
    run.progress(1, 2)
    form = None
    if _is_probed(run):
        fitted["probe"], form = _probe(run, train, tune, out)
    run.progress(2, 2)

    answers: dict[str, Any] = {f"tune/{name}": each.tune for name, each in fitted.items()}
    answers["tune/majority"] = majority(train.labels, len(tune.labels), task)
    for split in data.eval_splits:
        texts, their_tokens = data.rows(split).remove_columns("label"), data.tokens("teacher", split)
        answers |= {f"{split}/{name}": each.answer(texts, their_tokens) for name, each in fitted.items()}
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
        headline=f"tuning slice, {metric}: {listed}",
    )


def _is_probed(run: Run) -> bool:
    """A teacher that came fine-tuned has no encoder from before its training at hand; a black box has none at all."""
    return not run.config.teacher.finetuned and run.config.teacher.scores is None


def _probe(run: Run, train: Sample, tune: Sample, out: Path) -> tuple[Fitted, str]:
    """The linear probe, and how it takes a pair: "together" or "apart", whichever is better on the tuning slice; ""
    where the rows are no pairs. The head of the first form is kept, since a classifier can have it."""
    task, source = run.data().task, run.config.teacher.model
    length = run.result(DataResult).max_length["teacher"]

    def encoder(*, apart: bool) -> Encoder:
        return Encoder(source, task, device=run.device, max_length=length, apart=apart)

    together = fit_probe(encoder(apart=False), train, tune, task)
    np.savez(out / PROBE, weight=together.model.weight, bias=together.model.bias)
    if task.text_pair is None:
        return together, ""
    apart = fit_probe(encoder(apart=True), train, tune, task)
    return (apart, "apart") if apart.score > together.score else (together, "together")
