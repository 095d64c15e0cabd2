"""What a run knows that its contract is judged by: answers to the evaluation rows and how often these were looked at,
and scores on the tuning slice."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.terms import Contract
from kdc.pipeline.data.prepared import digest, texts_of
from kdc.pipeline.evaluation.baseline_comparison import better_baseline
from kdc.pipeline.evaluation.second_model import pairs_of
from kdc.pipeline.quality.comparison import Other
from kdc.pipeline.quality.judging import EvaluationAnswers, Tuning
from kdc.pipeline.results.artifact import QuantizeResult
from kdc.pipeline.results.training import StudentResult, TargetsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import ALL_LOGITS
from kdc.pipeline.rundir.looks import look_at


def answers_of(run: Run) -> EvaluationAnswers:
    """What stage `evaluate` kept of all models on the evaluation split."""
    data = run.data()
    split = data.eval_splits[0]
    rows = data.rows(split)
    with np.load(run.folder("evaluate") / ALL_LOGITS) as arrays:
        logits = {name.removeprefix(f"{split}/"): arrays[name] for name in arrays if name.startswith(f"{split}/")}
    name = better_baseline(run)
    better = None if name is None else Other(name, logits[name])
    labels, groups = np.asarray(rows["label"][:]), data.groups(split)
    return EvaluationAnswers(texts_of(rows), labels, logits["teacher"], logits, groups, better)


def tuning_of(run: Run, contract: Contract) -> Tuning:
    """The scores of the variants on the tuning slice, and of what the contract compares with."""
    metric = run.data().task.metrics[0]
    score = run.result(StudentResult).tune[metric]
    scores = {"fp32": score, "fp16": score}  # which differs by rounding
    quantized = run.result(QuantizeResult)
    int8 = quantized.candidates.get(quantized.winner or "")
    if int8 is not None and int8.tune is not None:
        scores["int8"] = int8.tune[metric]
    scores |= {name: pair.score for name, pair in pairs_of(run).items()}
    return Tuning(scores, score_to_keep(run, contract))


def score_to_keep(run: Run, contract: Contract) -> float:
    """The score on the tuning slice of what the contract compares with."""
    standing = run.result(TargetsResult).standing
    if standing is None:
        return run.result(TeacherResult).tune[run.data().task.metrics[0]]
    return max([standing.teacher_score] + [standing.baseline_score] * (contract.against == "best"))


def look_of(run: Run, answers: NDArray[np.generic], *, root: Path | None = None) -> int:
    """Which look at the run's evaluation rows it is, to judge a model by its answers; counted in the run's directory,
    or in `root`."""
    data = run.data()
    rows = data.rows(data.eval_splits[0])
    fingerprint = hashlib.sha256(b"".join(map(digest, texts_of(rows))))
    fingerprint.update(np.asarray(rows["label"][:]).tobytes())
    return look_at(root or run.root, fingerprint.digest(), answers)
