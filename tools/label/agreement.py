"""The figures of `kdc label --audit`: accuracy, kappa and confusion by people's labels, and the student's verdict."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import judge_drop
from kdc.artifact.contract.rates import Rate
from kdc.artifact.contract.terms import Contract, Verdict, replace
from kdc.common.frozen import Frozen
from kdc.pipeline.quality.shares import at_least, rate
from kdc.tools.filled import NO_LABEL, Answered, Ints, quality_by

_MOST_CELLS, _MOST_LABELS = 50, 20  # in the rendering
_ERROR = 0.025  # at each end of an interval

Flags = NDArray[np.bool_]


class AuditWritten(Frozen):
    files: tuple[str, ...]  # CSV, Label Studio's tasks, its config
    labels: tuple[str, ...]
    rows: int
    skipped: int  # no text or answer
    differing: int | None  # None without a student
    max_drop: float  # points
    # Texts and labels that show, with 80 % power, that an equally good student keeps `max_drop`; None if none would.
    rows_needed: int | None
    labels_needed: int | None


class Accuracy(Frozen):
    """Shares of all sampled texts, with a 95 % confidence interval."""

    value: float
    low: float
    high: float
    # Exact (Clopper-Pearson) only if all sampled texts have labels; otherwise weighted by strata, and approximate.
    interval: Literal["exact", "stratified"]


class Cell(Frozen):
    people: str
    answer: str
    rows: int


class Agreement(Frozen):
    accuracy: Accuracy | None  # None: not estimable
    kappa: float | None  # Cohen's; weighted as the accuracy
    confusion: tuple[Cell, ...]  # labelled texts, unweighted, errors first
    people: dict[str, int]  # labelled texts by label
    answers: dict[str, int]  # labelled texts by answer


class Gap(Frozen):
    """The student's accuracy minus the model's, in points, over all sampled texts."""

    # Both ends count the differing texts without a label, for and against the student.
    difference: tuple[float, float]
    interval: tuple[float, float]
    rows: int
    differing: int
    unlabelled: int  # of `differing`
    max_drop: float | None
    verdict: Verdict | None
    is_settled: bool  # no missing label changes the verdict
    rows_needed: int | None  # see `Quality`


class AuditResult(Frozen):
    labels: tuple[str, ...]
    rows: int  # sampled texts
    labelled: int
    tied: int  # texts without a majority
    self_agreement: Rate | None  # all annotations equal
    model: Agreement
    student: Agreement | None
    gap: Gap | None
    without_labels: str  # still needed labels


def agreement_of(people: Ints, answers: Ints, strata: Ints | None, labels: Sequence[str]) -> Agreement:
    """Compare answers with people's labels.

    Args:
        people, answers: (texts,) numbers of labels; of people also `NO_LABEL`.
        strata: (texts,) numbers of strata, in which the labelled texts are random. None: these are not random.
    """
    labelled = people != NO_LABEL
    truth, given = people[labelled], answers[labelled]
    accuracy, kappa = None, None
    if strata is not None and (weights := _weights(labelled, strata)) is not None:
        accuracy = accuracy_of(people == answers, labelled, strata)
        kappa = _kappa(truth, given, weights[labelled])
    pairs = Counter(zip(truth.tolist(), given.tolist(), strict=True))
    order = sorted(pairs, key=lambda pair: (pair[0] == pair[1], -pairs[pair], pair))
    return Agreement(
        accuracy=accuracy,
        kappa=kappa,
        confusion=tuple(
            Cell(people=labels[row], answer=labels[column], rows=pairs[row, column]) for row, column in order
        ),
        people=_marginals(truth, labels),
        answers=_marginals(given, labels),
    )


def _weights(labelled: Flags, strata: Ints) -> NDArray[np.float64] | None:
    """How many sampled texts each labelled text stands for; None if a stratum has no label."""
    sizes, counts = np.bincount(strata), np.bincount(strata, weights=labelled)
    if ((sizes > 0) & (counts == 0)).any():
        return None
    return np.where(labelled, sizes[strata] / counts[strata], 0.0)


def accuracy_of(right: Flags, labelled: Flags, strata: Ints) -> Accuracy:
    """Each stratum must have a labelled text.

    The labelled texts within a stratum are random: the variance is the one of double sampling (Cochran 1977, Sampling
    Techniques, chapter 12). The exact interval then takes the effective number of texts (Korn and Graubard 1998, Survey
    Methodology 24:193). For the variance, a stratum gets one more right and one more wrong text: a few equal texts
    would make the variance 0.

    Args:
        right, labelled, strata: (texts,); `right` counts only where `labelled`.
    """
    if labelled.all():
        exact = rate(int(right.sum()), len(right))
        return Accuracy(value=exact.hits / exact.of, low=exact.low, high=exact.high, interval="exact")
    _, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    counts, hits = np.bincount(stratum, weights=labelled), np.bincount(stratum, weights=right & labelled)
    share = sizes / len(right)
    value, smoothed = float(share @ (hits / counts)), (hits + 1) / (counts + 2)
    spread = float(share @ smoothed) * (1 - float(share @ smoothed))
    within = share**2 * smoothed * (1 - smoothed) / counts * (1 - counts / sizes)
    rows = spread / (spread / len(right) + float(within.sum()))
    low, high = (
        at_least(_ERROR, value * rows, (1 - value) * rows),
        1 - at_least(_ERROR, (1 - value) * rows, value * rows),
    )
    return Accuracy(value=value, low=float(low), high=float(high), interval="stratified")


def _kappa(truth: Ints, answers: Ints, weights: NDArray[np.float64]) -> float | None:
    """Cohen's kappa (1960); None if all have one label."""
    from sklearn.metrics import cohen_kappa_score

    if len(np.unique(np.append(truth, answers))) < 2:
        return None
    return float(cohen_kappa_score(truth, answers, sample_weight=weights))


