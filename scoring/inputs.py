"""Reads a table in windows of rows, in order and in constant memory: CSV, TSV, JSONL, Parquet, or JSONL on stdin.

All columns are kept. CSV and TSV hold text; what JSONL and Parquet hold keeps its type. A row that is no row (too few
columns, not JSON) is reported with its file and line, and what to do with it is the caller's choice.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from errors import InputError
from scoring.places import STANDARD, File, file_system

if TYPE_CHECKING:
    import pyarrow as pa

_FIELD_LIMIT = 64 << 20  # characters of a field: an unclosed quote would swallow the file
WINDOW_ROWS = 8192
_WINDOW_CHARACTERS = 32 << 20  # long texts make smaller windows


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be answered."""

    file: str
    line: int
    problem: str


@dataclass
class Window:
    """Rows that follow each other in one file.

    Attributes:
        file: as people wrote it.
        names: of the columns.
        rows: values by column; what JSONL leaves out is left out.
        lines: where each row begins: a line of a text file, the row's number (from 1) of Parquet.
        bad: rows that are none.
        schema: of a Parquet file; None elsewhere.
        done: bytes of the file that were read so far, about.
    """

    file: str
    names: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    schema: pa.Schema | None = None
    done: int = 0

    def __len__(self) -> int:
        return len(self.rows) + len(self.bad)


def read_windows(file: File) -> Iterator[Window]:
    """Windows of a file, the same ones each time.

    Raises:
        InputError: the file cannot be read at all.
    """
    if file.format == "parquet":
        yield from _read_parquet(file)
        return
    system, path = file_system(file.path if "://" not in file.address else file.address)
    with system.open(path, "rb", compression="infer") as raw:
        yield from _read_text(raw, file.address, file.format)


def read_standard_input() -> Iterator[Window]:
    """Windows of JSONL on standard input."""
    yield from _read_text(sys.stdin.buffer, STANDARD, "jsonl")


def _read_text(raw: IO[bytes], name: str, kind: str) -> Iterator[Window]:
    # What is not UTF-8 becomes surrogates, which no text may hold: the row is reported, the file goes on.
    stream = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
    if kind == "jsonl":
        yield from _windows_of_objects(stream, name, raw)
    else:
        yield from _windows_of_fields(stream, name, "," if kind == "csv" else "\t", raw)
    stream.detach()


def _windows_of_fields(stream: IO[str], name: str, separator: str, raw: IO[bytes]) -> Iterator[Window]:
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(stream, delimiter=separator, strict=True)
    begins = 1
    try:
        header = next(reader, None)
        if not header:
            raise InputError("the file is empty", given=name, remedy="a header line with the columns' names, then rows")
        _check_names(header, name)
        window, characters, begins = Window(name, header), 0, reader.line_num + 1
        for fields in reader:
            line, begins = begins, reader.line_num + 1
            if not fields:  # a blank line
                continue
            if len(fields) != len(header):
                what = f"the row has {len(fields)} columns, the header {len(header)}"
                window.bad.append(BadRow(name, line, what))
            else:
                window.rows.append(dict(zip(header, fields, strict=True)))
                window.lines.append(line)
                characters += sum(map(len, fields))
            if len(window) >= WINDOW_ROWS or characters >= _WINDOW_CHARACTERS:
                window.done = _told(raw)
                yield window
                window, characters = Window(name, header), 0
    except csv.Error as error:
        raise InputError(
            f"broken quoting: {error}", given=f"{name}, line {begins}",
            remedy='write a quote inside a quoted field twice (""), and close every quote',
        ) from None  # fmt: skip
    if len(window):
        window.done = _told(raw)
        yield window


def _windows_of_objects(stream: IO[str], name: str, raw: IO[bytes]) -> Iterator[Window]:
    window, characters = Window(name, []), 0
    for line, text in enumerate(stream, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            window.bad.append(BadRow(name, line, "the line is no JSON object"))
        else:
            window.rows.append(row)
            window.lines.append(line)
            characters += len(text)
        if len(window) >= WINDOW_ROWS or characters >= _WINDOW_CHARACTERS:
            yield _closed(window, raw)
            window, characters = Window(name, []), 0
    if len(window):
        yield _closed(window, raw)


def _closed(window: Window, raw: IO[bytes]) -> Window:
    window.names = list(dict.fromkeys(name for row in window.rows for name in row))
    window.done = _told(raw)
    return window


def _read_parquet(file: File) -> Iterator[Window]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    system, path = file_system(file.path if "://" not in file.address else file.address)
    try:
        with system.open(path, "rb") as raw, pq.ParquetFile(raw) as table:
            schema = table.schema_arrow.remove_metadata()
            _check_names(schema.names, file.address)
            total, number = max(1, table.metadata.num_rows), 0
            for batch in table.iter_batches(WINDOW_ROWS):
                rows = batch.to_pylist()
                lines = list(range(number + 1, number + len(rows) + 1))
                number += len(rows)
                yield Window(
                    file.address, list(schema.names), rows, lines, [], schema, round(file.bytes * number / total)
                )
    except pa.ArrowException as error:
        raise InputError(f"not a readable Parquet file: {error}", given=file.address, remedy="write it again") from None


def _check_names(names: list[str], file: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError("two columns have one name", given=f"{file}: {', '.join(twice)}", remedy="rename one")


def _told(raw: IO[bytes]) -> int:
    try:
        return raw.tell()
    except (OSError, ValueError):  # a pipe
        return 0
