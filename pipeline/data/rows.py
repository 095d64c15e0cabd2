"""Checks the rows of every split, learns the task's labels from them, and keeps the good rows in a file.

No more than one batch of texts is in memory. Of every row, two integers stay there: a hash of its text and one of its
group.

Writes: `<split>.arrow` in a folder of the caller (an Arrow stream with text, text_pair and label as strings).
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdc.artifact.manifest import MAX_MANIFEST_BYTES, Kind
from kdc.pipeline.config.tasks import Task, custom_task
from kdc.pipeline.data.labels import LabelReader
from kdc.pipeline.data.problems import FileLog, FileProblem, Problems, RowProblem, is_nan
from kdc.pipeline.data.readers import Row, read_rows
from kdc.pipeline.data.slices import Ints
from kdc.pipeline.data.sources import Columns, Source, SplitSource, columns_of, is_glue, locate

_MOST_BROKEN = 0.001  # share of rows that may be left out of a file known to be broken
_BATCH_ROWS = 1024
_BATCH_CHARACTERS = 4 << 20

_Good = tuple[str, str | None, str | list[str] | None]  # a good row: text, second text, label


@dataclass(frozen=True)
class CheckedRows:
    """The good rows of one split of the source.

    Attributes:
        path: the file that holds them.
        texts: (rows,) hash of each row's text or pair.
        groups: (rows,) hash of each row's group; None without a group column.
        labels: what the label column holds; None for unlabelled rows.
        skipped: rows left out because the published file is known to be broken there.
    """

    path: Path
    texts: Ints
    groups: Ints | None
    labels: LabelReader | None
    skipped: int

    def __len__(self) -> int:
        return len(self.texts)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows again, in order."""
        with pa.memory_map(str(self.path)) as stream, pa.ipc.open_stream(stream) as reader:
            yield from reader

    def classes(self, task: Task) -> Ints:
        """What to stratify by.

        Returns:
            (rows,) the place of each row's label among the task's labels; 0 for regression. For a multi-label row it is
            the place of its rarest label, and the number of labels if it has none.
        """
        if task.kind == "regression":
            return np.zeros(len(self), dtype=np.int64)
        frequency = self.labels.counts if self.labels is not None else {}
        parts = []
        for batch in self.batches():
            labels = batch.column("label")
            if task.kind == "multilabel":
                rows = labels.to_pylist()
                rarest = [min(row, key=lambda name: (frequency[name], name), default=None) for row in rows]
                labels = pa.array(rarest, pa.string())
            places = pc.index_in(labels, value_set=pa.array(task.labels, pa.string()))
            parts.append(pc.fill_null(places, len(task.labels)).to_numpy(zero_copy_only=False).astype(np.int64))
        return np.concatenate(parts)


def read_all(source: Source, task: Task, folder: Path, seed: int) -> tuple[Task, dict[str, CheckedRows]]:
    """Read and check every split of a source.

    Args:
        source: where the rows are.
        task: its columns, kind and (if they are known) label names.
        folder: for the files with the checked rows.
        seed: of the built-in task `pydocs`.

    Returns:
        the task with kind and label names settled by the training rows, and the splits by name.

    Raises:
        InputError: lists the mistakes in all files.
        KdcError: the hub cannot be reached.
    """
    problems = Problems()
    train_source, *others = locate(source)
    group = "group" if train_source.format == "pydocs" else source.group
    labels = _label_reader(task, None if source.infer_kind else task.kind, source.separator)
    train, log = _check_split(train_source, task, labels, folder, problems, group=group, seed=seed)
    settled = _settle(task, labels, train, log)
    splits = {"train": train}
    for other in others:
        own = None
        if other.split != "unlabeled":
            own = _label_reader(settled, settled.kind, source.separator, learned=settled.labels != task.labels)
        splits[other.split], log = _check_split(other, settled, own, folder, problems, seed=seed)
        if own is not None:
            _check_evaluation(own, labels, log)
    problems.raise_if_any()
    return settled, splits


def read_split(split: SplitSource, task: Task, folder: Path, *, separator: str | None) -> CheckedRows:
    """Read and check one labelled split of a task whose labels are known.

    Raises:
        InputError: lists the mistakes.
    """
    problems = Problems()
    rows, _ = _check_split(split, task, _label_reader(task, task.kind, separator), folder, problems, seed=0)
    problems.raise_if_any()
    return rows


def _label_reader(task: Task, kind: Kind | None, separator: str | None, *, learned: bool = False) -> LabelReader:
    glue = is_glue(task.name)
    return LabelReader(kind, task.labels, separator=separator, is_glue=glue, learned=learned)


def _check_split(
    split: SplitSource,
    task: Task,
    labels: LabelReader | None,
    folder: Path,
    problems: Problems,
    *,
    seed: int,
    group: str | None = None,
) -> tuple[CheckedRows, FileLog]:
    log = FileLog(split.name, split.unit, problems)
    before = len(problems)
    columns = columns_of(task, labeled=labels is not None, group=group)
    path = folder / f"{split.split}.arrow"
    texts, groups = _keep_good(read_rows(split, columns, log, seed=seed), columns, labels, path, log)
    if log.skipped > max(_MOST_BROKEN * len(texts), 1):
        remedy = "the file is more broken than the published one: get it again"
        log.mistake(None, RowProblem("row has too few columns", remedy=remedy), log.skipped)
    if not len(texts) and len(problems) == before:
        log.mistake(None, FileProblem("no rows", remedy="the file has a header at most: check the path"))
    return CheckedRows(path, texts, groups, labels, log.skipped), log


