"""Reads a split's file, in constant memory.

Text is UTF-8 or as `--encoding` says, with or without BOM, LF or CRLF. CSV and TSV quote like Python's csv module,
GLUE's TSV not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kdc.common.errors import KdcError
from kdc.common.records import (
    BrokenLine,
    Dialect,
    decoded_lines,
    other_delimiter,
    other_encoding,
    parse_delimited,
    parse_jsonl,
)
from kdc.common.sheets import read_sheet
from kdc.pipeline.data.problems import FileProblem, Problems, RowProblem, nearest_name, show
from kdc.pipeline.data.pydocs import make_pydocs
from kdc.pipeline.data.sources import HUB_NAME, Columns, SplitSource
from kdc.serving.engine.tokenizing import is_utf8

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_pydocs = lru_cache(maxsize=1)(make_pydocs)  # one subprocess for both splits
_BATCH_ROWS = 1024
_COLA_HEADER = ["source", "label", "star", "sentence"]
# Everybody skips QQP's questions with line breaks.
_KNOWN_BROKEN = ("qqp",)
# Wrong bytes, as `decoded_lines` gives them.
_WRONG = re.compile("[\0\ud800-\udfff]")


class Record(NamedTuple):
    line: int  # or row, from 1
    names: Sequence[str]  # the same object for a table's records
    fields: Sequence[object]  # one per column


def find_columns(header: Sequence[str], columns: Columns) -> list[int | None]:
    """Indices in the order of `Columns`; None if unread.

    Raises:
        RowProblem: a missing or repeated column.
    """
    indices: list[int | None] = []
    faults: list[str] = []
    *single, slices = columns
    for names in (*single, *((name,) for name in slices)):
        name = next((name for name in names if name in header), None)
        indices.append(None if name is None else header.index(name))
        is_optional = names is columns.group and not columns.label
        if names and name is None and not is_optional:
            faults.append(f"no column {names[-1]!r}{nearest_name(names[-1], header)}")
        elif name is not None and header.count(name) > 1:
            faults.append(f"column {name!r} is there {header.count(name)} times")
    if faults:
        there = ", ".join(show(name) for name in header[:20]) + (", ..." if len(header) > 20 else "")
        remedy = "name the columns: --text, --text-pair, --label, --slice, --set data.group=NAME, --set data.time=NAME"
        if option := other_delimiter(header):
            remedy = f"name the character that separates the fields: {option}"
        raise RowProblem("wrong columns", f"{'; '.join(faults)}; the file has: {there}", remedy, is_invalid=True)
    return indices


def read_fields(
    source: SplitSource, columns: Columns, problems: Problems, *, seed: int = 0
) -> Iterator[tuple[int, list[object]]]:
    """Yield each record's line and its values of `columns`, None if unread; report bad records.

    Raises:
        FileProblem, KdcError: as `read_records`.
    """
    names: Sequence[str] = ()
    indices: list[int | None] = []
    for record in read_records(source, problems, seed=seed, columns=columns):
        try:
            if record.names is not names:  # they vary in JSONL
                indices, names = find_columns(record.names, columns), record.names
        except RowProblem as problem:
            problems.add(source, record.line, problem)
        else:
            yield record.line, [None if index is None else record.fields[index] for index in indices]


def read_records(
    source: SplitSource, problems: Problems, *, seed: int = 0, columns: Columns | None = None
) -> Iterator[Record]:
    """Yield a split's records in order; report bad ones. Columnar formats read only `columns`; None: all.

    Raises:
        FileProblem: the file cannot be read (any further), or a table lacks one of `columns`.
        KdcError: the hub cannot be reached.
    """
    path = source.path or Path()
    try:
        if source.format == "pydocs":
            yield from _read_pydocs(source.split, seed)
        elif source.format == "hub":
            yield from _read_dataset(_from_hub(source), columns)
        elif source.format == "saved":
            yield from _read_dataset(_from_disk(path / source.part), columns)
        elif source.format == "parquet":
            yield from _read_parquet(path, columns)
        elif source.format == "jsonl":
            yield from _read_jsonl(source, path, problems)
        else:
            yield from _read_delimited(source, path, problems, columns)
    except BrokenLine as error:
        what, remedy = error.reason, error.remedy
        if "new-line character" in what:
            what = "a carriage return inside a row"
            remedy = f"end lines with line feeds: tr '\\r' '\\n' < {path} > {path.stem}.lf{path.suffix}"
        raise FileProblem(what, "", remedy, line=error.line) from None
    except OSError as error:
        if error.filename is None or str(error.filename) != str(source.path):
            raise
        raise FileProblem(f"cannot read the file ({error.strerror})", remedy="check its permissions") from None


def _read_delimited(source: SplitSource, path: Path, problems: Problems, columns: Columns | None) -> Iterator[Record]:
    delimiter = source.dialect.delimiter_of("csv" if source.format == "csv" else "tsv")
    if source.format == "glue_tsv":
        lines = (line.removesuffix("\n").removesuffix("\r").split(delimiter) for line in _lines(path, source.dialect))
        records: Iterator[tuple[int, list[str]]] = enumerate(lines, start=1)
        blank = [""]
    elif source.format == "xlsx":
        records, blank = read_sheet(path, source.name), []
    else:
        records, blank = parse_delimited(_lines(path, source.dialect), delimiter), []
    first = next(records)
    header = first[1]
    if source.task == "cola" and columns is not None and not set(columns.text) & set(header):
        header, records = _COLA_HEADER, chain([first], records)
    _needed(header, columns)
    for line, fields in records:
        missing = len(header) - len(fields)
        if missing == 0:
            yield Record(line, header, fields)
        elif missing > 0 and fields != blank and source.task in _KNOWN_BROKEN:
            problems.skipped[source.split] += 1
        elif fields != blank:
            what = "row has too few columns" if missing > 0 else "row has too many columns"
            remedy = "complete or remove these rows" if missing > 0 else "quote fields that hold the separator"
            detail = f"{len(fields)} instead of {len(header)}"
            problems.add(source, line, RowProblem(what, detail, remedy, is_invalid=True))


def _read_jsonl(source: SplitSource, path: Path, problems: Problems) -> Iterator[Record]:
    for number, line, value in parse_jsonl(_lines(path, source.dialect)):
        is_broken = isinstance(value, Exception)
        if isinstance(value, dict):
            yield Record(number, list(value), list(value.values()))
        elif number == 1 and (isinstance(value, list) or (is_broken and line.lstrip().startswith("["))):
            remedy = f"convert it: jq -c '.[]' {path} > {path.stem}.jsonl"
            raise FileProblem("one JSON array instead of one object a line", remedy=remedy)
        else:
            what, detail = ("not JSON", show(str(value))) if is_broken else ("not a JSON object", type(value).__name__)
            problems.add(source, number, RowProblem(what, detail, "write one JSON object a line", is_invalid=True))


def _lines(path: Path, dialect: Dialect) -> Iterator[str]:
    """Only line feeds end a line: texts contain other separators."""
    number = 0
    with open(path, "rb") as stream:
        for number, line in enumerate(decoded_lines(stream, dialect, "\n"), start=1):
            wrong = None if is_utf8(line) and "\0" not in line else _WRONG.search(line)
            if wrong is not None:
                at = len(line[: wrong.start()].encode(dialect.codec, "replace")) + 1
                detail = f"byte 0x{ord(wrong[0]) & 0xFF:02x}, byte {at} of the line"
                raise FileProblem(f"not {dialect.codec.upper()}", detail, other_encoding(line), line=number)
            yield line
    if number == 0:
        raise FileProblem("the file is empty", remedy="check the path")


def _read_parquet(path: Path, columns: Columns | None) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = _needed(schema.names, columns)
            features = Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else {}
            yield from _read_batches(file.iter_batches(_BATCH_ROWS, columns=names), names, features)
    except pa.ArrowException as error:
        raise FileProblem("not a readable Parquet file", show(str(error)), "write it again") from None


def _read_dataset(dataset: datasets.Dataset, columns: Columns | None) -> Iterator[Record]:
    names = _needed(dataset.column_names, columns)
    batches = dataset.select_columns(names).with_format("arrow").iter(batch_size=_BATCH_ROWS)
    yield from _read_batches(batches, names, dataset.features)


def _needed(names: Sequence[str], columns: Columns | None) -> list[str]:
    if columns is None:
        return list(names)
    try:
        return list(dict.fromkeys(names[index] for index in find_columns(names, columns) if index is not None))
    except RowProblem as problem:
        raise FileProblem(problem.what, problem.detail, problem.remedy) from None


def _read_batches(batches: Iterable[pa.RecordBatch | pa.Table], names: list[str], features: Any) -> Iterator[Record]:
    number = 0
    for batch in batches:
        values = [_with_class_names(batch.column(name).to_pylist(), features.get(name)) for name in names]
        for fields in zip(*values, strict=True):
            number += 1
            yield Record(number, names, fields)


def _with_class_names(value: Any, feature: Any) -> Any:
    class_names = getattr(getattr(feature, "feature", feature), "names", None)
    if not class_names:
        return value
    if isinstance(value, list):
        return [_with_class_names(item, feature) for item in value]
    return class_names[value] if isinstance(value, int) and 0 <= value < len(class_names) else value


def _from_disk(folder: Path) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise FileProblem("the save_to_disk folder cannot be read", show(str(error)), "save it again") from None


def _from_hub(source: SplitSource) -> datasets.Dataset:
    import datasets

    try:
        return datasets.load_dataset(HUB_NAME, source.task, split=source.part)
    except (OSError, ValueError) as error:
        raise KdcError(
            f"cannot get {HUB_NAME} from the hub ({type(error).__name__}: {error})",
            given=source.task,
            remedy="without the hub: `--data DIR` with GLUE's files, or `kdc compress --task pydocs --family minilm`; "
            "`kdc doctor` says whether the hub can be reached",
        ) from error


def _read_pydocs(split: str, seed: int) -> Iterator[Record]:
    train, evaluation = _pydocs(seed)
    names = list(train[0])
    for number, row in enumerate(train if split == "train" else evaluation, start=1):
        yield Record(number, names, list(row.values()))