def _marginals(numbers: Ints, labels: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(numbers, minlength=len(labels)).tolist()
    return {label: count for label, count in zip(labels, counts, strict=True) if count}


def self_agreement(votes: Sequence[Sequence[int]]) -> Rate | None:
    """Texts whose annotations are equal, of those with several; None without such texts."""
    several = [set(each) for each in votes if len(each) > 1]
    return rate(sum(len(each) == 1 for each in several), len(several)) if several else None


def gap_of(student: Ints, model: Ints, people: Ints, max_drop: float | None) -> Gap:
    """Compare the student with the model.

    Args:
        student, model: (texts,) numbers of labels.
        people: (texts,) numbers of labels, or `NO_LABEL`. Only texts that both answer differently need one.
        max_drop: points; InputError if out of range.
    """
    count = len(people)
    answered = Answered(np.arange(count), np.zeros((count, 0), dtype=np.int64), student, model, "", "")
    contract = replace(Contract(), {"max_drop": 0.0 if max_drop is None else max_drop})
    worst, best = (quality_by(answered, people, contract, empty_is_won=is_won) for is_won in (False, True))
    verdict, at_best = judge_drop(contract, worst), judge_drop(contract, best)
    is_settled = verdict == at_best
    unlabelled = int((answered.differs & (people == NO_LABEL)).sum())
    return Gap(
        difference=(worst.difference, best.difference),
        interval=(worst.interval[0], best.interval[1]),
        rows=count,
        differing=int(answered.differs.sum()),
        unlabelled=unlabelled,
        max_drop=max_drop,
        verdict=None if max_drop is None else verdict if is_settled else "not shown",
        is_settled=is_settled,
        rows_needed=best.rows_needed if max_drop is not None and is_settled else None,
    )


def render_audit(result: AuditWritten | AuditResult) -> str:
    return _written(result) if isinstance(result, AuditWritten) else _judged(result)


def _written(written: AuditWritten) -> str:
    without = f" ({written.skipped:,} rows have no text or no answer)" * bool(written.skipped)
    lines = [f"{written.files[0]}: {written.rows:,} texts to label, drawn at random{without}"]
    lines.append(f"{written.files[1]}: the same texts for Label Studio; its labeling config is {written.files[2]}")
    if written.differing is not None:
        lines.append(f"the student and the model answer {written.differing:,} texts differently; these come first")
        plan = f"no number of texts shows a drop of at most {written.max_drop:g} points"
        if written.rows_needed is not None:
            plan = (
                f"to show a drop of at most {written.max_drop:g} points if both are equally good (power 80 %): about "
                f"{written.rows_needed:,} texts, of which {written.labels_needed:,} differ and need a label"
            )
            plan += f"; {written.rows:,} texts are too few" * (written.rows_needed > written.rows)
        lines.append(plan)
    labels = ", ".join(written.labels[:_MOST_LABELS]) + ", ..." * (len(written.labels) > _MOST_LABELS)
    return "\n".join([*lines, f"next: write one of {labels} into the last column, then run the command with the file"])


def _judged(result: AuditResult) -> str:
    tied = f"; {result.tied:,} more have no majority of annotations" * bool(result.tied)
    lines = [f"{result.labelled:,} of {result.rows:,} sampled texts have people's labels{tied}"]
    if (alike := result.self_agreement) is not None:
        lines.append(f"people agree with themselves on {alike.text} % of {alike.of:,} texts with several annotations")
    for name, agreement in (("model", result.model), ("student", result.student)):
        if agreement is not None:
            lines += [_scores(name, agreement, result.without_labels), *_counts(name, agreement)]
    return "\n".join(lines + ([] if result.gap is None else _gap(result.gap)))


def _scores(name: str, agreement: Agreement, without_labels: str) -> str:
    accuracy, kappa = agreement.accuracy, agreement.kappa
    if accuracy is None:
        return f"{name}: no accuracy yet, it needs {without_labels}"
    share = f"{100 * accuracy.value:.1f} % ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})"
    agreed = "" if kappa is None else f"; Cohen's kappa {kappa:.2f}"
    return f"{name}: accuracy {share}, {accuracy.interval} 95 % interval, by people's labels{agreed}"


def _counts(name: str, agreement: Agreement) -> list[str]:
    people, answers = agreement.people, agreement.answers
    lines = [
        f"  {label}: people {people.get(label, 0)}, {name} {answers.get(label, 0)}"
        for label in list(people | answers)[:_MOST_LABELS]
    ]
    lines += [
        f"  people {cell.people}, {name} {cell.answer}: {cell.rows}" for cell in agreement.confusion[:_MOST_CELLS]
    ]
    more = len(agreement.confusion) - _MOST_CELLS
    return lines + [f"  ... {more} more pairs"] * (more > 0)


def _gap(gap: Gap) -> list[str]:
    low, high = gap.difference
    value = f"{low:+.2f}" if low == high else f"{low:+.2f} to {high:+.2f} (missing labels decide)"
    ends = f"95 % interval {gap.interval[0]:+.2f} to {gap.interval[1]:+.2f}"
    lines = [f"student minus model: {value} points ({ends}), on {gap.rows:,} texts of which {gap.differing:,} differ"]
    if gap.unlabelled:
        settled = ", and no label can change the verdict" * (gap.is_settled and gap.verdict is not None)
        lines.append(f"{gap.unlabelled:,} differing texts have no label yet{settled}")
    if gap.verdict is None:
        return lines
    worse = f"{gap.max_drop:g} points worse than the model you replace, by people's labels"
    claim = {
        "pass": f"the student is at most {worse}",
        "fail": f"the student is more than {worse}",
        "not shown": f"the labels do not show whether the student is at most {worse}",
    }[gap.verdict]
    more = "" if gap.is_settled else "; label the differing texts"
    if gap.rows_needed is not None:
        more = f"; a sample of about {gap.rows_needed:,} texts would show it (power 80 %)"
    return [*lines, f"{gap.verdict}: {claim}{more}"]
