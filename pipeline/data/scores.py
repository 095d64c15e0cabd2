"""A black box in a teacher's place: reads what it answered for each row, by the row's text or by its id.

The file (.csv, .tsv, .jsonl, .parquet) has the task's text columns, or instead of them `row`: the ids that the data
stage gave. For each label it has a column with its probability, or one column with the answer alone: the label's name,
or regression's number. It must cover every row of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import PreparedData, digest, texts_of
from kdc.pipeline.data.problems import FileLog, FileProblem, Problems
from kdc.pipeline.data.readers import read_records
from kdc.pipeline.data.sources import FORMATS, SPLITS, file_source

Table = dict[str, list[Any]]  # the values of each column, by its name

_ID = "row"
_SURE = 0.95  # the probability of a bare answer, which does not say how sure it is
_LEAST = 1e-4  # probabilities are at least this, because the logit of 0 is infinite
_SUM_TOLERANCE = 0.02


def scores_of_rows(path: Path, data: PreparedData) -> NDArray[np.float32]:
    """Read the black box's answers as logits, in the order of the row ids over all splits.

    Args:
        path: the file.
        data: the finished data stage.

    Returns:
        (rows, outputs) float32.

    Raises:
        InputError: the file cannot be read, lacks columns, holds something that is no probability, or does not cover a
            row.
    """
    logits, by_id = _read(path, data.task)
    nothing = np.zeros(data.task.outputs)
    parts, missing = [], {}
    for split in SPLITS:
        if not data.has(split):
            continue
        rows = data.rows(split)
        keys: list[Any] = rows["row"][:] if by_id else [digest(text) for text in texts_of(rows)]
        absent = sum(key not in logits for key in keys)
        if absent:
            missing[split] = f"{absent} of {len(keys)} {split} rows"
        parts += [logits.get(key, nothing) for key in keys]
    if missing:
        raise InputError(
            "the teacher's scores do not cover all rows",
            given=f"{path} lacks {', '.join(missing.values())}",
            remedy="add their ids" if by_id else "add those texts; a row is found by its text, letter by letter",
        )
    return np.asarray(parts, dtype=np.float32)


def _read(path: Path, task: Task) -> tuple[dict[Any, NDArray[np.float64]], bool]:
    """Logits by the fingerprint of the text, or by the row's id; and whether they are by id."""
    table = _read_table(path)
    if not any(table.values()):
        raise InputError("the teacher's scores have no rows", given=path, remedy="an answer for every row of the run")
    columns = [task.text] + ([task.text_pair] if task.text_pair else [])
    absent = [name for name in columns if name not in table]
    by_id = len(absent) == len(columns) and _ID in table
    if absent and not by_id:
        raise _wrong(f"no column {', '.join(absent)}", path, table)
    keys = _ids(table, path) if by_id else _fingerprints(table, columns)
    logits: dict[Any, NDArray[np.float64]] = {}
    for number, (key, row) in enumerate(zip(keys, _logits(table, task, path), strict=True), 1):
        if not np.array_equal(logits.setdefault(key, row), row):
            raise InputError(
                f"the teacher's scores say two things of one {'row' if by_id else 'text'}",
                given=f"{path}, row {number}",
                remedy="keep one",
            )
    return logits, by_id


def _read_table(path: Path) -> Table:
    """Read all columns. Those of CSV and TSV are text, as the run's own rows are: "null" and "007" stay themselves."""
    if path.suffix not in FORMATS:
        raise InputError("unknown format of the teacher's scores", given=path, remedy=", ".join(FORMATS))
    if not path.is_file():
        raise InputError("there is no such file", given=path, remedy="check --teacher-scores")
    source, problems = file_source("scores", path, ""), Problems()
    log = FileLog(source.name, source.unit, problems)
    table: Table = {}
    count = 0
    try:
        for record in read_records(source, log):
            for name in record.names:
                if list(record.names).count(name) > 1:
                    raise FileProblem("two columns have one name", repr(name), "rename one")
                table.setdefault(name, [None] * count)  # JSONL may name a column late
            if record.fields is not None:
                count += 1
                row = dict(zip(record.names, record.fields, strict=True))
                for name, column in table.items():
                    column.append(row.get(name))
    except FileProblem as problem:
        log.mistake(problem.line, problem)
    problems.raise_if_any()
    return table


def _fingerprints(table: Table, columns: list[str]) -> list[bytes]:
    texts = zip(*(map(str, table[name]) for name in columns), strict=True)
    return [digest(text if len(text) > 1 else text[0]) for text in texts]


def _ids(table: Table, path: Path) -> list[int]:
    values = _numbers(table, [_ID], path)[:, 0]
    if (values != values.astype(np.int64)).any() or (values < 0).any():
        raise InputError(
            "the teacher's scores have ids that are no whole numbers",
            given=f"{path}, column {_ID}",
            remedy="the ids of the data stage, from 0",
        )
    return [int(value) for value in values]


