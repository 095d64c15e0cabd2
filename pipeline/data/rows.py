"""Streams rows through files: checked rows into a staging file, staged rows into the folder of their split.

Nothing here holds more than one batch of texts. Of every row, three integers stay in memory: a hash of its text, its
class, and its group.

Writes: `<name>.arrow` (staging, Arrow stream: text, text_pair, label as strings), and `datasets` folders.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdc.artifact.manifest import Kind
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.columns import Columns, Row
from kdc.pipeline.data.labels import LabelReader
from kdc.pipeline.data.splits import Ints, Mask
from kdc.pipeline.data.validate import FileLog, FileProblem, RowProblem, check_text

_BATCH_ROWS = 1024
_BATCH_CHARACTERS = 4 << 20


@dataclass(frozen=True)
class Staged:
    """The checked rows of one source.

    Attributes:
        path: the staging file.
        texts: (rows,) hash of each row's text or pair.
        groups: (rows,) hash of each row's group; None without a group column.
    """

    path: Path
    texts: Ints
    groups: Ints | None

    def __len__(self) -> int:
        return len(self.texts)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows again, in order."""
        with pa.memory_map(str(self.path)) as stream, pa.ipc.open_stream(stream) as reader:
            yield from reader

    def classes(self, kind: Kind, names: tuple[str, ...], frequency: Mapping[str, int]) -> Ints:
        """(rows,) what to stratify by: the class; 0 for regression; of a multi-label row the rarest label, and one
        number more for rows without any."""
        if kind == "regression":
            return np.zeros(len(self), dtype=np.int64)
        parts = []
        for batch in self.batches():
            labels = batch.column("label")
            if kind == "multilabel":
                rows = labels.to_pylist()
                rarest = [min(row, key=lambda name: (frequency[name], name), default=None) for row in rows]
                labels = pa.array(rarest, pa.string())
            codes = pc.fill_null(pc.index_in(labels, value_set=pa.array(names, pa.string())), len(names))
            parts.append(codes.to_numpy(zero_copy_only=False).astype(np.int64))
        return np.concatenate(parts)


def stage(rows: Iterable[Row], columns: Columns, labels: LabelReader | None, path: Path, log: FileLog) -> Staged:
    """Check every row and keep the good ones.

    Args:
        rows: as they were read.
        columns: their names, for messages.
        labels: reads the label column; None for unlabelled rows.
        path: the staging file to write.
        log: where mistakes are reported.
    """
    hashes, groups = array("q"), array("q")
    with _StagingFile(path, is_pair=bool(columns.text_pair), labels=labels) as out:
        try:
            for row in rows:
                try:
                    # The label first: the labels of the training rows are known though some texts are wrong.
                    label = labels.read(row.label, row.line) if labels is not None else None
                    text = check_text(row.text, columns.text[0])
                    pair = check_text(row.text_pair, columns.text_pair[0]) if columns.text_pair else None
                    key = _hash(text, pair)
                except FileProblem:
                    raise
                except RowProblem as problem:
                    log.mistake(row.line, problem)
                    continue
                hashes.append(key)
                if columns.group:
                    groups.append(_hash(str(row.group), None))
                out.add(text, pair, label)
        except FileProblem as problem:
            log.mistake(problem.line, problem)
    return Staged(path, _integers(hashes), _integers(groups) if columns.group else None)


def _integers(values: array[int]) -> Ints:
    return np.frombuffer(values, dtype=np.int64) if values else np.zeros(0, dtype=np.int64)


def _hash(text: str, pair: str | None) -> int:
    """64 bits of a text or pair; white space around it does not count, as no model sees it.

    Two of a million different texts share a number with a chance of one in 10^7.

    Raises:
        RowProblem: no UTF-8 can be made of it.
    """
    try:
        content = text.strip().encode()
        if pair is not None:
            content = b"%d:%b%b" % (len(content), content, pair.strip().encode())
    except UnicodeEncodeError:
        raise RowProblem("text holds half a character (a lone surrogate)", remedy="correct these rows") from None
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


