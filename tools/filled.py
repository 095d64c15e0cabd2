"""`kdc verify --labelled`: the verdict on accuracy from labels of the differing rows alone. Other rows cannot change
the difference.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import judge_drop
from kdc.artifact.contract.terms import Contract, Quality
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import InputError
from kdc.common.files import write_whole
from kdc.common.places import find
from kdc.common.progress import Meter
from kdc.common.records import Dialect
from kdc.pipeline.data.overlap import connect
from kdc.pipeline.data.problems import nearest_name, show
from kdc.pipeline.quality.comparison import Other, compare
from kdc.serving.bulk.inputs import Window, read_windows
from kdc.serving.engine.engine import Engine
from kdc.tools.reference import arrays_of

Ints = NDArray[np.int64]
ID, LABEL = "id", "label"
_COLUMNS = ("texts", "sides", "student", "teacher")  # of `Answered`
NO_LABEL = -1
_ALL_ROWS = "label all rows: --data FILE"


@dataclass(frozen=True)
class Answered:
    texts: Ints  # (rows,) `fields.hash_of`
    sides: Ints  # (rows, 2) `fields.sides_of` a pair; (rows, 0) for single texts
    student: Ints  # (rows,) label numbers
    teacher: Ints  # (rows,) label numbers
    artifact: str  # the student's SHA-256
    variant: str

    @property
    def differs(self) -> NDArray[np.bool_]:
        return self.student != self.teacher

    @property
    def to_label(self) -> Ints:
        """Hashes of differing texts, in the order to label: random, but always the same."""
        return np.unique(self.texts[self.differs])

    def sample(self, most: int | None) -> Self:
        """The largest random sample with at most `most` differing texts.

        Texts are taken by rising hash, before the first differing text too many: the share stays unbiased (Haldane
        1945, Biometrika 33:222).
        """
        differing = self.to_label
        if most is None or len(differing) <= most:
            return self
        kept = self.texts < differing[most]
        return replace(self, **{name: getattr(self, name)[kept] for name in _COLUMNS})

    def write(self, path: Path) -> None:
        stream = io.BytesIO()
        columns: dict[str, Any] = {name: np.asarray(value) for name, value in vars(self).items()}
        np.savez_compressed(stream, **columns)
        write_whole(answers_beside(path), stream.getvalue())

    @classmethod
    def read(cls, path: Path) -> Self:
        """InputError: no such file. KdcError: it is damaged."""
        file = answers_beside(path)
        if not file.exists():
            remedy = "the filled file needs the name and the folder that --to-label gave it"
            raise InputError("the models' answers are not beside the labels", given=file, remedy=remedy)
        with arrays_of(file, "the models' answers", "write the texts to label again: --to-label") as kept:
            texts, sides, student, teacher = (kept[name].astype(np.int64, casting="safe") for name in _COLUMNS)
            if not texts.shape == student.shape == teacher.shape == sides.shape[:1] or sides.shape[1] not in (0, 2):
                raise ValueError("columns that do not fit together")
            return cls(texts, sides, student, teacher, str(kept["artifact"]), str(kept["variant"]))


def answers_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.answers.npz")


def id_of(number: int) -> str:
    """The letter keeps spreadsheets from reading a number."""
    return f"r{number & (2**64 - 1):016x}"


def check_task(task: TaskInfo, contract: Contract, given: Mapping[str, Any]) -> None:
    """Raise InputError for what differing rows alone cannot judge. `given` limits replace the artifact's."""
    if not task.traits.is_exclusive:
        what = "the rows that differ show only accuracy of single labels: other metrics count every row"
        raise InputError(what, given=f"a {task.kind} task", remedy=_ALL_ROWS)
    if contract.limits.require:
        required = f"--require {contract.limits.require[0]}"
        raise InputError("--require needs the labels of all rows", given=required, remedy=_ALL_ROWS)
    if task.metric != "accuracy" and contract.limits.max_drop is not None and "max_drop" not in given:
        what = f"the artifact's limit is one of {task.metric or 'another metric'}, which needs the labels of all rows"
        remedy = f"give a limit of accuracy: --max-drop POINTS; or {_ALL_ROWS}"
        raise InputError(what, given=f"max_drop {contract.limits.max_drop:g}", remedy=remedy)


