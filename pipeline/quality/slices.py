"""A model's figures by slice of the evaluation rows."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.decision import SliceFigures
from kdc.artifact.manifest import TaskInfo
from kdc.pipeline.config import metrics
from kdc.pipeline.config.metrics import METRICS, Flags, Floats, Groups, Scorer
from kdc.pipeline.quality.decision_rates import answered_rates
from kdc.pipeline.quality.intervals import difference, independent_rows, score_interval
from kdc.pipeline.quality.judging import EvaluationAnswers
from kdc.serving.engine.engine import activate

_FEWEST = 30  # independent rows; fewer say too little
_MOST_SHOWN = 20  # values of a column; the others are one slice
_SHUFFLES, _SHUFFLES_A_SLICE = 999, 100  # enough for a p-value of 0.05 after Holm's correction
_ENOUGH = 20  # after so many shuffles with as low a score, the slice is not worse


def slice_figures(
    answers: EvaluationAnswers, variant: str, task: TaskInfo, names: tuple[str, ...], temperature: float
) -> tuple[SliceFigures, ...]:
    """All rows, then each column's slices, largest first. The first metric of `names` decides."""
    if not answers.slices:
        return ()
    logits, teacher = answers.students[variant], answers.students.get("teacher")
    labels, groups = answers.labels, answers.groups
    truth, own_answers = metrics.as_scored(labels, task.kind, logits)
    perfect, score = (METRICS[names[0]].scorer(truth, model) for model in (truth, own_answers))

    def figures(name: str, rows: Flags) -> SliceFigures:
        part = SliceFigures(name=name, rows=int(rows.sum()), metric=names[0])
        # Perfect answers score less than 1 if the metric needs a label that the slice lacks.
        if independent_rows(groups[rows], part.rows) < _FEWEST or perfect(rows[None].astype(np.float64))[0] < 1 - 1e-9:
            return part
        own: dict[str, Any] = {"labels": labels[rows], "kind": task.kind}
        by_groups = own | {"metric": names[0], "groups": groups[rows]}
        scores = metrics.compute(logits[rows], names=names, **own)
        changes: dict[str, Any] = {"metrics": scores, "interval": score_interval(logits[rows], **by_groups)}
        if task.abstain is not None:
            probabilities = activate(logits[rows], task.kind, temperature)
            changes["answered"] = answered_rates(probabilities, labels[rows], task.abstain)
        if teacher is not None:
            (beside,) = metrics.compute(teacher[rows], names=names[:1], **own).values()
            changes["difference"] = round(scores[names[0]] - beside, 4)
            changes["difference_interval"] = difference(logits[rows], teacher[rows], **by_groups).interval
        return part.model_copy(update=changes)

    members = [named for column, values in answers.slices.items() for named in _largest(column, values)]
    parts = [figures(*named) for named in members]
    tested = [place for place, part in enumerate(parts) if part.metrics]
    inside = np.stack([rows for _, rows in members])[tested]
    for place, chance in zip(tested, holm(chances(score, inside, groups)).tolist(), strict=True):
        parts[place] = parts[place].model_copy(update={"chance": chance})
    return (figures("all rows", np.ones(len(labels), dtype=np.bool_)), *parts)


def _largest(column: str, values: NDArray[np.object_]) -> Iterator[tuple[str, Flags]]:
    names, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    for place in order[:_MOST_SHOWN]:
        yield f"{column}={names[place]}", number == place
    if len(others := order[_MOST_SHOWN:]):
        yield f"{column}: {len(others)} other values", np.isin(number, others)


def chances(score: Scorer, inside: Flags, groups: Groups) -> Floats:
    """P-values, (slices,): the chance that a random slice scores as low.

    A permutation test: each group takes another group's share of rows in the slice. It ends early for slices that are
    not worse (Besag and Clifford 1991, Biometrika 78:301). `inside` is (slices, rows).
    """
    number, generator = metrics.group_numbers(groups, inside.shape[1]), np.random.default_rng(0)
    sizes = np.bincount(number)
    shares = np.array([np.bincount(number, weights=rows) / sizes for rows in inside])
    observed = score(inside.astype(np.float64)) + 1e-12
    as_low, shuffles, undecided = np.zeros(len(inside)), np.zeros(len(inside)), np.arange(len(inside))
    while len(undecided) and shuffles.max() < max(_SHUFFLES, _SHUFFLES_A_SLICE * len(inside)):
        moved = generator.random(len(number)) < shares[undecided][:, generator.permutation(len(sizes))[number]]
        as_low[undecided] += score(moved.astype(np.float64)) <= observed[undecided]
        shuffles[undecided] += 1
        undecided = undecided[as_low[undecided] < _ENOUGH]
    return np.where(as_low < _ENOUGH, (as_low + 1) / (shuffles + 1), as_low / np.maximum(shuffles, 1))


def holm(chances: Floats) -> Floats:
    """P-values corrected for their number (Holm 1979, Scand. J. Stat. 6:65)."""
    order = np.argsort(chances)
    corrected = np.maximum.accumulate(chances[order] * np.arange(len(chances), 0, -1)).clip(max=1)
    return corrected[np.argsort(order)]
