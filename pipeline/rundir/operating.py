"""What a run's artifact decides: thresholds chosen on the tuning slice, told on the evaluation rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.terms import Evidence
from kdc.artifact.decision import Abstention, LabelSets, OperatingPoint, Threshold
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import InputError
from kdc.pipeline.config.aims import Aim, abstain_of, aims_of
from kdc.pipeline.quality.abstaining import answered_rates, choose_answered
from kdc.pipeline.quality.conformal import choose_at_least, covered_rates
from kdc.pipeline.quality.operating import Chosen, choose, having, rates
from kdc.pipeline.rundir.cascading import CASCADE, CASCADE_FP32, open_variant
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.evidence import answers_of
from kdc.pipeline.rundir.exporting import tuning_slice
from kdc.serving.engine.deciding import decided, given
from kdc.serving.engine.engine import activate

_MOST_TOLD = 5  # labels of which something is told one by one
_TIED, _FEWEST_TIED = 0.05, 10  # share and number of a slice's rows with one probability, from which on that is told

_Labelled = tuple[NDArray[np.floating], NDArray[np.generic]]  # probabilities (rows, outputs), and the rows' labels


def decided_task(run: Run, variant: str, temperature: float) -> tuple[TaskInfo, list[str]]:
    """The task with the thresholds and sets of labels that a run asks for, and what a person should know of them.

    Args:
        run: whose evaluation is done.
        variant: that a CPU loads: the thresholds are of its probabilities.
        temperature: by which its logits are divided.

    Raises:
        InputError: a bound was asked for, and the tuning slice shows no threshold that keeps it.
    """
    task, operating = run.data().task.info(), run.config.operating
    aims, abstain = aims_of(operating.aims, task), abstain_of(operating.abstain, operating.aims, task)
    if not aims and abstain is None and operating.sets is None:
        return task, []
    with open_variant(run, variant, temperature=temperature) as engine:
        held_out = tuning_slice(run, engine)
    answers = answers_of(run)
    tuning = activate(held_out.logits, task.kind, temperature), held_out.labels
    evaluation = activate(answers.students[variant], task.kind, temperature), answers.labels
    notes: list[str] = []
    if operating.sets is not None:
        sets, note = _sets(operating.sets, variant, tuning, evaluation)
        task, notes = task.model_copy(update={"sets": sets}), [note]
    if abstain is not None:
        decision = _abstention(task, abstain, variant, tuning, evaluation)
        _refuse_unshown({"--abstain": ["answers"]}, {"answers": decision})
        task = task.model_copy(update={"abstain": decision})
        notes += _ties({"answers": tuning[0].max(axis=1)})
    elif aims:
        points = []
        for label, aim in aims.items():
            place = task.labels.index(label)
            chosen = choose(tuning[0][:, place], having(tuning[1], place), aim, operating.evidence)
            point = OperatingPoint(label=label, **_fields(chosen, aim, variant))
            points.append(_told(task, point, tuning, evaluation))
        by_label = {point.label: point for point in points}
        _refuse_unshown(_labels_of_bounds(aims, operating.evidence), by_label)
        task = task.model_copy(update={"points": tuple(points)})
        notes += _unreached(by_label) + _ties({label: tuning[0][:, task.labels.index(label)] for label in aims})
    if aims or abstain is not None:
        notes += _flips(task, answers.students, variant, temperature)
    return task, notes


def _told(task: TaskInfo, point: OperatingPoint, tuning: _Labelled, evaluation: _Labelled) -> OperatingPoint:
    """A label's threshold with what it does on the tuning slice and on the evaluation rows."""
    place = task.labels.index(point.label)
    alone = task.model_copy(update={"points": (point,)})
    shown = {
        name: rates(decided(probabilities, alone)[:, place], having(labels, place))
        for name, (probabilities, labels) in (("tuning", tuning), ("evaluation", evaluation))
    }
    return point.model_copy(update=shown)


def _abstention(task: TaskInfo, aim: Aim, variant: str, tuning: _Labelled, evaluation: _Labelled) -> Abstention:
    """Which rows are answered by the tuning slice, with what that does there and on the evaluation rows."""
    probabilities, labels = tuning
    chosen = choose_answered(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, aim)
    abstain = Abstention(**_fields(chosen, aim, variant))
    shares = given(probabilities, task.model_copy(update={"abstain": abstain})) / len(labels)
    shown = {name: answered_rates(*rows, abstain) for name, rows in (("tuning", tuning), ("evaluation", evaluation))}
    return abstain.model_copy(update={"shares": tuple(shares.round(6).tolist()), **shown})


