"""Checks rows, learns the labels, and stores good rows in `<split>.arrow`.

Memory holds one batch of texts, and hashes of all rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kdc.artifact.manifest import MAX_MANIFEST_BYTES
from kdc.artifact.task_kinds import KINDS, Kind
from kdc.common.errors import InputError
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.labelled import PEOPLE, Description, read_description
from kdc.pipeline.config.metrics import fitting
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.fields import check_text, group_of, hash_of, sides_of, slice_of, time_of
from kdc.pipeline.data.labels import NOT_TRAINED, LabelReader
from kdc.pipeline.data.overlap import Ints, Mask, Runs, connect, near_rows, runs_of
from kdc.pipeline.data.problems import FileProblem, Problems, RowProblem
from kdc.pipeline.data.readers import read_fields
from kdc.pipeline.data.sources import Columns, SplitSource, columns_for, for_split, is_glue, locate
from kdc.serving.engine.tokenizing import Text

SKIPPED = "skipped.jsonl"
_MOST_BROKEN = 0.001  # share skipped in a published file
_BATCH_ROWS = 1024
_BATCH_CHARACTERS = 4 << 20
_NOTHING_MORE = DataSettings()
FEWEST_PEOPLE = 100  # fewer settle no limit
_COLUMNS = {
    "text": pa.string(),
    "text_pair": pa.string(),
    "text_hash": pa.int64(),
    "first_hash": pa.int64(),
    "second_hash": pa.int64(),
    "group_hash": pa.int64(),
    "time": pa.float64(),
    "people": pa.bool_(),
    "source_row": pa.int64(),
    "slices": pa.list_(pa.string()),
}


@dataclass(frozen=True)
class CheckedRows:
    """A source split's good rows."""

    source: SplitSource
    table: pa.Table  # memory-mapped; only columns without gaps
    labels: LabelReader | None  # None if unlabelled
    skipped: int  # rows left out
    description: Description | None = None  # of a table that `kdc label` wrote

    def __len__(self) -> int:
        return self.table.num_rows

    def text_at(self, row: int) -> str:
        (text,) = texts_in(self.table.slice(row, 1))
        return text if isinstance(text, str) else " / ".join(text)

    def _texts(self) -> Iterator[Text]:
        return (text for batch in self.table.to_batches() for text in texts_in(batch))

    def _numbers(self, name: str) -> npt.NDArray[Any] | None:
        return self.table[name].to_numpy() if name in self.table.column_names else None

    @cached_property
    def texts(self) -> Ints:
        """Hash of each text or pair, (rows,)."""
        return self.table["text_hash"].to_numpy()

    @cached_property
    def groups(self) -> Ints | None:
        """Hashes, (rows,)."""
        return self._numbers("group_hash")

    @cached_property
    def times(self) -> npt.NDArray[np.float64] | None:
        """(rows,), or None."""
        return self._numbers("time")

    @cached_property
    def people(self) -> Mask:
        """Whether people labelled each row, (rows,)."""
        column = self._numbers("people")
        return np.zeros(len(self), dtype=np.bool_) if column is None else column

    def judging(self, size: int, people_judge: bool) -> Mask:
        """Rows that may judge models, (rows,): with people's labels, or without.

        Args:
            size: rows to evaluate on; people judge if they labelled as many, or `FEWEST_PEOPLE`.
        """
        enough = max(min(size, FEWEST_PEOPLE), 1)
        return self.people if people_judge and int(self.people.sum()) >= enough else ~self.people

    @cached_property
    def runs(self) -> Runs:
        return runs_of(self._texts())

    def runs_beside(self, others: "CheckedRows") -> Runs:
        """The short texts of `others` are runs here too."""
        short_texts = others.runs.short_texts
        if np.isin(short_texts, self.runs.short_texts).all():
            return self.runs
        return runs_of(self._texts(), short_texts)

    @cached_property
    def units(self) -> Ints:
        """(rows,); see `overlap.connect`."""
        first, second = self._numbers("first_hash"), self._numbers("second_hash")
        sides = None if first is None or second is None else np.stack([first, second], axis=1)
        return connect(self.texts, sides, self.groups, near_rows(self.runs))

    def classes(self, task: Task) -> Ints:
        """(rows,) to stratify by: a label's number, the rarest of several (len(labels) if none), 0 in regression."""
        if not task.traits.has_labels or self.labels is None:
            return np.zeros(len(self), dtype=np.int64)
        labels, frequency = self.table["label"], self.labels.counts
        if task.traits.has_lists:
            rows = (row for batch in self.table.to_batches() for row in batch.column("label").to_pylist())
            rarest = (min(row, key=lambda name: (frequency[name], name), default=None) for row in rows)
            labels = pa.array(rarest, pa.string())
        numbers = pc.index_in(labels, value_set=pa.array(task.labels, pa.string()))
        return pc.fill_null(numbers, len(task.labels)).to_numpy().astype(np.int64)


