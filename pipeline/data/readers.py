"""Reads one split, row by row, from wherever it is: text files, Parquet, `save_to_disk` folders, the hub, `pydocs`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.common.errors import KdcError
from kdc.pipeline.data.columns import Columns, Row, find_columns, make_row
from kdc.pipeline.data.sources import HUB_NAME, SplitSource
from kdc.pipeline.data.textfiles import read_csv, read_glue, read_jsonl
from kdc.pipeline.data.validate import FileLog, FileProblem, show

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_BATCH_ROWS = 1024


def read_rows(source: SplitSource, columns: Columns, log: FileLog, *, seed: int) -> Iterator[Row]:
    """The rows of a split in their order.

    Args:
        source: what to read.
        columns: what to take from it.
        log: where rows that do not fit are reported.
        seed: of the built-in task `pydocs`.

    Raises:
        FileProblem: the file cannot be read (any further).
        KdcError: the hub cannot be reached.
    """
    path = source.path or Path()
    try:
        if source.format == "pydocs":
            yield from _read_pydocs(source.split, columns, seed)
        elif source.format == "hub":
            yield from _read_dataset(_from_hub(source), columns)
        elif source.format == "saved":
            yield from _read_dataset(_from_disk(path / source.part), columns)
        elif source.format == "parquet":
            yield from _read_parquet(path, columns)
        elif source.format == "jsonl":
            yield from read_jsonl(path, columns, log)
        elif source.format == "glue_tsv":
            yield from read_glue(path, columns, log, headless=source.headless, skip_broken=source.skip_broken)
        else:
            yield from read_csv(path, columns, log, delimiter="," if source.format == "csv" else "\t")
    except OSError as error:
        if error.filename is None or str(error.filename) != str(source.path):
            raise
        raise FileProblem(f"cannot read the file ({error.strerror})", remedy="check its permissions") from None


def _read_parquet(path: Path, columns: Columns) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = _wanted(names, columns)
            written_by_datasets = b"huggingface" in (file.schema_arrow.metadata or {})
            features = Features.from_arrow_schema(file.schema_arrow) if written_by_datasets else {}
            yield from _read_batches(file.iter_batches(_BATCH_ROWS, columns=wanted), columns, features)
    except pa.ArrowException as error:
        raise FileProblem("not a readable Parquet file", show(str(error)), "write it again") from None


def _read_dataset(dataset: datasets.Dataset, columns: Columns) -> Iterator[Row]:
    wanted = _wanted(dataset.column_names, columns)
    batches = dataset.select_columns(wanted).with_format("arrow").iter(batch_size=_BATCH_ROWS)
    yield from _read_batches(batches, columns, dataset.features)


def _wanted(names: Sequence[str], columns: Columns) -> list[str]:
    return list(dict.fromkeys(names[place] for place in find_columns(names, columns) if place is not None))


def _read_batches(batches: Iterable[pa.RecordBatch | pa.Table], columns: Columns, features: Any) -> Iterator[Row]:
    """Rows of Arrow batches; integers that stand for class names become the names."""
    number = 0
    for batch in batches:
        names = list(batch.column_names) if hasattr(batch, "column_names") else batch.schema.names
        at = find_columns(names, columns)
        values = [batch.column(place).to_pylist() for place in range(len(names))]
        if at[2] is not None:
            class_names = _class_names(features.get(names[at[2]]))
            if class_names:
                values[at[2]] = [_named(value, class_names) for value in values[at[2]]]
        for fields in zip(*values, strict=True):
            number += 1
            yield make_row(number, fields, at)


def _class_names(feature: Any) -> list[str]:
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return list(names) if names else []


def _named(value: object, names: list[str]) -> object:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _from_disk(folder: Path) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise FileProblem("the save_to_disk folder cannot be read", show(str(error)), "save it again") from None
    return dataset


def _from_hub(source: SplitSource) -> datasets.Dataset:
    import datasets

    try:
        return datasets.load_dataset(HUB_NAME, source.hub_config, split=source.part)
    except (OSError, ValueError) as error:  # unreachable, refused, offline, or not in the cache of an offline machine
        raise KdcError(
            f"cannot get {HUB_NAME} from the hub ({type(error).__name__}: {error})",
            given=source.hub_config,
            remedy="go on without it: `--data DIR` with GLUE's files, or `kdc compress --task pydocs --family minilm`; "
            "`kdc doctor` says whether the hub can be reached",
        ) from error


def _read_pydocs(split: str, columns: Columns, seed: int) -> Iterator[Row]:
    train, evaluation = _pydocs(seed)
    names = list(train[0])
    at = find_columns(names, columns)
    for number, row in enumerate(train if split == "train" else evaluation, start=1):
        yield make_row(number, list(row.values()), at)


@lru_cache(maxsize=1)
def _pydocs(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Made once for both splits: it imports the standard library in a subprocess."""
    from kdc.pipeline.data.pydocs import make_pydocs

    return make_pydocs(seed)
