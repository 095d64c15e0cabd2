"""Where a run's teacher stands beside the best of its baselines, by the deciding metric on the tuning slice."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.config import metrics
from kdc.pipeline.quality.intervals import difference
from kdc.pipeline.results.training import Attempt, BaselinesResult, Standing
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import BASELINE_LOGITS


def standing_of(run: Run, logits: NDArray[np.floating]) -> Standing | None:
    """A teacher, by its logits (rows, outputs) on the tuning slice, beside the best baseline; None without any."""
    if not run.config.baselines.enabled:
        return None
    data, best = run.data(), run.result(BaselinesResult).best
    task, metric = data.task, data.task.metrics[0]
    labels = np.asarray(data.rows("tune")["label"][:])
    with np.load(run.folder("baselines") / BASELINE_LOGITS) as answers:
        others = answers[f"tune/{best}"]
    score, floor = (metrics.compute(each, labels, task.kind, (metric,))[metric] for each in (logits, others))
    seen = difference(logits, others, labels, task.kind, metric, groups=data.groups("tune"))
    return Standing(baseline=best, teacher_score=score, baseline_score=floor, interval=seen.interval)


def better_baseline(standing: Standing | None) -> str | None:
    """The baseline that is better than the teacher; None where none is."""
    return standing.baseline if standing is not None and standing.baseline_score > standing.teacher_score else None


def worded(standing: Standing, metric: str) -> str:
    """A standing in words."""
    low, high = standing.interval
    return (
        f"on the tuning slice the teacher is {'' if standing.is_shown else 'not shown to be '}better than the baseline "
        f"{standing.baseline}: {metric} {standing.teacher_score:.1f} against {standing.baseline_score:.1f} (95 % "
        f"interval of the difference {low:+.1f} to {high:+.1f})"
    )


def score_to_keep(standing: Standing | None, teacher: float, against: Literal["teacher", "best"]) -> float:
    """The score on the tuning slice of what a contract compares with: the teacher, or the best baseline if that is
    better."""
    if standing is None:
        return teacher
    return max([standing.teacher_score] + [standing.baseline_score] * (against == "best"))


def teacher_note(standing: Standing | None, attempts: Sequence[Attempt], metric: str) -> str:
    """What a person should know of a teacher: that it is no better than a baseline, or how it came about where
    fine-tuning did not do; "" where all is well."""
    notes = []
    if attempts:
        best = max(attempts, key=lambda attempt: attempt.score)
        listed = ", ".join(f"{attempt.how} {attempt.score:.1f}" for attempt in attempts)
        notes.append(f"the teacher is {best.how} ({metric} on the tuning slice: {listed})")
    if standing is not None and not standing.is_shown:
        notes.append(worded(standing, metric))
    return "; ".join(notes)
