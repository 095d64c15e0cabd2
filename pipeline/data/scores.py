"""Reads a black-box teacher's answers to all rows.

The file has the task's text columns, or the data stage's ids as `row`. It has a probability column per label, or one
answer column: a label or a number.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdc.common.errors import InputError
from kdc.pipeline.config.labelled import HOW, PEOPLE
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import PreparedData, digest, texts_of
from kdc.pipeline.data.problems import FileProblem, Problems
from kdc.pipeline.data.readers import read_records
from kdc.pipeline.data.sources import SPLITS, file_source

Table = dict[str, list[Any]]

_ID = "row"
_SURE = 0.95  # a bare answer's probability
_LEAST = 1e-4  # the logit of 0 is infinite
_SUM_TOLERANCE = 0.02


def scores_of_rows(path: Path, data: PreparedData) -> NDArray[np.float32]:
    """The answers as logits (rows, outputs), in the order of row ids.

    Raises:
        InputError: unreadable, columns or rows missing, or invalid probabilities.
    """
    scores = Scores(path, data.task)
    logits, by_id = scores.by_key()
    parts, missing = [], []
    for split in filter(data.has, SPLITS):
        rows = data.rows(split)
        keys: list[Any] = rows["row"][:] if by_id else [digest(text) for text in texts_of(rows)]
        if split not in ("train", "unlabeled") and not scores.people.isdisjoint(keys):
            raise InputError(
                "the teacher's scores hold people's labels of rows that judge it: it would always be right",
                given=f"{path}, column {HOW}, {split} rows",
                remedy="let the model answer these texts too: kdc label without `label` in SPEC",
            )
        answers = [logits[key] for key in keys if key in logits]
        if len(answers) < len(keys):
            missing.append(f"{len(keys) - len(answers)} of {len(keys)} {split} rows")
        parts += answers
    if missing:
        raise InputError(
            "the teacher's scores do not cover all rows",
            given=f"{path} lacks {', '.join(missing)}",
            remedy="add their ids" if by_id else "add these texts; rows are matched by their exact text",
        )
    return np.asarray(parts, dtype=np.float32)


def _read_table(path: Path) -> Table:
    """Cells of CSV and TSV stay text, so "null" and "007" match the run's texts."""
    source, problems = file_source("scores", path, ""), Problems()
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    try:
        for record in read_records(source, problems):
            if len(set(record.names)) < len(record.names):
                twice = next(name for name in record.names if record.names.count(name) > 1)
                raise FileProblem("two columns have one name", repr(twice), "rename one")
            names.update(dict.fromkeys(record.names))
            rows.append(dict(zip(record.names, record.fields, strict=True)))
    except FileProblem as problem:
        problems.add(source, problem.line, problem)
    problems.raise_if_any()
    return {name: [row.get(name) for row in rows] for name in names}