def _keep_good(
    rows: Iterable[Row], columns: Columns, labels: LabelReader | None, path: Path, log: FileLog
) -> tuple[Ints, Ints | None]:
    """Write the good rows to `path`. Returns the hashes of their texts, and of their groups if there are any."""
    texts, groups = array("q"), array("q")

    def good_rows() -> Iterator[_Good]:
        try:
            for row in rows:
                try:
                    # The label is read first, so that a row with a wrong text still tells that its label exists.
                    label = labels.read(row.label, row.line) if labels is not None else None
                    text = _check_text(row.text, columns.text[0])
                    pair = _check_text(row.text_pair, columns.text_pair[0]) if columns.text_pair else None
                    key = _hash(text, pair)
                except FileProblem:
                    raise
                except RowProblem as problem:
                    log.mistake(row.line, problem)
                    continue
                texts.append(key)
                if columns.group:
                    groups.append(_hash(str(row.group), None))
                yield text, pair, label
        except FileProblem as problem:
            log.mistake(problem.line, problem)

    _write_rows(path, good_rows(), is_pair=bool(columns.text_pair), labels=labels)
    return np.array(texts, dtype=np.int64), np.array(groups, dtype=np.int64) if columns.group else None


def _write_rows(path: Path, rows: Iterable[_Good], *, is_pair: bool, labels: LabelReader | None) -> None:
    writer: Any = None
    with pa.OSFile(str(path), "wb") as sink:
        for batch in _batches(rows):
            types = {"text": pa.string()}
            if is_pair:
                types["text_pair"] = pa.string()
            if labels is not None:  # whether labels are lists is known by now, since rows have been read
                types["label"] = pa.list_(pa.string()) if labels.is_list else pa.string()
            columns = dict(zip(("text", "text_pair", "label"), zip(*batch, strict=True), strict=True)) if batch else {}
            arrays = [pa.array(columns.get(name, ()), kind) for name, kind in types.items()]
            record_batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(types))
            if writer is None:
                writer = pa.ipc.new_stream(sink, record_batch.schema)
            writer.write_batch(record_batch)
        writer.close()


def _batches(rows: Iterable[_Good]) -> Iterator[list[_Good]]:
    """Rows in batches of bounded size; the last batch may be empty."""
    batch: list[_Good] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row[0]) + len(row[1] or "")
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


def _check_text(value: object, column: str) -> str:
    """A text that a model can read.

    Raises:
        RowProblem: it is not a string, NaN, or nothing but white space.
    """
    if not isinstance(value, str):
        if value is None or is_nan(value):
            raise RowProblem("text is missing", f"column {column!r}", "fill in or remove these rows")
        raise RowProblem("text is not a string", f"column {column!r} holds {type(value).__name__}", "check --text")
    if not value or value.isspace():
        raise RowProblem("text is empty", f"column {column!r}", "fill in or remove these rows")
    if len(value) == 3 and value.lower() == "nan":
        raise RowProblem("text is NaN", f"column {column!r}", "fill in or remove these rows")
    return value


def _hash(text: str, pair: str | None) -> int:
    """64 bits of a text or pair. White space around a text does not count, because no model sees it.

    Among a million different texts, two share a number with a chance of one in 10^7.

    Raises:
        RowProblem: the text cannot be written as UTF-8.
    """
    try:
        content = text.strip().encode()
        if pair is not None:
            content = b"%d:%b%b" % (len(content), content, pair.strip().encode())
    except UnicodeEncodeError:
        raise RowProblem("text holds half a character (a lone surrogate)", remedy="correct these rows") from None
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def _settle(task: Task, labels: LabelReader, train: CheckedRows, log: FileLog) -> Task:
    """The task with the kind and the label names that its training rows show; what hinders training goes to `log`."""
    kind = labels.settle(log)
    if len(train) and not len(log.problems) and labels.is_constant:
        what = "all rows have the same label" if kind != "multilabel" else "fewer than two different labels"
        shown = ", ".join(labels.counts)
        log.mistake(None, FileProblem(what, shown, "training needs rows of at least two classes: check --label"))
    length = sum(len(name.encode()) for name in labels.counts)
    # Refused before training, because the artifact's manifest could not name them.
    if kind != "regression" and length > MAX_MANIFEST_BYTES // 2:
        log.mistake(None, FileProblem("the label names are too long", f"{length:,} bytes in all", "shorten them"))
    names = () if kind == "regression" else task.labels or labels.sorted_names()
    if kind == task.kind:
        return task.model_copy(update={"labels": names})
    settled = custom_task(task.name, task.text, task.text_pair, task.label, kind, names)
    return settled.model_copy(update={"max_length": task.max_length})


def _check_evaluation(labels: LabelReader, training: LabelReader, log: FileLog) -> None:
    """Refuse labels without training rows: a class that is never trained on cannot be predicted.

    The label reader refuses names that were not learned; only names that the task itself declares get this far.
    """
    if labels.kind == "regression" or not training.counts:
        return
    for name in sorted(labels.counts.keys() - training.counts.keys()):
        remedy = "add training rows of it, or remove these"
        log.mistake(None, RowProblem("label is not in the training rows", repr(name), remedy), labels.counts[name])
