"""Choose decision thresholds on the tuning set, and measure them on the evaluation rows."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from kdc.artifact.contract.terms import Evidence
from kdc.artifact.decision import Abstention, LabelSets, OperatingPoint
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import BoundNotShown
from kdc.pipeline.config.aims import Aim, abstain_of, aims_of
from kdc.pipeline.config.metrics import Groups, Labels, Outputs
from kdc.pipeline.config.settings import OperatingSettings
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.evaluation.variants import Variants
from kdc.pipeline.graphs.exporting import tuning_slice
from kdc.pipeline.quality.decision_rates import having, measured
from kdc.pipeline.quality.judging import EvaluationAnswers
from kdc.pipeline.quality.operating import Chosen, choose, choose_answered, choose_at_least
from kdc.serving.engine.deciding import label_counts
from kdc.serving.engine.engine import activate

_MOST_TOLD = 5  # labels named one by one


class _Choice(NamedTuple):
    aim: Aim
    chosen: Chosen

    def fields(self, variant: str) -> dict[str, Any]:
        return {
            "threshold": self.chosen.threshold,
            "aim": self.aim.text,
            "reached": self.chosen.reached,
            "note": self.chosen.note,
            "variant": "" if self.aim.measure == "fixed" else variant,
        }


def decided_task(
    operating: OperatingSettings,
    data: PreparedData,
    variants: Variants,
    answers: EvaluationAnswers,
    *,
    variant: str,
    temperature: float,
    teacher: Outputs,
) -> tuple[TaskInfo, list[str]]:
    """The task with the requested thresholds and label sets, and notes for a person.

    Args:
        variant: whose probabilities set the thresholds.
        teacher: logits (rows, outputs) on the tuning set.

    Raises:
        BoundNotShown: no threshold is shown to keep a bound.
    """
    task = data.task.info()
    aims = aims_of(operating.aims, task)
    abstain = abstain_of(operating.abstain, operating.aims, task, defer=operating.defer)
    if not aims and not abstain and operating.sets is None:
        return task, []
    with variants.files(variant).engine(temperature=temperature) as engine:
        held_out = tuning_slice(data, engine)
    groups, labels = data.groups("tune"), held_out.labels
    tuning = activate(held_out.logits, task.kind, temperature)
    choices: dict[str, _Choice] = {}
    if operating.sets is not None:
        task = task.model_copy(update={"sets": _sets(operating.sets, tuning, labels, groups, variant)})
    if abstain:
        decision = _abstention(abstain, tuning, labels, teacher, groups=groups, variant=variant)
        shares = label_counts(tuning, task.model_copy(update={"abstain": decision})) / len(labels)
        decision = decision.model_copy(update={"shares": tuple(shares.round(6).tolist())})
        task = task.model_copy(update={"abstain": decision})
    elif aims:
        for label, aim in aims.items():
            column = task.labels.index(label)
            chosen = choose(tuning[:, column], having(labels, column), aim, operating.evidence, groups=groups)
            choices[label] = _Choice(aim, chosen)
        _refuse_unshown("--aim", choices, operating.evidence)
        points = [OperatingPoint(label=label, **choice.fields(variant)) for label, choice in choices.items()]
        task = task.model_copy(update={"points": tuple(points)})
    evaluation = activate(answers.students[variant], task.kind, temperature)
    task = measured(task, "tuning", tuning, labels, teacher=teacher)
    task = measured(task, "evaluation", evaluation, answers.labels, teacher=answers.teacher)
    return task, _unreached(task.points)


def _abstention(
    aims: Sequence[Aim], tuning: Outputs, labels: Labels, teacher: Outputs, *, groups: Groups, variant: str
) -> Abstention:
    """The strictest of the aims' thresholds, which keeps all aims."""
    confidence, answers, choices = tuning.max(axis=1), tuning.argmax(axis=1), list[_Choice]()
    for aim in aims:
        is_like_teacher = aim.measure == "disagreement"
        right = answers == (teacher.argmax(axis=1) if is_like_teacher else labels)
        choice = _Choice(aim, choose_answered(confidence, right, aim, groups=groups))
        _refuse_unshown("--defer" if aim.is_of_all_rows else "--abstain", {"answers": choice})
        choices.append(choice)
    strictest = max(choices, key=lambda choice: choice.chosen.threshold)
    return Abstention(**strictest.fields(variant) | {"aim": " and ".join(aim.text for aim in aims)})


def _sets(coverage: float, tuning: Outputs, labels: Labels, groups: Groups, variant: str) -> LabelSets:
    of_truth = tuning[np.arange(len(labels)), labels.astype(np.int64)]
    at_least = choose_at_least(of_truth, coverage, groups=groups)
    assert at_least is not None, "a run whose tuning set is too small for them ends before it trains"
    return LabelSets(coverage=coverage, at_least=at_least, variant=variant)


def _refuse_unshown(option: str, choices: Mapping[str, _Choice], evidence: Evidence = "interval") -> None:
    """Raise `BoundNotShown` if a label misses its own bound, or all miss a common one. Rare labels nearly always do."""
    bounds = {name: choice for name, choice in choices.items() if choice.aim.is_bound}
    kept = {choice.aim.label for choice in bounds.values() if choice.chosen.reached}  # None: the common bound
    missed = [name for name, choice in bounds.items() if choice.aim.label not in kept]
    if not missed or evidence == "point":
        return

    def ask(option: str, name: str, value: str) -> str:
        return f"{option} {shlex.quote(f'{name}:{value}' if option == '--aim' else value)}"

    named, more = {name: choices[name] for name in missed[:_MOST_TOLD]}, len(missed) - _MOST_TOLD
    possible = [
        ask(option, name, replace(aim, bound=float(chosen.proven)).text)
        for name, (aim, chosen) in named.items()
        if chosen.proven and 0 < float(chosen.proven) < 1
    ]
    by_hand = "--abstain" if option == "--defer" else option
    nearest = [ask(by_hand, name, repr(choice.chosen.threshold)) for name, choice in named.items()]
    remedies = [f"ask for less: {', '.join(possible)}" if possible else "more labelled rows"]
    remedies.append(f"or give a threshold yourself; the nearest is {', '.join(nearest)}")
    if possible and option == "--aim":
        remedies.append("or judge by the estimate alone: --set operating.evidence=point")
    given = "; ".join(f"{name}: {aim.text}: {chosen.note}" for name, (aim, chosen) in named.items())
    given += f"; and {more} more" if more > 0 else ""
    remedy = "; ".join(remedies) + " (nothing is trained again)"
    raise BoundNotShown("the tuning set confirms no threshold that keeps the bound", given=given, remedy=remedy)


def _unreached(points: Sequence[OperatingPoint]) -> list[str]:
    missed = [point for point in points if not point.reached]
    if len(missed) > _MOST_TOLD:
        names = ", ".join(point.label for point in missed[:_MOST_TOLD])
        return [f"{len(missed)} labels do not reach their aim on the tuning set, among them {names}"]
    return [f"{point.label}: {point.aim} is not reached on the tuning set: {point.note}" for point in missed]
