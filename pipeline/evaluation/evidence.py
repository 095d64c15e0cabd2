"""Evidence to judge a contract: answers, looks, tuning scores, and the best baseline."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config import metrics
from kdc.pipeline.config.metrics import Labels, Outputs
from kdc.pipeline.data.prepared import PreparedData, digest, texts_of
from kdc.pipeline.quality.comparison import Other
from kdc.pipeline.quality.intervals import difference
from kdc.pipeline.quality.judging import EvaluationAnswers
from kdc.pipeline.results.artifact import Pair, QuantizeResult
from kdc.pipeline.results.training import Attempt, BaselineComparison, BaselinesResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.directory import look_at
from kdc.pipeline.rundir.files import ALL_LOGITS, BASELINE_LOGITS


def answers_of(data: PreparedData, evaluated: Path, comparison: BaselineComparison | None) -> EvaluationAnswers:
    split, baseline = data.eval_splits[0], better_baseline(comparison)
    rows, logits = data.rows(split), read_logits(evaluated, split)
    better = None if baseline is None else Other(baseline, logits[baseline])
    labels, groups = np.asarray(rows["label"][:]), data.groups(split)
    return EvaluationAnswers(texts_of(rows), labels, logits, groups, better)


def read_logits(evaluated: Path, split: str) -> dict[str, NDArray[np.float32]]:
    """Logits (rows, outputs) by model."""
    with np.load(evaluated / ALL_LOGITS) as arrays:
        return {name.removeprefix(f"{split}/"): arrays[name] for name in arrays if name.startswith(f"{split}/")}


def look_of(data: PreparedData, root: Path, answers: Labels) -> int:
    rows = data.rows(data.eval_splits[0])
    fingerprint = hashlib.sha256(b"".join(map(digest, texts_of(rows))))
    fingerprint.update(np.asarray(rows["label"][:]).tobytes())
    return look_at(root, fingerprint.digest(), answers)


def tuning_scores(
    student: float, quantized: QuantizeResult, pairs: Mapping[str, Pair], metric: str
) -> dict[str, float]:
    scores = {"fp32": student, "fp16": student}  # fp16 differs by rounding
    int8 = quantized.candidates.get(quantized.winner or "")
    if int8 is not None and int8.tune is not None:
        scores["int8"] = int8.tune[metric]
    return scores | {name: pair.score for name, pair in pairs.items()}


def compared_with_baselines(run: Run, logits: Outputs) -> BaselineComparison | None:
    """`logits` are the teacher's on the tuning set. None without baselines."""
    if not run.config.baselines.enabled:
        return None
    data, best = run.data(), run.result(BaselinesResult).best
    kind, metric = data.task.kind, data.task.metrics[0]
    labels = np.asarray(data.rows("tune")["label"][:])
    with np.load(run.folder("baselines") / BASELINE_LOGITS) as answers:
        others = answers[f"tune/{best}"]
    score, floor = (metrics.compute(model, labels, kind, (metric,))[metric] for model in (logits, others))
    interval = difference(logits, others, labels, kind, metric, groups=data.groups("tune")).interval
    return BaselineComparison(baseline=best, teacher_score=score, baseline_score=floor, interval=interval)


def better_baseline(comparison: BaselineComparison | None) -> str | None:
    if comparison is None or comparison.teacher_score >= comparison.baseline_score:
        return None
    return comparison.baseline


def score_to_keep(comparison: BaselineComparison | None, teacher: float, against: Literal["teacher", "best"]) -> float:
    """The teacher's tuning score, or a better baseline's."""
    if comparison is None:
        return teacher
    return max([comparison.teacher_score] + [comparison.baseline_score] * (against == "best"))


def worded(comparison: BaselineComparison, metric: str) -> str:
    low, high = comparison.interval
    return (
        f"on the tuning set the teacher is {'' if comparison.is_shown else 'not shown to be '}better than the baseline "
        f"{comparison.baseline}: {metric} {comparison.teacher_score:.1f} against {comparison.baseline_score:.1f} (95 % "
        f"interval of the difference {low:+.1f} to {high:+.1f})"
    )


def teacher_note(comparison: BaselineComparison | None, attempts: Sequence[Attempt], metric: str) -> str:
    notes = []
    if attempts:
        best = max(attempts, key=lambda attempt: attempt.score)
        listed = ", ".join(f"{attempt.how} {attempt.score:.1f}" for attempt in attempts)
        notes.append(f"the teacher is {best.how} ({metric} on the tuning set: {listed})")
    if comparison is not None and not comparison.is_shown:
        notes.append(worded(comparison, metric))
    return "; ".join(notes)