class _StagingFile:
    """Collects rows into batches of an Arrow stream; whether labels are lists shows only at the first row."""

    def __init__(self, path: Path, *, is_pair: bool, labels: LabelReader | None) -> None:
        self._is_pair, self._labels = is_pair, labels
        self._columns: dict[str, list[Any]] = {"text": [], "text_pair": [], "label": []}
        self._characters = 0
        self._sink = pa.OSFile(str(path), "wb")
        self._writer: Any = None

    def __enter__(self) -> _StagingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._sink:
            if kind is None:
                self._flush()
                self._writer.close()

    def add(self, text: str, pair: str | None, label: str | list[str] | None) -> None:
        self._columns["text"].append(text)
        self._columns["text_pair"].append(pair)
        self._columns["label"].append(label)
        self._characters += len(text) + len(pair or "")
        if len(self._columns["text"]) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        fields = [pa.field("text", pa.string())]
        if self._is_pair:
            fields.append(pa.field("text_pair", pa.string()))
        if self._labels is not None:
            fields.append(pa.field("label", pa.list_(pa.string()) if self._labels.is_list else pa.string()))
        schema = pa.schema(fields)
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._sink, schema)
        columns = [pa.array(self._columns[field.name], field.type) for field in schema]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        self._columns = {name: [] for name in self._columns}
        self._characters = 0


class DatasetFolder:
    """Streams Arrow batches into a folder that `datasets.load_from_disk` memory-maps; nothing is left elsewhere."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._stream = folder.with_name(f"{folder.name}.arrow")
        self._sink = pa.OSFile(str(self._stream), "wb")
        self._writer = pa.ipc.new_stream(self._sink, schema)

    def __enter__(self) -> DatasetFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._sink:
            if kind is None:
                self._writer.close()
        if kind is None:
            import datasets

            datasets.disable_progress_bars()
            datasets.Dataset.from_file(str(self._stream)).save_to_disk(str(self._folder))
        self._stream.unlink()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows; empty batches are dropped."""
        if batch.num_rows:
            self._writer.write_batch(batch)


def write_split(staged: Staged, chosen: Mask, folder: Path, task: Task, *, first_row: int, labeled: bool) -> None:
    """Write the chosen rows with their row numbers and the labels as the model takes them.

    Args:
        staged: the checked rows.
        chosen: (rows,) which of them belong to the split.
        folder: of the split.
        task: kind and label names.
        first_row: number of the first row; the others count on.
        labeled: whether the rows have a label.
    """
    fields = [pa.field("row", pa.int64()), pa.field("text", pa.string())]
    if task.is_pair:
        fields.append(pa.field("text_pair", pa.string()))
    if labeled:
        fields.append(pa.field("label", label_type(task.kind)))
    schema = pa.schema(fields)
    at = 0
    with DatasetFolder(folder, schema) as out:
        for batch in staged.batches():
            kept = batch.filter(pa.array(chosen[at : at + batch.num_rows]))
            at += batch.num_rows
            columns = {"row": pa.array(np.arange(first_row, first_row + kept.num_rows, dtype=np.int64))}
            first_row += kept.num_rows
            columns |= {name: kept.column(name) for name in ("text", "text_pair") if name in schema.names}
            if labeled:
                columns["label"] = _stored_labels(kept.column("label"), task)
            out.write(pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema))


def label_type(kind: Kind) -> pa.DataType:
    """How labels of a kind are stored."""
    if kind == "classification":
        return pa.int64()
    return pa.float32() if kind == "regression" else pa.list_(pa.float32())


def _stored_labels(labels: pa.Array, task: Task) -> pa.Array:
    """Class numbers, multi-hot rows (rows, labels), or numbers, for the strings that were read."""
    if task.kind == "regression":
        return pa.array([float(label) for label in labels.to_pylist()], pa.float32())
    names = pa.array(task.labels, pa.string())
    if task.kind == "classification":
        return pc.index_in(labels, value_set=names).cast(pa.int64())
    hot = np.zeros((len(labels), len(task.labels)), dtype=np.float32)
    lengths = pc.fill_null(pc.list_value_length(labels), 0).to_numpy(zero_copy_only=False)
    places = pc.index_in(pc.list_flatten(labels), value_set=names).to_numpy(zero_copy_only=False)
    hot[np.repeat(np.arange(len(labels)), lengths), places.astype(np.int64)] = 1.0
    offsets = np.arange(len(labels) + 1, dtype=np.int32) * len(task.labels)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(hot.reshape(-1)))