def _sets(coverage: float, variant: str, tuning: _Labelled, evaluation: _Labelled) -> tuple[LabelSets, str]:
    """The sets of labels by the tuning slice, with how they do on the evaluation rows, and that in a sentence."""
    probabilities, labels = tuning
    at_least = choose_at_least(probabilities[np.arange(len(labels)), labels.astype(np.int64)], coverage)
    assert at_least is not None, "a run whose slice is too small for them ends before it trains"
    sets = LabelSets(coverage=coverage, at_least=at_least, variant=variant)
    found = covered_rates(*evaluation, sets)
    note = (
        f"sets of labels hold the true one of {found.coverage.text} % of the evaluation rows, asked were "
        f"{100 * coverage:g} %; they have {found.size:.2f} labels on average, and {found.single.text} % have one"
    )
    return sets.model_copy(update={"evaluation": found}), note


def _fields(chosen: Chosen, aim: Aim, variant: str) -> dict[str, Any]:
    return {
        "threshold": chosen.threshold,
        "aim": aim.text,
        "reached": chosen.reached,
        "note": chosen.note,
        "variant": "" if aim.measure == "fixed" else variant,
    }


def _labels_of_bounds(aims: Mapping[str, Aim], evidence: Evidence) -> dict[str, list[str]]:
    """The labels of each bound that has to be shown, by how it was asked for: of one label, or of all that have none of
    their own. What is highest (`f1`) is no bound."""
    asked: dict[str, list[str]] = {}
    for label, aim in aims.items():
        if aim.bound is not None and evidence == "interval":
            asked.setdefault("--aim" if aim.label is None else f"--aim {label}", []).append(label)
    return asked


def _refuse_unshown(asked: Mapping[str, Sequence[str]], chosen: Mapping[str, Threshold]) -> None:
    """End a run whose artifact would not decide as was asked. Of a bound for many labels some may miss it: rare ones
    nearly always do.

    Args:
        asked: by option, the names of what it is for.
        chosen: by name.

    Raises:
        InputError: none of those that an option is for is shown to keep its bound.
    """
    missed = {option: names for option, names in asked.items() if not any(chosen[name].reached for name in names)}
    if missed:
        names = [name for each in missed.values() for name in each]
        problems = [f"{name}: {chosen[name].aim}: {chosen[name].note}" for name in names]
        more = f"\n    and {len(names) - _MOST_TOLD} more" if len(names) > _MOST_TOLD else ""
        thresholds = ", ".join(f"{chosen[name].threshold:.4f} ({name})" for name in names[:_MOST_TOLD])
        by_share = "" if "--abstain" in asked else ", or take what counts on these rows: --set operating.evidence=point"
        raise InputError(
            "the tuning slice shows no threshold that keeps what was asked",
            given="\n    ".join(problems[:_MOST_TOLD]) + more,
            remedy=f"ask for what is shown, or give a threshold yourself (the nearest is {thresholds}){by_share}; "
            "only this stage is then done again",
        )


def _unreached(chosen: Mapping[str, Threshold]) -> list[str]:
    """Which aims the tuning slice does not reach, and why; of many labels the number."""
    missed = {name: threshold for name, threshold in chosen.items() if not threshold.reached}
    if len(missed) > _MOST_TOLD:
        names = ", ".join(list(missed)[:_MOST_TOLD])
        return [f"{len(missed)} labels do not reach their aim on the tuning slice, among them {names}"]
    return [f"{name}: {each.aim} is not reached on the tuning slice: {each.note}" for name, each in missed.items()]


def _ties(probabilities: Mapping[str, NDArray[np.floating]]) -> list[str]:
    """Of which names many rows have one probability: a threshold gives the label to all of them or to none."""
    notes = []
    for name, values in probabilities.items():
        most = int(np.unique(values, return_counts=True)[1].max(initial=0))
        if most >= max(_FEWEST_TIED, _TIED * len(values)):
            rows = f"{most} of {len(values)} rows of the tuning slice"
            notes.append(f"{name}: {rows} have one probability, which no threshold parts")
    return notes[:_MOST_TOLD]


def _flips(task: TaskInfo, logits: Mapping[str, NDArray[np.floating]], variant: str, temperature: float) -> list[str]:
    """What 8 bits change at the thresholds, in a sentence."""
    fp32 = {"int8": "fp32", CASCADE: CASCADE_FP32}.get(variant, "")
    if fp32 not in logits:
        return []
    own, others = (decided(activate(logits[name], task.kind, temperature), task) for name in (variant, fp32))
    flips = int((own != others).any(axis=1).sum())
    return [f"at the thresholds {variant} decides otherwise than {fp32} on {flips} of {len(own)} evaluation rows"]