def texts_in(rows: pa.RecordBatch | pa.Table) -> list[Text]:
    first = rows.column("text").to_pylist()
    is_pair = "text_pair" in rows.schema.names
    return list(zip(first, rows.column("text_pair").to_pylist(), strict=True)) if is_pair else first


def read_all(data: DataSettings, task: Task, folder: Path, seed: int) -> tuple[Task, dict[str, CheckedRows]]:
    """`seed` decides the `pydocs` rows.

    Raises:
        InputError: lists the mistakes in all files.
    """
    problems = Problems(folder / SKIPPED if data.skip_invalid else None, "--skip-invalid leaves them out")
    train_source, *others = locate(data)
    if data.group is not None and train_source.format == "pydocs":
        raise InputError("pydocs has groups of its own", given=f"data.group={data.group}", remedy="leave it out")
    if data.time is not None and any(source.split == "eval" for source in others):
        raise InputError(
            "there is an evaluation split already, so data.time has nothing to choose",
            given=f"data.time={data.time}",
            remedy="give one of the two",
        )
    kind: Kind | None = None if data.kind == "auto" and data.task is None else task.kind
    labels = LabelReader(kind, task.labels, data.separator, is_glue(task.name))
    train = check_split(train_source, task, labels, folder, problems, for_split(train_source, others, data), seed)
    settled = _settle(task, labels, train, problems)
    splits = {"train": train}
    for source in others:
        if source.split == "unlabeled":
            splits[source.split] = check_split(source, settled, None, folder, problems, data, seed)
            continue
        is_learned = settled.labels != task.labels
        own = LabelReader(settled.kind, settled.labels, data.separator, is_glue(task.name), is_learned)
        splits[source.split] = check_split(source, settled, own, folder, problems, data, seed)
        # The reader also accepts declared names without training rows.
        for name in sorted(own.counts.keys() - labels.counts.keys() if labels.counts else ()):
            problem = RowProblem(NOT_TRAINED, repr(name), "add training rows of it, or remove these")
            problems.add(source, None, problem, own.counts[name])
    problems.raise_if_any()
    return settled, splits


def check_split(
    source: SplitSource,
    task: Task,
    labels: LabelReader | None,
    folder: Path,
    problems: Problems,
    data: DataSettings = _NOTHING_MORE,
    seed: int = 0,
) -> CheckedRows:
    """Store good rows; report the others."""
    before = len(problems)
    description = read_description(source.path) if labels is not None else None
    columns = columns_for(source, task, data)
    path = folder / f"{source.split}.arrow"
    write_stream(path, _batches(_good_rows(source, columns, labels, problems, seed), labels))
    with pa.memory_map(str(path)) as stream:
        table = pa.ipc.open_stream(stream).read_all()
    table = table.select([name for name in table.column_names if not table[name].null_count])
    skipped = problems.skipped[source.split]
    if problems.left_out is not None and skipped > data.most_invalid * (skipped + len(table)):
        first = problems.first_skipped[source.split]
        what, remedy = "too many invalid rows", "correct them, or allow a larger share: --set data.most_invalid=0.3"
        detail = f"{skipped:,} of {skipped + len(table):,}, and {data.most_invalid:.0%} may be; the first is {first}"
        problems.add(source, None, FileProblem(what, detail, remedy))
    elif problems.left_out is None and skipped > max(_MOST_BROKEN * len(table), 1):
        remedy = "the file is more broken than the published one: get it again"
        problems.add(source, None, RowProblem("row has too few columns", remedy=remedy), skipped)
    if not len(table) and len(problems) == before:
        problems.add(source, None, FileProblem("no rows", remedy="the file has no rows: check the path"))
    return CheckedRows(source, table, labels, skipped, description)


