"""Prepares and opens a run's rows. Stage `data` writes:

    task.json, report.json
    skipped.jsonl             rows that `--skip-invalid` left out
    rows/<split>/             row, text, text_pair; if labelled, group, source_row and label; in given evaluation
                              files, overlaps; in evaluated files, slices
    tokens-<role>/<split>/    (`tokens.py`) row, input_ids, length, label; token_type_ids and windows if used

Splits are train, tune (never trained on), unlabeled, eval, eval_mismatched. Row numbers continue over them in this
order, from 0. `source_row` counts a source's rows, from 1, with those left out. `group` is a row's unit
(`overlap.connect`). `overlaps` marks overlap with training rows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdc.common.errors import KdcError
from kdc.common.records import USUAL, Dialect
from kdc.pipeline.config.data_settings import LENGTH, DataSettings
from kdc.pipeline.config.metrics import Slices
from kdc.pipeline.config.tasks import Task, decided_by
from kdc.pipeline.data.labels import LabelReader
from kdc.pipeline.data.overlap import Ints, Mask
from kdc.pipeline.data.problems import Problems
from kdc.pipeline.data.report import make_report, near_train
from kdc.pipeline.data.rows import SKIPPED, CheckedRows, check_split, read_all, texts_in, write_stream
from kdc.pipeline.data.sources import file_source, is_glue
from kdc.pipeline.data.splits import split_rows
from kdc.pipeline.results.data import DataReport
from kdc.serving.engine.tokenizing import Text

if TYPE_CHECKING:
    import datasets

FEWER = "fewer"  # for a smaller vocabulary
_PIECES_ROWS = 4096  # in a batch
_DAMAGED = (OSError, ValueError, KeyError, TypeError)
_AGAIN = "run again with `--from data`"


def prepare(folder: Path, task: Task, data: DataSettings, *, seed: int, people_judge: bool = True) -> DataReport:
    """Write and count all rows.

    Raises:
        InputError: lists mistakes in all files; or too few rows.
        KdcError: the hub cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*folder.glob("staging-*"), *folder.glob("rows"), *folder.glob("tokens-*")):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    with tempfile.TemporaryDirectory(dir=folder, prefix="staging-", ignore_cleanup_errors=True) as staging:
        task, rows = read_all(data, task, Path(staging), seed)
        task = decided_by(task, data.metric)
        if (skipped := Path(staging) / SKIPPED).exists():
            skipped.replace(folder / SKIPPED)
        most = data.max_unlabeled_rows
        parts = split_rows(task, rows, data.max_train_rows, seed, most_unlabeled=most, people_judge=people_judge)
        near = near_train(rows, parts)
        report = make_report(task, rows, parts, near)
        first_row = 0
        for name, part in parts.items():
            if len(part):
                origin = rows[part.origin]
                further: dict[str, NDArray[Any]] = {}
                if origin.labels is not None:
                    further = {"group": origin.units, "source_row": origin.table["source_row"].to_numpy()}
                if part.origin in near:
                    further["overlaps"] = near[part.origin] >= 0
                _write_split(origin, part.chosen, folder / "rows" / name, task, first_row, further)
                first_row += len(part)
    if not task.traits.has_labels:
        numbers = np.asarray(_load(folder / "rows" / "train")["label"][:], dtype=np.float64)
        task = task.model_copy(update={"center": float(numbers.mean()), "spread": float(numbers.std()) or 1.0})
    task.save(folder / "task.json")
    (folder / "report.json").write_text(json.dumps(report.to_json(), indent=2, ensure_ascii=False), encoding="utf-8")
    return report


def _write_split(
    rows: CheckedRows, chosen: Mask, folder: Path, task: Task, first_row: int, further: Mapping[str, NDArray[Any]]
) -> None:
    columns = {"row": first_row - 1 + np.cumsum(chosen), **further}
    own = {"text", "text_pair", "label", "slices"}.intersection(rows.table.column_names)
    columns |= {name: rows.table[name] for name in sorted(own)}
    table = pa.table(columns | {"chosen": chosen})

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in table.to_batches():
            picked = dict(zip(columns, batch.filter(batch["chosen"]).columns, strict=False))
            if "label" in picked:
                picked["label"] = _stored_labels(picked["label"], task)
            yield pa.RecordBatch.from_pydict(picked)

    write_dataset(folder, batches())


def _stored_labels(labels: pa.Array, task: Task) -> pa.Array:
    if not task.traits.has_labels:
        return pa.array([float(label) for label in labels.to_pylist()], pa.float32())
    names = pa.array(task.labels, pa.string())
    if task.traits.is_exclusive:
        return pc.index_in(labels, value_set=names).cast(pa.int64())
    hot = np.zeros((len(labels), len(task.labels)), dtype=np.float32)
    lengths = pc.fill_null(pc.list_value_length(labels), 0).to_numpy(zero_copy_only=False)
    columns = pc.index_in(pc.list_flatten(labels), value_set=names).to_numpy(zero_copy_only=False)
    hot[np.repeat(np.arange(len(labels)), lengths), columns.astype(np.int64)] = 1.0
    offsets = np.arange(len(labels) + 1, dtype=np.int32) * len(task.labels)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(hot.reshape(-1)))