def judged_by_labels(path: Path, engine: Engine, contract: Contract, how: Mapping[str, str | None]) -> Quality:
    """Judge by a filled file; `how` has its `delimiter` and `encoding`.

    Raises:
        InputError: there is no `max_drop`, the file does not fit, or it lacks labels that the verdict needs.
    """
    if contract.limits.max_drop is None:
        raise InputError("labels need a limit on the drop", given=path, remedy="set a limit: --max-drop 1")
    answered, manifest = Answered.read(path), engine.manifest
    assert manifest is not None
    if (answered.artifact, answered.variant) != (manifest.sha256, engine.variant):
        theirs, own = f"{answered.variant} of {answered.artifact[:12]}", f"{engine.variant} of {manifest.sha256[:12]}"
        given = f"{path} is for {theirs}, this is {own}"
        remedy = "verify that artifact, or write the texts on which this one differs: --to-label"
        raise InputError("the labels are for the answers of another artifact", given=given, remedy=remedy)
    labels = _read_labels(path, engine.task, answered, Dialect(how.get("delimiter"), how.get("encoding")))
    worst, best = (quality_by(answered, labels, contract, empty_is_won=is_won) for is_won in (False, True))
    verdicts = {judge_drop(contract, worst), judge_drop(contract, best)}
    missing = len(np.unique(answered.texts[answered.differs & (labels == NO_LABEL)]))
    if missing and verdicts not in ({"pass"}, {"fail"}):
        given = f"{path}: {missing} of {len(answered.to_label)}; the difference is "
        given += f"{worst.difference:+.2f} to {best.difference:+.2f} points, depending on them"
        remedy = "label these too; a text that nobody can label may stay empty once the others settle the verdict"
        raise InputError("texts that the verdict depends on have no label", given=given, remedy=remedy)
    is_lost = verdicts != {"fail"}
    if missing:
        with Meter() as counter:
            counter.say(f"{missing} texts have no label; the figures count them as {'lost' if is_lost else 'won'}")
    return worst if is_lost else best


def _read_labels(path: Path, task: TaskInfo, answered: Answered, dialect: Dialect) -> Ints:
    number_of = label_numbers(task.labels)
    numbers = {id_of(number): number for number in answered.to_label.tolist()}
    labels: dict[int, int] = {}
    for window in (window for file in find(str(path), dialect) for window in read_windows(file)):
        for line, name, label in cells(window):
            where = f"{path}, line {line}"
            if name not in numbers:
                remedy = "give back the file that --to-label wrote, with labels and nothing else changed"
                raise InputError("the file has a row that was not to be labelled", given=where, remedy=remedy)
            if not label:
                continue
            number = number_of(label, where)
            if labels.setdefault(numbers[name], number) != number:
                raise InputError("one text has two labels", given=where, remedy="keep one of them")
    return np.array([labels.get(text, NO_LABEL) for text in answered.texts.tolist()], dtype=np.int64)


def label_numbers(labels: Sequence[str]) -> Callable[[str, str], int]:
    """A function from a typed label, and where it stands, to its number. Unknown labels raise InputError."""
    numbers = {label: number for number, label in enumerate(labels)}
    lower = {label.casefold(): number for label, number in numbers.items()}
    if len(lower) == len(numbers):
        numbers = lower | numbers

    def number_of(label: str, where: str) -> int:
        number = numbers.get(label, numbers.get(label.casefold()))
        if number is None:
            remedy = f"one of {', '.join(labels[:20])}{nearest_name(label, labels)}"
            raise InputError("no such label", given=f"{show(label)} ({where})", remedy=remedy)
        return number

    return number_of


def heading(name: str) -> tuple[str, str]:
    """Name and note of a column such as "label: bad | good", which may begin with UTF-8's mark."""
    head, _, note = name.strip('\ufeff" ').partition(":")
    return head.strip().casefold(), note.strip()


def cells(window: Window) -> list[tuple[int, str, str]]:
    """Line, id and label of each row. A broken row or a missing column raises InputError."""
    refuse_bad(window)
    columns = {heading(name)[0]: name for name in window.names}
    if not {ID, LABEL} <= set(columns):
        given = f"{window.file} has {', '.join(map(show, window.names[:5])) or 'none'}"
        remedy = "save it as CSV in UTF-8, with commas between the columns and the header that kdc wrote"
        raise InputError("there are no columns id and label", given=given, remedy=remedy)
    ids, labels = ([str(value or "").strip() for value in window.column(columns[name])] for name in (ID, LABEL))
    return list(zip(window.lines, ids, labels, strict=True))


def refuse_bad(window: Window) -> None:
    if window.bad:
        first = window.bad[0]
        raise InputError(first.problem, given=f"{first.file}, line {first.line}", remedy="fix the row")


def quality_by(answered: Answered, labels: Ints, contract: Contract, *, empty_is_won: bool) -> Quality:
    """The student wins differing rows without a label if `empty_is_won`, else the teacher does."""
    empty, alike = answered.differs & (labels == NO_LABEL), ~answered.differs
    student = alike | (answered.student == labels) | (empty & empty_is_won)
    teacher = alike | (answered.teacher == labels) | (empty & (not empty_is_won))
    groups = connect(answered.texts, answered.sides if answered.sides.shape[1] else None)
    quality = compare(
        _as_logits(student),
        Other("teacher", _as_logits(teacher)),
        np.zeros(len(labels)),
        "classification",
        "accuracy",
        contract=contract,
        groups=groups,
    )
    return quality.model_copy(update={"student": None, "teacher": None})  # scores need all labels


def _as_logits(right: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.column_stack([right, ~right]).astype(np.float32)
