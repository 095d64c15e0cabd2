"""A black box in a teacher's place: reads what it answered for each row, by the row's text or by its id.

The file (.csv, .tsv, .jsonl, .parquet) has the task's text columns, or in their place `row`: the ids that the data
stage gave. For each label it has a column with its probability, or one column with the answer alone: the label's name,
or regression's number. It must cover every row of the run.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.data.served import digest, texts_of
from kdc.pipeline.data.sources import SPLITS

if TYPE_CHECKING:
    import datasets

_ID = "row"
_SURE = 0.95  # what a bare answer counts as: it says nothing of how sure it is
_LEAST = 1e-4  # a probability of none would be an endless logit
_SUM_TOLERANCE = 0.02


def scores_of_rows(path: Path, data: PreparedData) -> NDArray[np.float32]:
    """The black box's answers as logits, by row id over all splits.

    Args:
        path: the file.
        data: the finished data stage.

    Returns:
        (rows, outputs) float32.

    Raises:
        InputError: the file cannot be read, lacks columns, holds what is no probability, or does not cover a row.
    """
    known, by_id = _read(path, data.task)
    nothing = np.zeros(data.task.outputs)
    parts, missing = [], {}
    for split in SPLITS:
        if not data.has(split):
            continue
        rows = data.rows(split)
        keys: list[Any] = rows["row"][:] if by_id else [digest(text) for text in texts_of(rows)]
        absent = sum(key not in known for key in keys)
        if absent:
            missing[split] = f"{absent} of {len(keys)} {split} rows"
        parts += [known.get(key, nothing) for key in keys]
    if missing:
        raise InputError(
            "the teacher's scores do not cover all rows",
            given=f"{path} lacks {', '.join(missing.values())}",
            remedy="add their ids" if by_id else "add those texts; a row is found by its text, letter by letter",
        )
    return np.asarray(parts, dtype=np.float32)


def _read(path: Path, task: Task) -> tuple[dict[Any, NDArray[np.float64]], bool]:
    """Logits by the fingerprint of the text, or by the row's id; and whether by id."""
    rows = _open(path)
    if len(rows) == 0:
        raise InputError("the teacher's scores have no rows", given=path, remedy="an answer for every row of the run")
    columns = [task.text] + ([task.text_pair] if task.text_pair else [])
    absent = [name for name in columns if name not in rows.column_names]
    by_id = len(absent) == len(columns) and _ID in rows.column_names
    if absent and not by_id:
        raise _wrong(f"no column {', '.join(absent)}", path, rows)
    keys = _ids(rows, path) if by_id else _fingerprints(rows, columns)
    found: dict[Any, NDArray[np.float64]] = {}
    for number, (key, row) in enumerate(zip(keys, _logits(rows, task, path), strict=True), 1):
        if not np.array_equal(found.setdefault(key, row), row):
            raise InputError(
                f"the teacher's scores say two things of one {'row' if by_id else 'text'}",
                given=f"{path}, row {number}",
                remedy="keep one",
            )
    return found, by_id


def _fingerprints(rows: datasets.Dataset, columns: list[str]) -> list[bytes]:
    texts = zip(*(map(str, rows[name][:]) for name in columns), strict=True)
    return [digest(text if len(text) > 1 else text[0]) for text in texts]


def _ids(rows: datasets.Dataset, path: Path) -> list[int]:
    values = _numbers(rows, [_ID], path)[:, 0]
    if (values != values.astype(np.int64)).any() or (values < 0).any():
        raise InputError(
            "the teacher's scores have ids that are no whole numbers",
            given=f"{path}, column {_ID}",
            remedy="the ids of the data stage, from 0",
        )
    return [int(value) for value in values]


def _open(path: Path) -> datasets.Dataset:
    import datasets

    kinds: dict[str, Any] = {
        ".csv": partial(_read_text, separator=","),
        ".tsv": partial(_read_text, separator="\t"),
        ".jsonl": datasets.Dataset.from_json,
        ".ndjson": datasets.Dataset.from_json,
        ".json": datasets.Dataset.from_json,
        ".parquet": datasets.Dataset.from_parquet,
    }
    if path.suffix not in kinds:
        raise InputError("unknown format of the teacher's scores", given=path, remedy=", ".join(kinds))
    if not path.is_file():
        raise InputError("there is no such file", given=path, remedy="check --teacher-scores")
    try:
        with tempfile.TemporaryDirectory(prefix="kdc-") as cache:  # else a copy of the texts stays in the user's
            return kinds[path.suffix](str(path), keep_in_memory=True, cache_dir=cache)
    except Exception as error:  # the readers behind raise whatever they meet
        raise InputError(f"cannot read the teacher's scores: {error}", given=path, remedy="write them again") from error


