"""Answers one window of rows: rows of like length share forward passes, and passes run side by side."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from kdc.artifact.manifest import CPU_PROVIDER, TaskInfo
from kdc.common.errors import InputError
from kdc.serving.bulk.inputs import BadRow, Window
from kdc.serving.engine.engine import Engine, Text

# Most padded tokens of one forward pass: measured for the service, see docs/serving.md.
_CPU_TOKENS, _GPU_TOKENS = 256, 16_384
LANES = 64  # forward passes side by side; the engine takes no more than it has threads
_THRESHOLD = 0.5  # probability from which a multi-label task gives a label


@dataclass(frozen=True)
class Columns:
    """Which columns hold the texts, and which columns are added.

    Attributes:
        text: column of the (first) text.
        text_pair: column of the second text; None for tasks with one text a row.
        prefix: what the names of the new columns begin with.
        all_scores: whether each class has a column with its score.
    """

    text: str
    text_pair: str | None
    prefix: str
    all_scores: bool

    def added(self, task: TaskInfo) -> dict[str, str]:
        """The new columns by name, with the type of their values: "text", "texts" or "number"."""
        kind, labels = task.kind, task.labels if self.all_scores else ()
        types = {} if kind == "regression" else {"label": "texts" if kind == "multilabel" else "text"}
        types |= {"score": "number"} | {f"score_{label}": "number" for label in labels}
        return {self.prefix + name: type_name for name, type_name in types.items()}


class Scorer:
    """Turns texts into probabilities, with several forward passes side by side.

    Args:
        engine: loaded with `lanes=LANES`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._most = _CPU_TOKENS if engine.provider == CPU_PROVIDER else _GPU_TOKENS
        self._lanes = ThreadPoolExecutor(engine.lanes) if engine.lanes > 1 else None

    def __call__(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Probabilities (rows, outputs) in the order of the texts; numbers for regression. See `Engine.predict`."""
        encodings = self._engine.encode(texts)
        logits = np.zeros((len(encodings), self._engine.task.outputs), dtype=np.float32)
        batches = list(_batches(encodings, self._most))

        def answer(rows: Sequence[int]) -> None:
            run = self._engine.run if self._lanes is None else self._engine.run_beside
            logits[rows] = run([encodings[row] for row in rows])

        if self._lanes is None:
            for rows in batches:
                answer(rows)
        else:
            list(self._lanes.map(answer, batches))
        return self._engine.activated(logits)


def _batches(encodings: Sequence[Encoding], most: int) -> Iterator[list[int]]:
    """Batches of rows, the longest first, so that no lane works alone at the end on a long one."""
    order = sorted(range(len(encodings)), key=lambda row: -len(encodings[row]))
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * len(encodings[batch[0]]) > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def split_bad(window: Window, columns: Columns, *, skip_bad: bool, columns_seen: bool) -> tuple[Window, list[Text]]:
    """Move the rows that have no text to the window's bad ones.

    Args:
        window: as it was read.
        columns: which hold the texts.
        skip_bad: whether bad rows are left out; otherwise the first one is an error.
        columns_seen: whether earlier JSONL rows had the columns. Rows that lack them are then bad rows, and not
            another table.

    Returns:
        the window, and the texts of its good rows.

    Raises:
        InputError: the columns are missing, or a row is bad and bad rows are not skipped.
    """
    names = [columns.text] + ([columns.text_pair] if columns.text_pair is not None else [])
    absent = [name for name in names if name not in window.names]
    if absent and not columns_seen and (window.names or not window.bad):
        given = f"{window.file} has {', '.join(window.names[:20]) or 'none'}"
        remedy = "name the columns: --text COLUMN [--text-pair COLUMN]"
        raise InputError(f"no column {', '.join(absent)}", given=given, remedy=remedy)
    nothing = [None] * len(window.lines)
    parts = zip(*(window.column(name) if name in window.names else nothing for name in names), strict=True)
    bad: list[BadRow] = []
    texts: list[Text] = []
    for line, row in zip(window.lines, parts, strict=True):
        problem = next(filter(None, map(_problem, names, row)), None)
        if problem is not None:
            bad.append(BadRow(window.file, line, problem))
        else:
            texts.append(row if len(row) == 2 else row[0])
    good = window.without(bad) if bad else window
    if good.bad and not skip_bad:
        first = good.bad[0]
        remedy = "mend the row (the job then starts over), or go on without such rows: --on-error skip"
        raise InputError(first.problem, given=f"{first.file}, line {first.line}", remedy=remedy)
    return good, texts


def _problem(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return f"no text in column {name}"
    if not isinstance(value, str):
        return f"column {name} holds {type(value).__name__}, not text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"column {name} is not valid UTF-8"
    return None


def answers(scores: NDArray[np.float32], engine: Engine, columns: Columns) -> dict[str, list[Any]]:
    """The new columns: label and score of each row, and the score of each class if `columns.all_scores`.

    Args:
        scores: (rows, outputs), as `Scorer` gives them.
        engine: knows the task.
        columns: which columns are added.

    Returns:
        the values of each new column by its name.
    """
    kind, labels, prefix = engine.task.kind, engine.labels, columns.prefix
    values: dict[str, list[Any]] = {}
    if kind == "classification":
        values["label"] = [labels[place] for place in scores.argmax(axis=1)]
    elif kind == "multilabel":
        values["label"] = [[labels[place] for place in np.flatnonzero(row >= _THRESHOLD)] for row in scores]
    values["score"] = scores.max(axis=1).tolist() if len(scores) else []
    if columns.all_scores:
        values |= {f"score_{label}": scores[:, place].tolist() for place, label in enumerate(labels)}
    return {prefix + name: column for name, column in values.items()}