def _good_rows(
    source: SplitSource, columns: Columns, labels: LabelReader | None, problems: Problems, seed: int
) -> Iterator[dict[str, Any]]:
    rows = 0
    try:
        for line, fields in read_fields(source, columns, problems, seed=seed):
            try:
                row = _check_row(line, fields, columns, labels, text_first=problems.left_out is not None)
                rows += 1
                yield row | {"source_row": rows + problems.skipped[source.split]}
            except FileProblem:
                raise
            except RowProblem as problem:
                problems.add(source, line, problem)
    except FileProblem as problem:
        problems.add(source, problem.line, problem)


def _check_row(
    line: int, fields: Sequence[object], columns: Columns, labels: LabelReader | None, *, text_first: bool
) -> dict[str, Any]:
    """`text_first`: do not count labels of rows without text."""
    first, second, answer, group, time, how, *slices = fields
    texts = _check_texts(first, second, columns) if text_first else None
    label = labels.read(answer, line) if labels is not None else None
    text, pair, text_hash = texts or _check_texts(first, second, columns)
    good: dict[str, Any] = {"text": text, "text_pair": pair, "label": label, "text_hash": text_hash}
    if pair is not None:
        good["first_hash"], good["second_hash"] = sides_of(text, pair)
    if columns.group and (labels is not None or group is not None):
        good["group_hash"] = hash_of(group_of(group, columns.group[0]), None)
    if columns.time:
        good["time"] = time_of(time, columns.time[0])
    if columns.how:
        good["people"] = how == PEOPLE
    good["slices"] = list(map(slice_of, slices)) or None
    return good


def _check_texts(first: object, second: object, columns: Columns) -> tuple[str, str | None, int]:
    text = check_text(first, columns.text[0])
    pair = check_text(second, columns.text_pair[0]) if columns.text_pair else None
    return text, pair, hash_of(text, pair)


def _batches(rows: Iterator[dict[str, Any]], labels: LabelReader | None) -> Iterator[pa.RecordBatch]:
    def made() -> pa.RecordBatch:
        # Whether labels are lists is known only now.
        label = pa.list_(pa.string()) if labels is not None and labels.is_list else pa.string()
        return pa.RecordBatch.from_pylist(batch, schema=pa.schema(_COLUMNS | {"label": label}))

    batch: list[dict[str, Any]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row["text"]) + len(row["text_pair"] or "")
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield made()
            batch, characters = [], 0
    yield made()


def write_stream(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    first = next(batches)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
        for batch in chain([first], batches):
            if batch.num_rows:
                writer.write_batch(batch)


def _settle(task: Task, labels: LabelReader, train: CheckedRows, problems: Problems) -> Task:
    kind = labels.settle(train.source, problems)
    if len(train) and not len(problems) and labels.is_constant:
        what = "fewer than two different labels" if labels.is_list else "all rows have the same label"
        remedy = "training needs rows of at least two classes: check --label"
        problems.add(train.source, None, FileProblem(what, ", ".join(labels.counts), remedy))
    names = (task.labels or labels.sorted_names()) if KINDS[kind].has_labels else ()
    if (size := sum(len(name.encode()) for name in names)) > MAX_MANIFEST_BYTES // 2:
        problem = FileProblem("the label names are too long", f"{size:,} bytes in all", "shorten them")
        problems.add(train.source, None, problem)
    metrics = task.metrics if kind == task.kind else tuple(fitting(kind)[:2])
    return task.model_copy(update={"kind": kind, "labels": names, "metrics": metrics})