def _read_text(path: str, *, separator: str, **_: Any) -> datasets.Dataset:
    """All as text, as the rows themselves are read: else "null" would become nothing, and "007" a number."""
    import datasets
    import pandas

    frame = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def _logits(rows: datasets.Dataset, task: Task, path: Path) -> NDArray[np.float64]:
    if task.kind == "regression":
        name = _answer_column(rows, task, path)
        return _within_float32((_numbers(rows, [name], path) - task.center) / task.spread, path)
    columns = _probability_columns(rows, task)
    if columns:
        return _from_probabilities(_numbers(rows, columns, path), task, path)
    name = _answer_column(rows, task, path)
    _check_left_over(rows, task, name, path)
    places = {label: place for place, label in enumerate(task.labels)}
    if task.kind == "multilabel":
        raise _wrong(f"no column {', '.join(set(task.labels) - set(rows.column_names))}", path, rows)
    answers = [str(answer) for answer in rows[name][:]]
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


def _probability_columns(rows: datasets.Dataset, task: Task) -> list[str]:
    """The column of each label, whatever its case; none where a label has no column, or two."""
    found = []
    for label in task.labels:
        exact = [name for name in rows.column_names if name == label]
        alike = exact or [name for name in rows.column_names if name.casefold() == label.casefold()]
        if len(alike) != 1:
            return []
        found += alike
    return found if len(set(found)) == len(found) else []


def _check_left_over(rows: datasets.Dataset, task: Task, answer: str, path: Path) -> None:
    """Refuse an answer beside what looks like each label's probability under another name: the data's own label with
    scores added to it would be taken for the black box's answer."""
    known = (answer, _ID, task.text, task.text_pair)
    others = [name for name in rows.column_names if name not in known and _is_share(rows[0][name])]
    if all(any(label.casefold() in name.casefold() for name in others) for label in task.labels):
        raise _wrong(f"{answer}, and also what may be probabilities ({', '.join(others[:10])})", path, rows)


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
    kept = np.clip(values, _LEAST, 1 - _LEAST)
    return np.log(kept) if task.kind == "classification" else np.log(kept) - np.log1p(-kept)


def _answer_column(rows: datasets.Dataset, task: Task, path: Path) -> str:
    """The column with the answers, if only one can be it: beside the data's own labels nobody could tell which is."""
    answer = next((name for name in (task.label, "label", "score") if name in rows.column_names), None)
    if answer is None:
        named = ", ".join(task.labels) or "the numbers"
        raise _wrong(f"neither a column for each of {named} nor {task.label}", path, rows)
    others = [name for name in rows.column_names if name not in (answer, _ID, task.text, task.text_pair)]
    alike = [name for name in others if _may_answer(rows[name][:], task)]
    if alike:
        raise _wrong(f"{', '.join([answer, *alike])} may all be the answer; leave one", path, rows)
    return answer


def _may_answer(values: list[Any], task: Task) -> bool:
    """Whether a column holds labels of the task alone, or numbers alone where those are its labels; the number of the
    row is none."""
    if task.kind == "regression":
        numbers = _as_numbers(values)
        counts = np.array_equal(numbers - numbers[0], np.arange(len(numbers)))
        return bool(np.isfinite(numbers).all()) and not counts
    return {str(value) for value in values} <= set(task.labels)


def _as_numbers(values: list[Any]) -> NDArray[np.float64]:
    """What is no number, nor a text of one, is NaN."""
    import pandas

    plain = [value if isinstance(value, (int, float, str)) else None for value in values]
    return pandas.to_numeric(pandas.Series(plain, dtype=object), errors="coerce").to_numpy(np.float64)


def _numbers(rows: datasets.Dataset, names: list[str], path: Path) -> NDArray[np.float64]:
    values = np.column_stack([_as_numbers(rows[name][:]) for name in names])
    if not np.isfinite(values).all():
        row = np.flatnonzero(~np.isfinite(values).all(axis=1))[0] + 1
        raise InputError(
            "the teacher's scores are not all numbers",
            given=f"{path}, row {row}, columns {', '.join(names)}",
            remedy="fill in every row",
        )
    return values


def _wrong(what: str, path: Path, rows: datasets.Dataset) -> InputError:
    return InputError(
        f"wrong columns in the teacher's scores: {what}",
        given=f"{path} has {', '.join(rows.column_names[:20])}",
        remedy=f"the text columns or {_ID}; a column for each label with its probability, or one with the answer",
    )
