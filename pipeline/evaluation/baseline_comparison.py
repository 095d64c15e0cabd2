"""Where a run's teacher stands beside the best of its baselines, by the deciding metric on the tuning slice."""

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.intervals import difference
from kdc.pipeline.results.training import BaselinesResult, Standing, TargetsResult, TeacherResult
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


def better_baseline(run: Run) -> str | None:
    """The baseline that is better than the teacher; None where none is."""
    standing = run.result(TargetsResult).standing
    return standing.baseline if standing is not None and standing.baseline_score > standing.teacher_score else None


def worded(standing: Standing, metric: str) -> str:
    """A standing in words."""
    low, high = standing.interval
    return (
        f"on the tuning slice the teacher is {'' if standing.is_shown else 'not shown to be '}better than the baseline "
        f"{standing.baseline}: {metric} {standing.teacher_score:.1f} against {standing.baseline_score:.1f} (95 % "
        f"interval of the difference {low:+.1f} to {high:+.1f})"
    )


def teacher_note(run: Run) -> str:
    """What a person should know of a run's teacher: that it is no better than a baseline, or how it came about where
    fine-tuning did not do; "" where all is well."""
    standing, metric = run.result(TargetsResult).standing, run.data().task.metrics[0]
    attempts = run.result(TeacherResult).attempts
    notes = []
    if attempts:
        best = max(attempts, key=lambda attempt: attempt.score)
        listed = ", ".join(f"{attempt.how} {attempt.score:.1f}" for attempt in attempts)
        notes.append(f"the teacher is {best.how} ({metric} on the tuning slice: {listed})")
    if standing is not None and not standing.is_shown:
        notes.append(worded(standing, metric))
    return "; ".join(notes)