def _logits(table: Table, task: Task, path: Path) -> NDArray[np.float64]:
    if task.kind == "regression":
        name = _answer_column(table, task, path)
        return _within_float32((_numbers(table, [name], path) - task.center) / task.spread, path)
    columns = _probability_columns(table, task)
    if columns:
        return _from_probabilities(_numbers(table, columns, path), task, path)
    name = _answer_column(table, task, path)
    _check_left_over(table, task, name, path)
    places = {label: place for place, label in enumerate(task.labels)}
    if task.kind == "multilabel":
        raise _wrong(f"no column {', '.join(set(task.labels) - set(table))}", path, table)
    answers = [str(answer) for answer in table[name]]
    unknown = sorted(set(answers) - set(places))
    if unknown:
        raise InputError(
            f"the column {name} of the teacher's scores holds unknown labels",
            given=", ".join(unknown[:5]),
            remedy=f"one of {', '.join(task.labels)}",
        )
    probabilities = np.full((len(answers), len(places)), (1 - _SURE) / max(1, len(places) - 1))
    probabilities[np.arange(len(answers)), [places[answer] for answer in answers]] = _SURE
    return np.log(probabilities)


def _probability_columns(table: Table, task: Task) -> list[str]:
    """The column of each label, whatever its case; none if a label has no column, or two."""
    columns = []
    for label in task.labels:
        exact = [name for name in table if name == label]
        alike = exact or [name for name in table if name.casefold() == label.casefold()]
        if len(alike) != 1:
            return []
        columns += alike
    return columns if len(set(columns)) == len(columns) else []


def _check_left_over(table: Table, task: Task, answer: str, path: Path) -> None:
    """Refuse a column of answers beside columns that seem to hold each label's probability under another name.

    Such a file is the data itself with scores added: its own label would be taken for the black box's answer.
    """
    known = (answer, _ID, task.text, task.text_pair)
    others = [name for name in table if name not in known and _is_share(table[name][0])]
    if all(any(label.casefold() in name.casefold() for name in others) for label in task.labels):
        raise _wrong(f"{answer}, and also what may be probabilities ({', '.join(others[:10])})", path, table)


def _is_share(value: object) -> bool:
    try:
        return 0 <= float(value) <= 1  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _within_float32(values: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    wrong = np.flatnonzero(np.abs(values).max(axis=1) > np.finfo(np.float32).max)
    if len(wrong):
        raise InputError(
            "a number of the teacher's scores is too large",
            given=f"{path}, row {wrong[0] + 1}",
            remedy="numbers of the size of the labels",
        )
    return values


def _from_probabilities(values: NDArray[np.float64], task: Task, path: Path) -> NDArray[np.float64]:
    wrong = ((values < 0) | (values > 1)).any(axis=1)
    if task.kind == "classification":
        wrong |= np.abs(values.sum(axis=1) - 1) > _SUM_TOLERANCE
    if wrong.any():
        raise InputError(
            "the teacher's scores are no probabilities",
            given=f"{path}, row {np.flatnonzero(wrong)[0] + 1}",
            remedy="numbers from 0 to 1" + (", which sum to 1 over the labels" * (task.kind == "classification")),
        )
    inside = np.clip(values, _LEAST, 1 - _LEAST)
    return np.log(inside) if task.kind == "classification" else np.log(inside) - np.log1p(-inside)


def _answer_column(table: Table, task: Task, path: Path) -> str:
    """The column with the answers. Refused if another one may be it too, such as the data's own labels."""
    answer = next((name for name in (task.label, "label", "score") if name in table), None)
    if answer is None:
        labels = ", ".join(task.labels) or "the numbers"
        raise _wrong(f"neither a column for each of {labels} nor {task.label}", path, table)
    others = [name for name in table if name not in (answer, _ID, task.text, task.text_pair)]
    alike = [name for name in others if _may_answer(table[name], task)]
    if alike:
        raise _wrong(f"{', '.join([answer, *alike])} may all be the answer; leave one", path, table)
    return answer


def _may_answer(values: list[Any], task: Task) -> bool:
    """Whether a column holds nothing but the task's labels, or numbers for regression. Row numbers do not count."""
    if task.kind == "regression":
        numbers = _as_numbers(values)
        counts = np.array_equal(numbers - numbers[0], np.arange(len(numbers)))
        return bool(np.isfinite(numbers).all()) and not counts
    return {str(value) for value in values} <= set(task.labels)


def _as_numbers(values: list[Any]) -> NDArray[np.float64]:
    """Numbers, also those that are written as text; NaN for everything else."""
    import pandas

    plain = [value if isinstance(value, (int, float, str)) else None for value in values]
    return pandas.to_numeric(pandas.Series(plain, dtype=object), errors="coerce").to_numpy(np.float64)


def _numbers(table: Table, names: list[str], path: Path) -> NDArray[np.float64]:
    values = np.column_stack([_as_numbers(table[name]) for name in names])
    if not np.isfinite(values).all():
        row = np.flatnonzero(~np.isfinite(values).all(axis=1))[0] + 1
        raise InputError(
            "the teacher's scores are not all numbers",
            given=f"{path}, row {row}, columns {', '.join(names)}",
            remedy="fill in every row",
        )
    return values


def _wrong(what: str, path: Path, table: Table) -> InputError:
    return InputError(
        f"wrong columns in the teacher's scores: {what}",
        given=f"{path} has {', '.join(list(table)[:20])}",
        remedy=f"the text columns or {_ID}; a column for each label with its probability, or one with the answer",
    )
