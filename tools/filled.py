"""The verdict on accuracy by labels of the rows that differ alone, for `kdc verify --labelled`.

Reads the file that `kdc.tools.unlabelled` wrote and a person filled in, and the models' answers beside it. Labels of
all rows would give the same verdict: rows that both models answer alike add nothing to the difference.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import judge_drop
from kdc.artifact.contract.terms import Contract, Quality
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import InputError
from kdc.common.places import find
from kdc.common.progress import RowCounter
from kdc.pipeline.data.problems import nearest_name, show
from kdc.pipeline.data.units import connect
from kdc.pipeline.quality.comparison import Other, compare
from kdc.serving.bulk.inputs import Window, read_windows
from kdc.serving.engine.engine import Engine
from kdc.tools.answered import Answered, Ints, id_of
from kdc.tools.unlabelled import ID, LABEL

_NO_LABEL = -1  # in place of a label's place


def judged_by_labels(path: Path, engine: Engine, contract: Contract) -> Quality:
    """The student beside its teacher, by a filled file.

    Args:
        path: the filled file.
        engine: the artifact, loaded.
        contract: what is asked, with a `max_drop`.

    Raises:
        InputError: the file does not fit, or lacks labels that the verdict depends on.
        KdcError: the models' answers are damaged.
    """
    if contract.limits.max_drop is None:
        raise InputError("labels need a limit on the drop", given=path, remedy="say what must hold: --max-drop 1")
    answered = Answered.read(path)
    assert engine.manifest is not None
    if (answered.artifact, answered.variant) != (engine.manifest.sha256, engine.variant):
        raise InputError(
            "the labels are for the answers of another artifact",
            given=f"{path} is for {answered.variant} of {answered.artifact[:12]}, this is {engine.variant} of "
            f"{engine.manifest.sha256[:12]}",
            remedy="verify that artifact, or write the texts on which this one differs: --to-label",
        )
    labels = read_labels(path, engine.task, answered)
    worst, best = (quality_by(answered, labels, contract, empty_is_won=each) for each in (False, True))
    verdicts = {judge_drop(contract, worst), judge_drop(contract, best)}
    missing = len(np.unique(answered.texts[answered.differs & (labels == _NO_LABEL)]))
    if missing and verdicts not in ({"pass"}, {"fail"}):
        raise InputError(
            "texts that the verdict depends on have no label",
            given=f"{path}: {missing} of {len(answered.to_label)}; whatever their labels are, the difference is "
            f"{worst.difference:+.2f} to {best.difference:+.2f} points",
            remedy="label these too; a text that nobody can label may stay empty once the others settle the verdict",
        )
    is_lost = verdicts != {"fail"}
    if missing:
        with RowCounter() as counter:
            counter.say(f"{missing} texts have no label; the figures count them as {'lost' if is_lost else 'won'}")
    return worst if is_lost else best


def read_labels(path: Path, task: TaskInfo, answered: Answered) -> Ints:
    """The labels of a filled file, (rows,): places of labels; -1 for rows whose text has none.

    Raises:
        InputError: the file cannot be read, or holds something that is no label of a differing text.
    """
    lower = [label.casefold() for label in task.labels]
    places = dict(zip(lower, range(len(lower)), strict=True)) if len(set(lower)) == len(lower) else {}
    places |= {label: place for place, label in enumerate(task.labels)}
    numbers = answered.to_label
    rows = {id_of(number): place for place, number in enumerate(numbers.tolist())}
    found = np.full(len(numbers) + 1, _NO_LABEL)  # the last one is that of all other texts
    for window in (window for file in find(str(path)) for window in read_windows(file)):
        for line, name, label in _cells(window):
            where = f"{path}, line {line}"
            row, place = rows.get(name), places.get(label, places.get(label.casefold()))
            if row is None:
                remedy = "give back the file that --to-label wrote, with labels and nothing else changed"
                raise InputError("the file has a row that was not to be labelled", given=where, remedy=remedy)
            if not label:
                continue
            if place is None:
                remedy = f"one of {', '.join(task.labels[:20])}{nearest_name(label, task.labels)}"
                raise InputError("no such label", given=f"{show(label)} ({where})", remedy=remedy)
            if found[row] not in (_NO_LABEL, place):
                raise InputError("one text has two labels", given=where, remedy="keep one of them")
            found[row] = place
    if not len(numbers):
        return np.full(len(answered.texts), _NO_LABEL)
    row_of_text = np.minimum(np.searchsorted(numbers, answered.texts), len(numbers) - 1)
    return np.where(numbers[row_of_text] == answered.texts, found[row_of_text], _NO_LABEL)


def _cells(window: Window) -> list[tuple[int, str, str]]:
    """Line, id and label of each row.

    Raises:
        InputError: a row cannot be read, or the columns are missing.
    """
    if window.bad:
        first = window.bad[0]
        raise InputError(first.problem, given=f"{first.file}, line {first.line}", remedy="mend the row")
    named = {name.strip().partition(":")[0].casefold(): name for name in window.names}  # "label: bad | good"
    if not {ID, LABEL} <= set(named):
        given = f"{window.file} has {', '.join(map(show, window.names[:5])) or 'none'}"
        remedy = "save it as CSV in UTF-8, with commas between the columns and the header that --to-label wrote"
        raise InputError("there are no columns id and label", given=given, remedy=remedy)
    ids, labels = ([str(value or "").strip() for value in window.column(named[name])] for name in (ID, LABEL))
    return list(zip(window.lines, ids, labels, strict=True))


def quality_by(answered: Answered, labels: Ints, contract: Contract, *, empty_is_won: bool) -> Quality:
    """The difference, where of a differing row without a label the student is right, or the teacher is."""
    empty, alike = answered.differs & (labels == _NO_LABEL), ~answered.differs
    student = alike | (answered.student == labels) | (empty & empty_is_won)
    teacher = alike | (answered.teacher == labels) | (empty & (not empty_is_won))
    groups = connect(answered.texts, answered.sides if answered.sides.shape[1] else None)
    found = compare(
        _as_logits(student),
        Other("teacher", _as_logits(teacher)),
        np.zeros(len(labels)),
        "classification",
        "accuracy",
        contract=contract,
        groups=groups,
    )
    assert found is not None  # there is a limit
    return found.model_copy(update={"student": None, "teacher": None})  # of rows that have no label


def _as_logits(right: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(rows, 2), as of a model whose answer is class 0 if it is right."""
    return np.column_stack([right, ~right]).astype(np.float32)
