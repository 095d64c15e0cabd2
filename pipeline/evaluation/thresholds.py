"""What a run's artifact decides: thresholds chosen on the tuning slice, told on the evaluation rows."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.terms import Evidence
from kdc.artifact.decision import Abstention, LabelSets, OperatingPoint
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import InputError
from kdc.pipeline.config.aims import Aim, abstain_of, aims_of
from kdc.pipeline.config.judging_settings import OperatingSettings
from kdc.pipeline.config.metrics import Groups
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.evaluation.variants import CASCADE, CASCADE_FP32, Variants
from kdc.pipeline.graphs.exporting import tuning_slice
from kdc.pipeline.quality.abstaining import answered_rates, choose_answered
from kdc.pipeline.quality.conformal import choose_at_least, covered_rates
from kdc.pipeline.quality.judging import EvaluationAnswers
from kdc.pipeline.quality.operating import Chosen, choose, having, rates
from kdc.serving.engine.deciding import decided, label_counts
from kdc.serving.engine.engine import activate

_MOST_TOLD = 5  # labels of which something is told one by one
_TIED, _FEWEST_TIED = 0.05, 10  # share and number of a slice's rows with one probability, from which on that is told

_Labelled = tuple[NDArray[np.floating], NDArray[np.generic]]  # probabilities (rows, outputs), and the rows' labels


def decided_task(
    operating: OperatingSettings,
    data: PreparedData,
    variants: Variants,
    answers: EvaluationAnswers,
    *,
    variant: str,
    temperature: float,
) -> tuple[TaskInfo, list[str]]:
    """The task with the thresholds and sets of labels that are asked for, and what a person should know of them.

    Args:
        operating: what is asked for.
        data: the rows.
        variants: the ONNX files.
        answers: to the evaluation rows.
        variant: that a CPU loads: the thresholds are of its probabilities.
        temperature: by which its logits are divided.

    Raises:
        InputError: a bound was asked for, and the tuning slice shows no threshold that keeps it.
    """
    task = data.task.info()
    aims, abstain = aims_of(operating.aims, task), abstain_of(operating.abstain, operating.aims, task)
    if not aims and abstain is None and operating.sets is None:
        return task, []
    with variants.open(variant, temperature=temperature) as engine:
        held_out = tuning_slice(data, engine)
    groups = data.groups("tune")
    tuning = activate(held_out.logits, task.kind, temperature), held_out.labels
    evaluation = activate(answers.students[variant], task.kind, temperature), answers.labels
    notes: list[str] = []
    if operating.sets is not None:
        sets, note = _sets(operating.sets, variant, tuning, evaluation, groups)
        task, notes = task.model_copy(update={"sets": sets}), [note]
    if abstain is not None:
        chosen = choose_answered(tuning[0].max(axis=1), tuning[0].argmax(axis=1) == tuning[1], abstain, groups=groups)
        _refuse_unshown("--abstain", {"answers": abstain}, {"answers": chosen})
        decision = _abstention(task, Abstention(**_fields(chosen, abstain, variant)), tuning, evaluation)
        task = task.model_copy(update={"abstain": decision})
        notes += _ties({"answers": abstain}, {"answers": chosen}, {"answers": tuning[0].max(axis=1)})
    elif aims:
        by_label, choices = {label: tuning[0][:, task.labels.index(label)] for label in aims}, {}
        for label, aim in aims.items():
            has_label = having(tuning[1], task.labels.index(label))
            choices[label] = choose(by_label[label], has_label, aim, operating.evidence, groups=groups)
        _refuse_unshown("--aim", aims, choices, operating.evidence)
        points = (OperatingPoint(label=label, **_fields(choices[label], aim, variant)) for label, aim in aims.items())
        told = tuple(_told(task, point, tuning, evaluation) for point in points)
        task = task.model_copy(update={"points": told})
        notes += _unreached(told) + _ties(aims, choices, by_label)
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


def _abstention(task: TaskInfo, abstain: Abstention, tuning: _Labelled, evaluation: _Labelled) -> Abstention:
    """Which rows are answered, with what that does on the tuning slice and on the evaluation rows."""
    probabilities, labels = tuning
    shares = label_counts(probabilities, task.model_copy(update={"abstain": abstain})) / len(labels)
    shown = {name: answered_rates(*rows, abstain) for name, rows in (("tuning", tuning), ("evaluation", evaluation))}
    return abstain.model_copy(update={"shares": tuple(shares.round(6).tolist()), **shown})


def _sets(
    coverage: float, variant: str, tuning: _Labelled, evaluation: _Labelled, groups: Groups
) -> tuple[LabelSets, str]:
    """The sets of labels by the tuning slice, with how they do on the evaluation rows, and that in a sentence."""
    probabilities, labels = tuning
    of_truth = probabilities[np.arange(len(labels)), labels.astype(np.int64)]
    at_least = choose_at_least(of_truth, coverage, groups=groups)
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


def _refuse_unshown(
    option: str, aims: Mapping[str, Aim], chosen: Mapping[str, Chosen], evidence: Evidence = "interval"
) -> None:
    """End a run whose artifact would not decide as was asked. Of a bound for all labels some may miss it: rare ones
    nearly always do.

    Args:
        option: by which the aims were given.
        aims, chosen: by name, such as a label's.
        evidence: by `point` nothing has to be shown.

    Raises:
        InputError: a bound that was asked of a name is not shown to be kept, or one for all names by none of them.
    """
    asked: dict[str | None, list[str]] = {}  # by the label that an aim was given for; None: for all without their own
    for name, aim in aims.items():
        if aim.is_bound:
            asked.setdefault(aim.label, []).append(name)
    missed = [name for names in asked.values() if not any(chosen[each].reached for each in names) for name in names]
    if not missed or evidence == "point":
        return

    def ask(name: str, value: str) -> str:
        return f"{option} {shlex.quote(value if option == '--abstain' else f'{name}:{value}')}"

    told, more = missed[:_MOST_TOLD], len(missed) - _MOST_TOLD
    shown = [
        ask(name, replace(aims[name], bound=float(chosen[name].shown)).text)
        for name in told
        if chosen[name].shown and 0 < float(chosen[name].shown) < 1
    ]
    nearest = [ask(name, repr(chosen[name].threshold)) for name in told]
    remedies = [f"ask for what is shown: {', '.join(shown)}" if shown else "more labelled rows"]
    remedies.append(f"or give a threshold yourself; the nearest is {', '.join(nearest)}")
    if shown and option == "--aim":
        remedies.append("or take what counts on these rows alone: --set operating.evidence=point")
    raise InputError(
        "the tuning slice shows no threshold that keeps what was asked",
        given="; ".join(f"{name}: {aims[name].text}: {chosen[name].note}" for name in told)
        + (f"; and {more} more" if more > 0 else ""),
        remedy="; ".join(remedies) + " (nothing is trained again)",
    )


def _unreached(points: Sequence[OperatingPoint]) -> list[str]:
    """Which aims the tuning slice does not reach, and why; of many labels the number."""
    missed = [point for point in points if not point.reached]
    if len(missed) > _MOST_TOLD:
        names = ", ".join(point.label for point in missed[:_MOST_TOLD])
        return [f"{len(missed)} labels do not reach their aim on the tuning slice, among them {names}"]
    return [f"{point.label}: {point.aim} is not reached on the tuning slice: {point.note}" for point in missed]


def _ties(
    aims: Mapping[str, Aim], chosen: Mapping[str, Chosen], probabilities: Mapping[str, NDArray[np.floating]]
) -> list[str]:
    """Where the next threshold would move many rows at once, since they have one probability: of a recall the next
    higher one, else the next lower one."""
    tied = {}
    for name, aim in aims.items():
        values, threshold = probabilities[name], chosen[name].threshold
        beyond = values[values >= threshold] if aim.measure == "recall" else values[values < threshold]
        if aim.measure != "fixed" and beyond.size:
            tied[name] = int((values == (beyond.min() if aim.measure == "recall" else beyond.max())).sum())
    many = [name for name, rows in tied.items() if rows >= max(_FEWEST_TIED, _TIED * len(probabilities[name]))]
    if len(many) > _MOST_TOLD:
        return [f"of {len(many)} labels many rows have one probability, which no threshold parts"]
    return [
        f"{name}: {tied[name]} of {len(probabilities[name])} rows of the tuning slice have one probability, which no "
        "threshold parts"
        for name in many
    ]


def _flips(task: TaskInfo, logits: Mapping[str, NDArray[np.floating]], variant: str, temperature: float) -> list[str]:
    """What 8 bits change at the thresholds, in a sentence."""
    fp32 = {"int8": "fp32", CASCADE: CASCADE_FP32}.get(variant, "")
    if fp32 not in logits:
        return []
    own, others = (decided(activate(logits[name], task.kind, temperature), task) for name in (variant, fp32))
    flips = int((own != others).any(axis=1).sum())
    return [f"at the thresholds {variant} decides otherwise than {fp32} on {flips} of {len(own)} evaluation rows"]