def write_dataset(folder: Path, batches: Iterator[pa.RecordBatch]) -> None:
    import datasets

    folder.parent.mkdir(parents=True, exist_ok=True)
    stream = folder.with_name(f"{folder.name}.arrow")
    try:
        write_stream(stream, batches)
        datasets.disable_progress_bars()
        datasets.Dataset.from_file(str(stream)).save_to_disk(str(folder))
    finally:
        stream.unlink()


@dataclass(frozen=True)
class PreparedData:
    folder: Path
    task: Task
    vocabulary: Path | None = None  # stage folder with "fewer" tokens

    def rows(self, split: str) -> datasets.Dataset:
        """Memory-mapped; raises KdcError if damaged."""
        return _load(self.folder / "rows" / split)

    def tokens(self, role: str, split: str) -> datasets.Dataset:
        """Token ids; roles are "teacher", "teacher-2", ..., "student" and "fewer"."""
        folder = self.vocabulary if role == FEWER and self.vocabulary is not None else self.folder
        return _load(folder / f"tokens-{role}" / split)

    def learned_pieces(self) -> set[int]:
        """The teacher's token ids in training and unlabelled rows."""
        pieces: set[int] = set()
        for split in filter(self.has, ("train", "unlabeled")):
            for batch in self.tokens("teacher", split).with_format("arrow").iter(batch_size=_PIECES_ROWS):
                pieces.update(pc.unique(batch["input_ids"].combine_chunks().flatten()).to_pylist())
        return pieces

    def groups(self, split: str) -> Ints:
        """Each row's unit, (rows,)."""
        return np.asarray(self.rows(split)["group"][:])

    def slices(self, columns: Sequence[str], role: str) -> Slices:
        """Slices of the deciding evaluation rows."""
        rows, lengths = self.rows("eval"), self.tokens(role, "eval")["length"]
        return slices_of(columns, rows["slices"] if "slices" in rows.column_names else (), lengths)

    @property
    def eval_splits(self) -> tuple[str, ...]:
        """The first evaluation split decides."""
        return tuple(split for split in ("eval", "eval_mismatched") if self.has(split))

    def has(self, split: str) -> bool:
        return (self.folder / "rows" / split).is_dir()


def open_data(folder: Path, vocabulary: Path | None = None) -> PreparedData:
    """Raises KdcError if damaged."""
    try:
        return PreparedData(folder, Task.load(folder / "task.json"), vocabulary)
    except _DAMAGED as error:
        raise KdcError("the data stage is missing or damaged", given=folder, remedy=_AGAIN) from error


def texts_of(rows: datasets.Dataset) -> list[Text]:
    return texts_in(rows.with_format("arrow")[:])


def digest(text: str | tuple[str, ...]) -> bytes:
    """A row's SHA-256; NUL joins a pair."""
    return hashlib.sha256("\0".join([text] if isinstance(text, str) else text).encode()).digest()


def slices_of(columns: Sequence[str], values: Iterable[Sequence[str]], lengths: Iterable[int]) -> Slices:
    """Each row's value by column. `LENGTH` becomes a range of tokens: 1-8, 9-16, 17-32, ...

    Args:
        values: by row, without `LENGTH`.
    """
    by_column = iter(zip(*values, strict=True))
    powers = (max(3, (length - 1).bit_length()) for length in lengths)
    ranges = (f"{1 if power == 3 else 2 ** (power - 1) + 1}-{2**power}" for power in powers)
    return {name: np.array([*(ranges if name == LENGTH else next(by_column))], dtype=object) for name in columns}


def _load(folder: Path) -> datasets.Dataset:
    import datasets

    try:
        return datasets.Dataset.load_from_disk(str(folder))
    except _DAMAGED as error:
        what = "rows of the run, or their tokens, are missing or damaged"
        raise KdcError(what, given=folder, remedy=_AGAIN) from error


def read_labelled(
    path: Path, task: Task, *, separator: str | None = None, dialect: Dialect = USUAL, slices: Sequence[str] = ()
) -> tuple[list[Text], list[Any], list[list[str]]]:
    """Texts (or pairs), labels as in `rows/`, and values of `slices` of one file or `save_to_disk` folder.

    Raises:
        InputError: lists the mistakes.
    """
    problems, labels = Problems(), LabelReader(task.kind, task.labels, separator, is_glue(task.name))
    with tempfile.TemporaryDirectory(prefix="kdc-") as staging:
        source = replace(file_source("eval", path, task.name), dialect=dialect)
        data = DataSettings().model_copy(update={"slices": slices})
        table = check_split(source, task, labels, Path(staging), problems, data).table
        problems.raise_if_any()
        values = table["slices"].to_pylist() if "slices" in table.column_names else []
        return texts_in(table), _stored_labels(table["label"].combine_chunks(), task).to_pylist(), values
