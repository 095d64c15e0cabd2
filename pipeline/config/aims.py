"""Parses options on decisions, and checks that they fit the task."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdc.artifact.contract.rates import parse_bound
from kdc.artifact.decision import ABSTAINED
from kdc.artifact.manifest import TaskBase
from kdc.artifact.question import Question, misfit
from kdc.artifact.question_forms import read_questions
from kdc.common.errors import InputError
from kdc.pipeline.config.metrics import Slices

Measure = Literal["f1", "matthews", "precision", "recall", "fpr", "accuracy", "disagreement", "error", "fixed"]
_MOST_NAMED = 20  # in a message
_MOST_VALUES = 1000  # of a column with slices
_MEASURES_OF_LABELS = ("precision", "recall", "fpr")
_MEASURES_OF_ALL_ROWS = ("disagreement", "error")  # deferred rows included
_DEFER = re.compile(r"\s*(disagreement|error)\s*<=(.{1,50})", re.ASCII | re.IGNORECASE)
MOST_POINTS = 500  # thresholds; each takes 1 kB of the manifest
_HOW = (
    "write f1, matthews, precision>=0.95, recall>=0.99, fpr<=0.01 or a threshold such as 0.7, for one label "
    "LABEL:recall>=0.9"
)


@dataclass(frozen=True)
class Aim:
    label: str | None  # None: every label (multi-label), or the second class
    measure: Measure
    bound: float | None  # limit, or the threshold; None maximises the measure

    @property
    def is_bound(self) -> bool:
        """Whether the tuning set has to confirm it."""
        return self.measure in (*_MEASURES_OF_LABELS, *_MEASURES_OF_ALL_ROWS, "accuracy")

    @property
    def is_of_all_rows(self) -> bool:
        """Not of the answered rows."""
        return self.measure in _MEASURES_OF_ALL_ROWS

    @property
    def text(self) -> str:
        """Without the label; "fixed" for a threshold."""
        if self.bound is None or self.measure == "fixed":
            return self.measure
        is_most = self.measure == "fpr" or self.is_of_all_rows
        return f"{self.measure}{'<=' if is_most else '>='}{self.bound}"


def parse_aim(text: str) -> Aim:
    """Parse one `--aim`, or raise ValueError."""
    bound = parse_bound(text)
    if bound is not None and bound.measure in _MEASURES_OF_LABELS and bound.slice is None:
        return Aim(bound.label, bound.measure, bound.value)  # type: ignore[arg-type]
    label, _, threshold = text.rpartition(":")
    if (best := threshold.strip().lower()) in ("f1", "matthews"):
        return Aim(label or None, best, None)  # type: ignore[arg-type]
    return Aim(label or None, "fixed", _probability(threshold, f"{text!r} is no aim within 0 and 1; {_HOW}"))


def _probability(text: str, problem: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(problem) from None
    if not 0 <= value <= 1:
        raise ValueError(problem)
    return value


def aims_of(texts: Sequence[str], task: TaskBase) -> dict[str, Aim]:
    """Aims by label; up to `MOST_POINTS` labels of a multi-label task default to f1.

    Raises:
        InputError: an aim does not fit the task, or a label has two.
    """
    given = ", ".join(f"--aim {text}" for text in texts)
    is_many, is_two = task.traits.has_lists, task.traits.is_exclusive and len(task.labels) == 2
    if texts and not is_many and not is_two:
        what = "only the labels of a multi-label task and one of two classes can have thresholds"
        raise InputError(what, given=f"{given}; {_described(task)}", remedy="drop --aim")
    aims: dict[str, Aim] = {}
    for aim in sorted(map(parse_aim, texts), key=lambda aim: aim.label is not None):  # aims for all labels first
        labels = task.labels if is_many else task.labels[1:]
        for label in labels if aim.label is None else (aim.label,):
            if label not in task.labels:
                raise InputError("the aim names an unknown label", given=given, remedy=_one_of(task.labels))
            if label in aims and aims[label].label == aim.label:
                raise InputError("a label has two aims", given=given, remedy="one --aim for each label")
            aims[label] = aim
    if is_two and len(aims) > 1:
        named = {label: aim for label, aim in aims.items() if aim.label is not None}
        if len(named) > 1:
            raise InputError("one of two classes can have a threshold", given=given, remedy="aim at one label")
        aims = named
    if is_many and len(task.labels) <= MOST_POINTS:
        aims = {label: aims.get(label, Aim(None, "f1", None)) for label in task.labels}
    if len(aims) > MOST_POINTS:
        raise InputError(
            "too many labels for a threshold each",
            given=f"{given}; {len(aims)} labels, at most {MOST_POINTS}",
            remedy="aim at labels by name: --aim LABEL:recall>=0.9",
        )
    return aims


def parse_abstain(text: str) -> Aim:
    """Parse `--abstain`, or raise ValueError."""
    bound = parse_bound(text)
    if bound is not None and bound[:2] == (None, "accuracy") and bound.slice is None and 0 < bound.value < 1:
        return Aim(None, "accuracy", bound.value)
    problem = f"{text!r} does not say when to abstain; write accuracy>=0.98, or a probability such as 0.9"
    return Aim(None, "fixed", _probability(text, problem))


def parse_defer(text: str) -> Aim:
    """Parse one `--defer`, or raise ValueError."""
    problem = f"{text!r} does not say when to defer; write disagreement<=0.02 or error<=0.05"
    match = _DEFER.fullmatch(text)
    if match is None or not 0 < (value := _probability(match[2], problem)) < 1:
        raise ValueError(problem)
    return Aim(None, match[1].lower(), value)  # type: ignore[arg-type]


def abstain_of(
    abstain: str | None, aims: Sequence[str], task: TaskBase, *, defer: Sequence[str] = ()
) -> tuple[Aim, ...]:
    """What answered rows must keep; empty if all are answered. InputError if the options do not fit."""
    options = [f"--defer {text}" for text in defer] if abstain is None else [f"--abstain {abstain}"]
    if not options:
        return ()
    given, name = ", ".join(options), options[0].split()[0]
    if abstain is not None and defer:
        given = ", ".join([given, *(f"--defer {text}" for text in defer)])
        raise InputError("--abstain and --defer choose the same threshold", given=given, remedy="keep one of them")
    if not task.traits.is_exclusive:
        what = "only a task that gives each row one of several classes can abstain"
        remedy = f"drop {name}" + ("; a multi-label row may get no label" if task.traits.has_lists else "")
        raise InputError(what, given=f"{given}; {_described(task)}", remedy=remedy)
    if ABSTAINED in task.labels:
        what = f"a class has the name that stands for no answer: {ABSTAINED}"
        raise InputError(what, given=given, remedy="rename the class")
    if aims:
        what = f"a threshold of one class and {name} exclude each other"
        raise InputError(what, given=", ".join([given, *(f"--aim {aim}" for aim in aims)]), remedy="keep one of them")
    if abstain is not None:
        return (parse_abstain(abstain),)
    bounds = tuple(map(parse_defer, defer))
    if len({bound.measure for bound in bounds}) < len(bounds):
        raise InputError("a share has two bounds", given=given, remedy="one --defer for each share")
    return bounds


def check_sets(coverage: float | None, task: TaskBase) -> None:
    """InputError without three classes."""
    if coverage is not None and not task.can_have_sets:
        what = "only a task that gives each row one of three classes or more can have sets of labels"
        remedy = "drop operating.sets"
        if task.traits.is_exclusive:
            remedy += "; --abstain tells the rows that could be either"
        raise InputError(what, given=f"operating.sets={coverage}; {_described(task)}", remedy=remedy)


def questions_of(path: Path | None, task: TaskBase) -> tuple[Question, ...]:
    """InputError if the file is wrong, or its questions do not fit the task."""
    questions = () if path is None else read_questions(path)
    if wrong := misfit(questions, task.labels, task.traits, is_pair=task.is_pair):
        remedy = 'take the labels as options, or say which one a yes-or-no question asks for: "label": "LABEL"'
        raise InputError(wrong, given=f"--question {path}", remedy=remedy)
    return questions


def required_label(requirement: str, task: TaskBase) -> str | None:
    """None for a requirement on answered rows; InputError if it does not fit the task."""
    bound, given = parse_bound(requirement), f"--require {requirement}"
    assert bound is not None
    is_of_classes = task.traits.is_exclusive
    if not task.traits.has_labels:
        raise InputError("a regression decides nothing", given=f"{given}; {_described(task)}", remedy="drop --require")
    if bound.measure not in _MEASURES_OF_LABELS:
        if not is_of_classes or bound.label is not None:
            what = f"{bound.measure} is for tasks that answer one of several classes, and takes no label"
            remedy = "precision>=0.95, recall>=0.9 or fpr<=0.01 of a label: --require LABEL:recall>=0.9"
            raise InputError(what, given=f"{given}; {_described(task)}", remedy=remedy)
        return None
    if bound.label is None and not (is_of_classes and len(task.labels) == 2):
        example = shlex.quote(f"{task.labels[0]}:{requirement}")
        raise InputError(f"{bound.measure} needs a label", given=given, remedy=f"name it: --require {example}")
    label = task.labels[1] if bound.label is None else bound.label
    if label not in task.labels:
        raise InputError("there is no such label", given=given, remedy=_one_of(task.labels))
    return label


def check_slices(slices: Slices, requirements: Sequence[str] = ()) -> None:
    """InputError if a column has too many values, or a required slice no row."""
    known = {column: sorted(set(values)) for column, values in slices.items()}
    for column, values in known.items():
        if len(values) > _MOST_VALUES:
            given = f"--slice {column}: {len(values):,} values, at most {_MOST_VALUES:,}"
            remedy = "a column with fewer values, such as a language or a region"
            raise InputError("a column has too many values for slices", given=given, remedy=remedy)
    for bound in filter(None, map(parse_bound, requirements)):
        if bound.slice is not None and bound.slice[1] not in known.get(column := bound.slice[0], ()):
            remedy = _one_of(known[column]) if column in known else f"add --slice {shlex.quote(column)}"
            raise InputError("no evaluation row is in the required slice", given=bound.name, remedy=remedy)


def _described(task: TaskBase) -> str:
    classes = f" of {len(task.labels)} classes" if task.traits.is_exclusive else ""
    return f"{task.name} is a {task.kind} task{classes}"


def _one_of(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
    return f"one of {', '.join(labels[:_MOST_NAMED])}{more}"
