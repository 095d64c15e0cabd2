"""The table that `kdc label` reads, and OUT."""

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from kdc.artifact.manifest import TaskInfo
from kdc.artifact.question_forms import description_of
from kdc.common.errors import InputError, without_secrets
from kdc.common.files import write_whole
from kdc.common.frozen import Frozen
from kdc.common.places import STANDARD, File, whole_file_at
from kdc.common.records import USUAL, Dialect
from kdc.serving.bulk.inputs import Window, read_all
from kdc.serving.bulk.job import Job
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.request import PredictRequest
from kdc.serving.bulk.windows import split_bad
from kdc.tools.label.source import Answer
from kdc.tools.label.spec import Spec

HOW = "how"
_BARE = 0.95  # a bare answer's probability, as in `--teacher-scores`


class _LabelJob(Job):
    @property
    def added_columns(self) -> dict[str, str]:
        return {"label": "text"} | dict.fromkeys(self.task.labels, "number") | {HOW: "text"}


class Row(NamedTuple):
    file: str
    line: int
    text: str
    person: Answer | None  # a person's label


def person(label: str, labels: Sequence[str]) -> Answer:
    return Answer(tuple(float(name == label) for name in labels), "people")


class Table:
    """Input and output. Unusable options, files or column names raise InputError."""

    def __init__(
        self, spec: Spec, source: str, output: str, *, on_error: str = "stop", dialect: Dialect = USUAL
    ) -> None:
        if STANDARD in (source, output):
            what = "kdc label reads its input twice, and keeps a ledger beside its output"
            raise InputError(what, given=STANDARD, remedy="name files")
        self.spec, self.output = spec, output
        request = PredictRequest(
            artifact=Path(), source=source, output=output, text=spec.text, on_error=on_error, **vars(dialect)
        )
        files = request.check()
        task = TaskInfo(name="label", kind="classification", text=spec.text, labels=spec.labels)
        self._job = _LabelJob(request, files, task, {})
        clash = sorted({spec.text} & set(self._job.added_columns))
        if clash:
            what = "the text's column has the name of a column that is added"
            raise InputError(what, given=clash[0], remedy="rename the column, or the label")
        self.bytes, self.done = sum(file.size for file in files), 0

    @property
    def files(self) -> list[File]:
        return self._job.files

    def read(self) -> Iterator[list[Row]]:
        """All rows with a text, window by window. `done` tells the bytes read so far.

        Raises:
            InputError: a column is missing, a row has no text (with `on_error` "stop"), or a label is unknown.
        """
        seen = False
        for window, done in read_all(self.files):
            self.done = done
            good, texts = split_bad(window, self._job, columns_seen=seen)
            seen = seen or bool(texts)
            rows = zip(good.lines, texts, self._people(good), strict=True)
            yield [Row(good.file, line, str(text), person) for line, text, person in rows]

    def _people(self, window: Window) -> list[Answer | None]:
        column, labels = self.spec.label, set(self.spec.labels)
        if column is None or not window.lines:
            return [None] * len(window.lines)
        if column not in window.names:
            given = f"{window.file} has {', '.join(window.names[:20])}"
            raise InputError(f"no column {column} with people's labels", given=given, remedy="correct `label` in SPEC")
        people = ["" if value is None else str(value).strip() for value in window.column(column)]
        for line, label in zip(window.lines, people, strict=True):
            if label and label not in labels:
                given = f"{label[:100]!r} in {window.file}, line {line}"
                remedy = f"one of {', '.join(self.spec.labels[:20])}, or nothing"
                raise InputError("a person's label is none of the question's", given=given, remedy=remedy)
        return [person(label, self.spec.labels) if label else None for label in people]

    def sample(self, rows: int | None) -> Callable[[str], bool]:
        """Gives a function: whether a text is in a random sample, the same each time."""
        if rows is None:
            return lambda _: True
        heap: list[int] = []  # lowest hashes, negated
        kept: set[int] = set()
        for part in self.read():
            for row in part:
                number = -self._number(row.text)
                if number in kept:
                    continue
                if len(heap) < rows:
                    heapq.heappush(heap, number)
                elif number > heap[0]:
                    kept.discard(heapq.heapreplace(heap, number))
                else:
                    continue
                kept.add(number)
        return lambda text: -self._number(text) in kept

    @cached_property
    def _salt(self) -> bytes:
        return bytes.fromhex(self.spec.question.fingerprint)[:16]

    def _number(self, text: str) -> int:
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=self._salt).digest(), "big")

    def write(self, find: Callable[[Row], Answer | None], parts: Iterable[list[Row]] | None = None) -> int:
        """Write the texts of `parts` (None: of `read`) that have an answer; returns their number."""
        writer, count = Writer(self._job), 0

        def pieces() -> Iterator[bytes]:
            nonlocal count
            for part in self.read() if parts is None else parts:
                answered = [(row, answer) for row in part if (answer := find(row)) is not None]
                count += len(answered)
                yield writer.piece(self._window([row for row, _ in answered]), self._columns([a for _, a in answered]))

        writer.check(self._window([]))
        with whole_file_at(self.output) as stream:
            writer.join(pieces(), stream)
        return count

    def _window(self, rows: Sequence[Row]) -> Window:
        name, file = self.spec.text, rows[0].file if rows else ""
        return Window(file, [name], [{name: row.text} for row in rows], None, [row.line for row in rows])

    def _columns(self, answers: Sequence[Answer]) -> dict[str, list[Any]]:
        labels = self.spec.labels
        columns: dict[str, list[Any]] = {"label": [answer.label(labels) for answer in answers]}
        shares = [_softened(answer) for answer in answers]
        columns |= {label: [row[number] for row in shares] for number, label in enumerate(labels)}
        return columns | {HOW: [answer.how for answer in answers]}


def _softened(answer: Answer) -> tuple[float, ...]:
    """A bare answer gets the probabilities that `--teacher-scores` gives."""
    if answer.how != "bare":
        return answer.probabilities
    others = (1 - _BARE) / (len(answer.probabilities) - 1)
    return tuple(others + p * (_BARE - others) for p in answer.probabilities)


def describe(output: str, spec: Spec, facts: Frozen) -> None:
    """Write what `kdc compress --train OUT` reads: the column of texts and the question."""
    document = {
        "endpoint": without_secrets(spec.source.url),
        "kind": spec.source.kind,
        "model": spec.source.model,
        "text": spec.text,
        "question": spec.question.model_dump(mode="json"),
        **facts.model_dump(mode="json"),
    }
    write_whole(description_of(output), json.dumps(document, indent=2, ensure_ascii=False))
