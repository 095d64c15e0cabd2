"""`kdc label --audit`: people label a random sample, and their labels judge the large model and a student.

`write_audit` writes a CSV to fill in, the same texts as Label Studio's tasks, and its labeling config. No file shows a
model's answer.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdc.common.errors import InputError
from kdc.common.files import write_whole
from kdc.common.places import find
from kdc.pipeline.data.fields import hash_of
from kdc.serving.bulk.inputs import Window, read_windows
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import is_blank
from kdc.tools.filled import ID, LABEL, NO_LABEL, Ints, cells, heading, id_of, label_numbers, refuse_bad
from kdc.tools.label.agreement import AuditResult, AuditWritten, agreement_of, gap_of, render_audit, self_agreement
from kdc.tools.label.spec import Spec
from kdc.tools.label.studio import Row, labeling_config, read_tasks
from kdc.tools.unlabelled import rows_for, table_to_fill

__all__ = ["Student", "open_student", "read_audit", "render_audit", "write_audit"]

_MARK = re.compile(
    r"(r[0-9a-f]{16}) ([\w-]+)"
)  # the sample's last id, and the student whose differing texts come first
_NO_STUDENT = "-"
_AFTER_ALL = "s"  # sorts after every id
_WRITE_AGAIN = "give back the file that --audit wrote, with labels and nothing else changed"


class Student(NamedTuple):
    name: str
    answers: Callable[[Sequence[str]], Ints]  # the spec's label numbers


def open_student(folder: Path, spec: Spec) -> Student:
    """Raises InputError if the artifact answers another question."""
    engine = Engine.load(folder)
    task, manifest = engine.task, engine.manifest
    outputs = spec.question.outputs(task.labels, task.traits) if task.traits.is_exclusive else None
    if outputs is None or len(task.labels) != len(spec.labels) or task.is_pair:
        given = f"{folder}: {task.kind}{' of pairs' * task.is_pair}, {', '.join(task.labels[:20])}"
        remedy = f"a classifier of single texts with the labels {', '.join(spec.labels[:20])}"
        raise InputError("the student answers another question", given=given, remedy=remedy)
    assert manifest is not None
    is_noul = spec.question.type == "noul"  # its output is for yes, label 1
    numbers = (np.arange(2) == outputs[0]).astype(np.int64) if is_noul else np.argsort(outputs)
    name = f"{manifest.sha256[:12]}-{engine.variant}"
    return Student(name, lambda texts: numbers[engine.logits(texts).argmax(-1)])


@dataclass(frozen=True)
class _Sample:
    ids: list[str]
    texts: list[str]
    model: Ints  # (texts,) label numbers
    skipped: int  # no text or answer


def _draw(out: Path, spec: Spec, *, most: int | None = None, last: str = _AFTER_ALL) -> _Sample:
    """The `most` texts with the lowest ids, or all up to the id `last`.

    Ids are hashes, salted by the question, so the sample is random, always the same, and independent of the rows'
    order.
    """
    number_of, question = label_numbers(spec.labels), spec.question.fingerprint
    lowest: dict[str, tuple[str, int]] = {}
    skipped = 0
    for window in (window for file in find(str(out)) for window in read_windows(file)):
        for line, text, label in _answered(window, spec.text):
            if is_blank(text) or not label:
                skipped += 1
            elif (identity := id_of(hash_of(question, text))) <= last:
                lowest.setdefault(identity, (text, number_of(label, f"{window.file}, line {line}")))
        if most is not None and len(lowest) > most:
            lowest = {identity: lowest[identity] for identity in sorted(lowest)[:most]}
            last = max(lowest)
    if not lowest:
        raise InputError("no text has an answer of the model", given=out, remedy="the file that kdc label wrote")
    ids = sorted(lowest)
    texts, numbers = zip(*(lowest[identity] for identity in ids), strict=True)
    return _Sample(ids, list(texts), np.array(numbers, dtype=np.int64), skipped)


def _answered(window: Window, text: str) -> list[tuple[int, str, str]]:
    refuse_bad(window)
    if missing := [name for name in (text, LABEL) if name not in window.names]:
        given = f"{window.file} has {', '.join(window.names[:20]) or 'none'}"
        raise InputError(f"no column {missing[0]}", given=given, remedy="the file that kdc label wrote")
    columns = ([str("" if value is None else value) for value in window.column(name)] for name in (text, LABEL))
    return list(zip(window.lines, *columns, strict=True))


def write_audit(
    out: Path, spec: Spec, rows: int, to: Path, student: Path | None = None, *, max_drop: float = 1.0
) -> AuditWritten:
    """Write a random sample of distinct answered texts for people to label.

    Args:
        out: the table that `kdc label` wrote.
        to: a .csv file; the Label Studio files lie beside it.
        student: an artifact's folder. Texts that it answers differently from the model come first.
        max_drop: points of accuracy; the limit for which labels are estimated.

    Raises:
        InputError: a file does not fit, or exists already.
    """
    if rows < 1 or to.suffix.lower() != ".csv":
        raise InputError("an audit wants a number of rows and a .csv file", given=f"{rows}, {to}", remedy="--audit 300")
    tasks, config = to.with_suffix(".labelstudio.json"), to.with_suffix(".labelstudio.xml")
    for path in (to, tasks, config):
        if path.exists():
            remedy = "another name: kdc replaces no file that may hold labels"
            raise InputError("the file is there already", given=path, remedy=remedy)
    sample = _draw(out, spec, most=rows)
    opened = None if student is None else open_student(student, spec)
    differs = np.zeros(len(sample.ids), dtype=bool)
    if opened is not None:
        differs = opened.answers(sample.texts) != sample.model
    order = np.argsort(~differs, kind="stable")
    listed = [(sample.ids[row], sample.texts[row]) for row in order]
    mark = f"{sample.ids[-1]} {_NO_STUDENT if opened is None else opened.name}"
    write_whole(to, table_to_fill(spec.labels, listed, is_pair=False, mark=mark))
    data = [{"text": text, "id": identity, "sample": mark} for identity, text in listed]
    document = [{"id": number, "data": each} for number, each in enumerate(data, start=1)]
    write_whole(tasks, json.dumps(document, ensure_ascii=False, indent=1))
    write_whole(config, labeling_config(spec))
    needed = None if opened is None else rows_for(float(differs.mean()), max_drop=max_drop, confidence=0.95)
    return AuditWritten(
        files=(str(to), str(tasks), str(config)),
        labels=spec.labels,
        rows=len(listed),
        skipped=sample.skipped,
        differing=None if opened is None else int(differs.sum()),
        max_drop=max_drop,
        rows_needed=needed,
        labels_needed=None if needed is None else math.ceil(needed * float(differs.mean())),
    )


def read_audit(
    out: Path, spec: Spec, filled: Path, student: Path | None = None, max_drop: float | None = None
) -> AuditResult:
    """Judge the large model, and a student, by people's labels. Further arguments are as in `write_audit`.

    Args:
        filled: the CSV with labels, or Label Studio's JSON export.
        max_drop: points of accuracy that the student may lose against the model; None gives no verdict.

    Raises:
        InputError: a file does not fit, a label is unknown, or a text has two.
    """
    if max_drop is not None and student is None:
        raise InputError("a limit on the drop needs a student", given=f"--max-drop {max_drop:g}", remedy="name it")
    mark, rows = (read_tasks if filled.suffix.lower() == ".json" else _table)(filled, spec)
    if (parts := _MARK.fullmatch(mark)) is None:
        raise InputError("the file does not say which sample it holds", given=filled, remedy=_WRITE_AGAIN)
    last, first_by = parts.groups()
    sample = _draw(out, spec, last=last)
    votes = _votes(rows, set(sample.ids))
    people = np.array([_majority(votes.get(identity, [])) for identity in sample.ids], dtype=np.int64)
    opened = None if student is None else open_student(student, spec)
    answers = None if opened is None else opened.answers(sample.texts)
    strata: Ints | None = np.zeros(len(people), dtype=np.int64)
    if first_by != _NO_STUDENT and (people == NO_LABEL).any():  # labelled in this student's order
        strata = None
        if opened is not None and answers is not None and opened.name == first_by:
            strata = (answers != sample.model).astype(np.int64)
    return AuditResult(
        labels=spec.labels,
        rows=len(people),
        labelled=int((people != NO_LABEL).sum()),
        tied=sum(bool(each) and _majority(each) == NO_LABEL for each in votes.values()),
        self_agreement=self_agreement(list(votes.values())),
        model=agreement_of(people, sample.model, strata, spec.labels),
        student=None if answers is None else agreement_of(people, answers, strata, spec.labels),
        gap=None if answers is None else gap_of(answers, sample.model, people, max_drop),
        without_labels=_lacking(people, strata),
    )


def _lacking(people: Ints, strata: Ints | None) -> str:
    if strata is None:
        return "the labels of all rows, or the student whose differing texts come first in the file"
    of_both = ("of texts that both models answer alike", "of texts that both models answer differently")
    empty = [number for number in np.unique(strata) if (people[strata == number] == NO_LABEL).all()]
    return f"labels {of_both[empty[0]] if strata.any() else ''}".strip() if empty else ""


def _table(path: Path, spec: Spec) -> tuple[str, list[Row]]:
    mark, rows, number_of = "", [], label_numbers(spec.labels)
    for window in (window for file in find(str(path)) for window in read_windows(file)):
        for line, identity, label in cells(window):
            where = f"{path}, line {line}"
            rows.append((identity, where, [number_of(label, where)] if label else []))
        mark = dict(heading(name) for name in window.names)[ID]
    return mark, rows


def _votes(rows: list[Row], known: set[str]) -> dict[str, list[int]]:
    votes: dict[str, list[int]] = {}
    for identity, where, numbers in rows:
        if identity not in known:
            what = "the file has a row that the sample lacks: it is of another table or question"
            raise InputError(what, given=where, remedy=_WRITE_AGAIN)
        if identity in votes:
            raise InputError("one text occurs twice", given=where, remedy="keep one row, with one label")
        votes[identity] = numbers
    return votes


def _majority(numbers: list[int]) -> int:
    """The commonest; `NO_LABEL` without labels, or for a tie."""
    first, *others = Counter(numbers).most_common(2) or [(NO_LABEL, 1)]
    return NO_LABEL if others and others[0][1] == first[1] else first[0]
