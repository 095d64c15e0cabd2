"""Answers a window: rows of similar length share parallel passes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common.errors import InputError
from kdc.common.records import other_delimiter
from kdc.serving.bulk.inputs import BadRow, Window
from kdc.serving.bulk.job import Job
from kdc.serving.bulk.outputs import Writer
from kdc.serving.engine.deciding import decided, in_words, sets_in_words
from kdc.serving.engine.engine import Engine, Text
from kdc.serving.engine.long_texts import Part
from kdc.serving.engine.tokenizing import is_blank, is_utf8

# Padded tokens of a pass (docs/benchmarks/serving.md).
_CPU_TOKENS, _GPU_TOKENS = 256, 16_384
_MANY_THREADS = 4  # the library is then as fast as the word table
LANES = 64  # at most one per thread


class Scorer:
    """Texts to probabilities, by an engine with `lanes=LANES`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._most = _CPU_TOKENS if engine.provider == CPU_PROVIDER else _GPU_TOKENS
        self._lanes = ThreadPoolExecutor(engine.lanes)

    def __call__(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Probabilities (rows, outputs), as from `Engine.predict`."""
        encodings = self._engine.encode(texts, beside=self._engine.threads >= _MANY_THREADS)
        return self._engine.activated(self._engine.through(encodings, self._side_by_side))

    def _side_by_side(self, engine: Engine, encodings: Sequence[Part]) -> NDArray[np.float32]:
        logits = np.zeros((len(encodings), engine.task.outputs), dtype=np.float32)

        def answer(rows: Sequence[int]) -> None:
            logits[rows] = engine.run_beside([encodings[row] for row in rows])

        list(self._lanes.map(answer, _batches(encodings, self._most)))
        return logits


def _batches(encodings: Sequence[Part], most: int) -> Iterator[list[int]]:
    """Longest rows first, so no lane ends alone with them."""
    order = sorted(range(len(encodings)), key=lambda row: -len(encodings[row]))
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * len(encodings[batch[0]]) > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def answer_window(scorer: Scorer, writer: Writer, window: Window, *, columns_seen: bool) -> tuple[Window, bytes]:
    good, texts = split_bad(window, writer.job, columns_seen=columns_seen)
    return good, writer.piece(good, _answers(scorer(texts), writer.job))


def split_bad(window: Window, job: Job, *, columns_seen: bool) -> tuple[Window, list[Text]]:
    """Move rows without a usable text to `bad`.

    Args:
        columns_seen: whether an earlier row had the text columns; a JSONL row without them is then a bad row.
    """
    names = job.text_columns
    absent = [name for name in names if name not in window.names]
    if absent and (window.is_table or not columns_seen) and (window.names or not window.bad):
        given = f"{window.file} has {', '.join(window.names[:20]) or 'none'}"
        remedy = other_delimiter(window.names) or "name the columns: --text COLUMN [--text-pair COLUMN]"
        raise InputError(f"no column {', '.join(absent)}", given=given, remedy=remedy)
    most = job.request.max_text_chars
    parts = zip(*(window.column(name) for name in names), strict=True)
    bad: list[BadRow] = []
    texts: list[Text] = []
    for line, row in zip(window.lines, parts, strict=True):
        problems = [_problem(name, value, most) for name, value in zip(names, row, strict=True)]
        if any(problems):
            bad.append(BadRow(window.file, line, next(filter(None, problems))))
        else:
            texts.append(row if len(row) == 2 else row[0])
    good = window.without(bad) if bad else window
    if good.bad and job.request.on_error != "skip":
        first = good.bad[0]
        remedy = "correct the row (the job then starts over), or skip bad rows: --on-error skip"
        raise InputError(first.problem, given=f"{first.file}, line {first.line}", remedy=remedy)
    return good, texts


def _problem(name: str, value: Any, most: int) -> str | None:
    if value is None or (isinstance(value, str) and is_blank(value)):
        return f"no text in column {name}"
    if not isinstance(value, str):
        return f"column {name} holds {type(value).__name__}, not text"
    if len(value) > most:
        return f"column {name} holds {len(value):,} characters, --max-text-chars {most} are allowed"
    return None if is_utf8(value) else f"column {name} is not valid UTF-8"


def _answers(scores: NDArray[np.float32], job: Job) -> dict[str, list[Any]]:
    task, columns = job.task, []
    best = scores.max(axis=1) if len(scores) else scores[:, 0]
    if task.traits.has_labels:
        gets = decided(scores, task)
        columns.append(in_words(gets, task))
        if task.traits.is_exclusive:  # a threshold may give the less probable class
            best = np.where(gets.any(axis=1), np.where(gets, scores, 0).max(axis=1), best)
    columns.append(best.tolist())
    if task.sets is not None:
        columns.append(sets_in_words(scores, task))
    if job.request.all_scores:
        columns += scores.T.tolist()
    return dict(zip(job.added_columns, columns, strict=True))
