"""Answers one window of rows: rows of like length share forward passes, and passes run side by side."""

from __future__ import annotations

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

# Padded tokens of a forward pass: measured for the service, see docs/serving.md.
_CPU_TOKENS, _GPU_TOKENS = 256, 16_384
LANES = 64  # asked for; the engine takes no more than it has threads
_THRESHOLD = 0.5  # of a label of a multi-label task


@dataclass(frozen=True)
class Columns:
    """Which columns hold the texts, and what the new ones are called.

    Attributes:
        text, text_pair: of the input; the second is None for single-text tasks.
        prefix: before the new names.
        all_scores: whether each class has its column.
    """

    text: str
    text_pair: str | None
    prefix: str
    all_scores: bool

    def added(self, task: TaskInfo) -> dict[str, str]:
        """New columns by name, with what they hold: "text", "texts" or "number"."""
        kind, labels = task.kind, task.labels if self.all_scores else ()
        found = {} if kind == "regression" else {"label": "texts" if kind == "multilabel" else "text"}
        found |= {"score": "number"} | {f"score_{label}": "number" for label in labels}
        return {self.prefix + name: what for name, what in found.items()}


class Scorer:
    """Texts to probabilities, with all cores.

    Args:
        engine: loaded with lanes.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._most = _CPU_TOKENS if engine.provider == CPU_PROVIDER else _GPU_TOKENS
        self._lanes = ThreadPoolExecutor(engine.lanes) if engine.lanes > 1 else None

    def __call__(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """(rows, outputs), in order; see `Engine.predict`."""
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
    """Rows by falling length, as many together as fit: the long ones first, so that no lane ends with one alone."""
    order = sorted(range(len(encodings)), key=lambda row: -len(encodings[row]))
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * len(encodings[batch[0]]) > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def split_bad(window: Window, columns: Columns, *, known: bool) -> tuple[Window, list[Text]]:
    """The window without the rows that have no text, which join `bad`, and the texts of the rest.

    Args:
        window: as it was read.
        columns: which hold the texts.
        known: the columns were met before: JSONL rows that lack them are bad rows, not another table.

    Raises:
        InputError: the columns are not there.
    """
    wanted = [columns.text] + ([columns.text_pair] if columns.text_pair is not None else [])
    absent = [name for name in wanted if name not in window.names]
    if absent and not known and (window.names or not window.bad):
        raise InputError(
            f"no column {', '.join(absent)}",
            given=f"{window.file} has {', '.join(window.names[:20]) or 'none'}",
            remedy="name the columns: --text COLUMN [--text-pair COLUMN]",
        )
    nothing = [None] * len(window.lines)
    parts = zip(*(window.column(name) if name in window.names else nothing for name in wanted), strict=True)
    bad: list[BadRow] = []
    texts: list[Text] = []
    for line, row in zip(window.lines, parts, strict=True):
        problem = next(filter(None, map(_problem, wanted, row)), None)
        if problem is not None:
            bad.append(BadRow(window.file, line, problem))
        else:
            texts.append(row if len(row) == 2 else row[0])
    return window.without(bad) if bad else window, texts


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
    """New columns: label and score of each row, and each class's score where it was asked for.

    Args:
        scores: (rows, outputs).
    """
    kind, labels, prefix = engine.task.kind, engine.labels, columns.prefix
    found: dict[str, list[Any]] = {}
    if kind == "classification":
        found["label"] = [labels[place] for place in scores.argmax(axis=1)]
    elif kind == "multilabel":
        found["label"] = [[labels[place] for place in np.flatnonzero(row >= _THRESHOLD)] for row in scores]
    found["score"] = scores.max(axis=1).tolist() if len(scores) else []
    if columns.all_scores:
        found |= {f"score_{label}": scores[:, place].tolist() for place, label in enumerate(labels)}
    return {prefix + name: values for name, values in found.items()}