class Scores:
    def __init__(self, path: Path, task: Task) -> None:
        self.path, self.task = path, task
        self.table = _read_table(path)
        self.people: set[Any] = set()  # keys of rows that people labelled, after `by_key`

    def by_key(self) -> tuple[dict[Any, NDArray[np.float64]], bool]:
        """Logits (outputs,) by row id or text fingerprint, and whether by id."""
        if not any(self.table.values()):
            remedy = "an answer for every row of the run"
            raise InputError("the teacher's scores have no rows", given=self.path, remedy=remedy)
        columns = [self.task.text] + ([self.task.text_pair] if self.task.text_pair else [])
        absent = [name for name in columns if name not in self.table]
        by_id = len(absent) == len(columns) and _ID in self.table
        if by_id:
            keys: list[Any] = self._ids()
        elif absent:
            raise self._wrong_columns(f"no column {', '.join(absent)}")
        else:
            texts = zip(*(map(str, self.table[name]) for name in columns), strict=True)
            keys = [digest(text) for text in texts]
        self.people = {key for key, how in zip(keys, self.table.get(HOW, ()), strict=False) if how == PEOPLE}
        logits: dict[Any, NDArray[np.float64]] = {}
        rows = zip(keys, self._logits(), strict=True)
        differs = [not np.array_equal(logits.setdefault(key, row), row) for key, row in rows]
        what = f"the teacher's scores give one {'row' if by_id else 'text'} two answers"
        self._refuse_rows(differs, what, "keep one")
        return logits, by_id

    def _ids(self) -> list[int]:
        values = self._numbers([_ID])[:, 0]
        wrong = (values != values.astype(np.int64)) | (values < 0)
        what = "the teacher's scores have ids that are no whole numbers"
        self._refuse_rows(wrong, what, "the ids of the data stage, from 0", f", column {_ID}")
        return values.astype(np.int64).tolist()

    def _logits(self) -> NDArray[np.float64]:
        task = self.task
        if not task.traits.has_labels:
            logits = (self._numbers([self._answer_column()]) - task.center) / task.spread
            too_large = np.abs(logits[:, 0]) > np.finfo(np.float32).max
            what = "a number of the teacher's scores is too large"
            self._refuse_rows(too_large, what, "numbers of the size of the labels")
            return logits
        columns = self._probability_columns()
        if columns:
            return self._from_probabilities(self._numbers(columns))
        name = self._answer_column()
        self._check_left_over(name)
        if task.traits.has_lists:
            raise self._wrong_columns(f"no column {', '.join(set(task.labels) - set(self.table))}")
        answers = [str(answer) for answer in self.table[name]]
        unknown = sorted(set(answers) - set(task.labels))
        if unknown:
            what = f"the column {name} of the teacher's scores holds unknown labels"
            raise InputError(what, given=", ".join(unknown[:5]), remedy=f"one of {', '.join(task.labels)}")
        classes = {label: number for number, label in enumerate(task.labels)}
        probabilities = np.full((len(answers), len(classes)), (1 - _SURE) / max(1, len(classes) - 1))
        probabilities[np.arange(len(answers)), [classes[answer] for answer in answers]] = _SURE
        return np.log(probabilities)

    def _probability_columns(self) -> list[str]:
        columns = []
        for label in self.task.labels:
            exact = [name for name in self.table if name == label]
            alike = exact or [name for name in self.table if name.casefold() == label.casefold()]
            if len(alike) != 1:
                return []
            columns += alike
        return columns if len(set(columns)) == len(columns) else []

    def _check_left_over(self, answer: str) -> None:
        """If other columns seem to hold probabilities, this one may be the true labels."""
        others = [name for name in self._others(answer) if 0 <= _as_numbers(self.table[name][:1])[0] <= 1]
        if all(any(label.casefold() in name.casefold() for name in others) for label in self.task.labels):
            raise self._wrong_columns(f"{answer}, and also what may be probabilities ({', '.join(others[:10])})")

    def _others(self, answer: str) -> list[str]:
        return [name for name in self.table if name not in (answer, _ID, self.task.text, self.task.text_pair)]

    def _from_probabilities(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        one_class = self.task.traits.is_exclusive
        wrong = ((values < 0) | (values > 1)).any(axis=1)
        if one_class:
            wrong |= np.abs(values.sum(axis=1) - 1) > _SUM_TOLERANCE
        remedy = "numbers from 0 to 1" + (", which sum to 1 over the labels" if one_class else "")
        self._refuse_rows(wrong, "the teacher's scores are no probabilities", remedy)
        inside = np.clip(values, _LEAST, 1 - _LEAST)
        return np.log(inside) if one_class else np.log(inside) - np.log1p(-inside)

    def _answer_column(self) -> str:
        answer = next((name for name in (self.task.label, "label", "score") if name in self.table), None)
        if answer is None:
            labels = ", ".join(self.task.labels) or "the numbers"
            raise self._wrong_columns(f"neither a column for each of {labels} nor {self.task.label}")
        alike = [name for name in self._others(answer) if self._may_answer(self.table[name])]
        if alike:
            raise self._wrong_columns(f"{', '.join([answer, *alike])} may all be the answer; keep one")
        return answer

    def _may_answer(self, values: list[Any]) -> bool:
        if not self.task.traits.has_labels:
            numbers = _as_numbers(values)
            counts = np.array_equal(numbers - numbers[0], np.arange(len(numbers)))
            return bool(np.isfinite(numbers).all()) and not counts
        return {str(value) for value in values} <= set(self.task.labels)

    def _numbers(self, names: list[str]) -> NDArray[np.float64]:
        values = np.column_stack([_as_numbers(self.table[name]) for name in names])
        wrong = ~np.isfinite(values).all(axis=1)
        what = "the teacher's scores are not all numbers"
        self._refuse_rows(wrong, what, "fill in every row", f", columns {', '.join(names)}")
        return values

    def _refuse_rows(self, wrong: ArrayLike, what: str, remedy: str, columns: str = "") -> None:
        rows = np.flatnonzero(wrong)
        if len(rows):
            raise InputError(what, given=f"{self.path}, row {rows[0] + 1}{columns}", remedy=remedy)

    def _wrong_columns(self, what: str) -> InputError:
        return InputError(
            f"wrong columns in the teacher's scores: {what}",
            given=f"{self.path} has {', '.join(list(self.table)[:20])}",
            remedy=f"the text columns or {_ID}; a column for each label with its probability, or one with the answer",
        )


def _as_numbers(values: list[Any]) -> NDArray[np.float64]:
    import pandas

    plain = [value if isinstance(value, (int, float, str)) else None for value in values]
    return pandas.to_numeric(pandas.Series(plain, dtype=object), errors="coerce").to_numpy(np.float64)
