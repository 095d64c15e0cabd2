"""Reads a table in windows of rows, in constant memory. Standard input is JSONL."""

from __future__ import annotations

import contextlib
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from kdc.common.errors import InputError
from kdc.common.places import STANDARD, File, reaching_remote
from kdc.common.records import (
    USUAL,
    BrokenLine,
    Dialect,
    decoded_lines,
    other_encoding,
    parse_delimited,
    parse_jsonl,
)
from kdc.common.sheets import read_sheet
from kdc.serving.engine.tokenizing import is_utf8

if TYPE_CHECKING:
    import pyarrow as pa

WINDOW_ROWS = 8192
WINDOW_BYTES = 32 << 20
_ROWS_AT_ONCE = 64  # Parquet rows


@dataclass(frozen=True)
class BadRow:
    file: str
    line: int
    problem: str


@dataclass
class Window:
    file: str  # for messages
    names: list[str]  # of the columns
    # Values by column. A JSONL row has only its own columns. Empty for Parquet.
    rows: list[dict[str, Any]]
    batch: pa.RecordBatch | None
    lines: list[int]  # in Parquet, rows' numbers from 1
    bad: list[BadRow] = field(default_factory=list)
    done: int = 0  # bytes read so far, roughly
    is_table: bool = True  # all rows have the same columns

    def __len__(self) -> int:
        return len(self.lines) + len(self.bad)

    @property
    def position(self) -> str:
        return f"{self.file}, rows from line {self.lines[0]} on" if self.lines else self.file

    def column(self, name: str) -> list[Any]:
        if self.batch is None:
            return [row.get(name) for row in self.rows]
        return self.batch.column(name).to_pylist()

    def error_lines(self) -> bytes:
        return b"".join(json.dumps(vars(row)).encode() + b"\n" for row in self.bad)

    def dicts(self) -> list[dict[str, Any]]:
        if self.batch is None:
            return self.rows
        try:
            return self.batch.to_pylist()
        except (ValueError, OverflowError) as error:  # nanoseconds, years beyond 9999
            what = f"a value has no form in text: {error}"
            raise InputError(what, given=self.file, remedy="write .parquet") from error

    def without(self, bad: list[BadRow]) -> Window:
        bad_lines = {row.line for row in bad}
        is_good = [line not in bad_lines for line in self.lines]
        return replace(
            self,
            rows=list(compress(self.rows, is_good)),
            batch=None if self.batch is None else self.batch.filter(np.array(is_good, dtype=bool)),
            lines=list(compress(self.lines, is_good)),
            bad=sorted([*self.bad, *bad], key=lambda row: row.line),
        )


def read_windows(file: File) -> Iterator[Window]:
    """The windows are the same each time. A file without rows gives one empty window."""
    with reaching_remote(file.system, file.address):
        try:
            with file.open() as raw:
                if file.format == "parquet":
                    yield from _read_parquet(raw, file)
                elif file.format == "xlsx":
                    records = read_sheet(raw, file.address)
                    yield from _windows_of_table(records, next(records)[1], file.address, raw)
                else:
                    yield from _read_text(raw, file.address, file.format, file.dialect)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
                raise
            raise InputError(f"cannot read the file: {error}", given=file.address, remedy="write it again") from error


def read_all(files: list[File]) -> Iterator[tuple[Window, int]]:
    """Yield each window with the bytes read so far. Without files, read standard input."""
    if not files:
        for window in _read_text(sys.stdin.buffer, STANDARD, "jsonl", USUAL):
            yield window, 0
    before = 0
    for file in files:
        for window in read_windows(file):
            yield window, before + window.done
        before += file.size


def _read_text(raw: IO[bytes], name: str, kind: str, dialect: Dialect) -> Iterator[Window]:
    lines = decoded_lines(raw, dialect, "")  # surrogates mark bad rows
    try:
        if kind == "jsonl":
            yield from _windows(_rows_of_jsonl(lines), name, None, raw)
            return
        records = parse_delimited(lines, dialect.delimiter_of(kind))
        _, header = next(records, (1, []))
        if not header:
            raise InputError("the file is empty", given=name, remedy="a header line with the columns' names, then rows")
        yield from _windows_of_table(records, header, name, raw)
    except BrokenLine as error:
        raise InputError(error.reason, given=f"{name}, line {error.line}", remedy=error.remedy) from None
    finally:
        lines.close()


def _windows_of_table(
    records: Iterable[tuple[int, list[Any]]], header: list[str], name: str, raw: IO[bytes]
) -> Iterator[Window]:
    _check_names(header, name)
    yield from _windows(_rows_of_fields(records, header), name, header, raw)


# First line, number of characters, values or problem.
_Row = tuple[int, int, dict[str, Any] | str]
_Item = TypeVar("_Item")


def _windows(rows: Iterable[_Row], name: str, header: list[str] | None, raw: IO[bytes]) -> Iterator[Window]:
    for group in _grouped(rows, lambda row: (1, row[1])):
        lines = [line for line, _, row in group if not isinstance(row, str)]
        values = [row for _, _, row in group if not isinstance(row, str)]
        bad = [BadRow(name, line, row) for line, _, row in group if isinstance(row, str)]
        names = header if header is not None else list(dict.fromkeys(key for row in values for key in row))
        window = Window(name, names, values, None, lines, bad, is_table=header is not None)
        with contextlib.suppress(OSError, ValueError):  # a pipe has no position
            window.done = raw.tell()
        yield window


def _grouped(items: Iterable[_Item], sizes_of: Callable[[_Item], tuple[int, int]]) -> Iterator[list[_Item]]:
    group: list[_Item] = []
    rows, size, is_first = 0, 0, True
    for item in items:
        more_rows, more_bytes = sizes_of(item)
        group.append(item)
        rows, size = rows + more_rows, size + more_bytes
        if rows >= WINDOW_ROWS or size >= WINDOW_BYTES:
            yield group
            group, rows, size, is_first = [], 0, 0, False
    if group or is_first:
        yield group


def _rows_of_fields(records: Iterable[tuple[int, list[Any]]], header: list[str]) -> Iterator[_Row]:
    for line, fields in records:
        if not fields:
            continue
        if len(fields) != len(header):
            yield line, 0, f"the row has {len(fields)} columns, the header {len(header)}"
        elif not is_utf8(whole := "".join(map(str, fields))):
            yield line, 0, _wrong_bytes(whole)
        else:
            yield line, len(whole), dict(zip(header, fields, strict=True))


def _rows_of_jsonl(lines: Iterable[str]) -> Iterator[_Row]:
    for line, text, row in parse_jsonl(lines, finite=True):  # NaN cannot be written as JSON
        if not isinstance(row, dict):
            yield line, 0, f"the line is no JSON object{f': {row}' if isinstance(row, Exception) else ''}"
        elif not is_utf8(text) or ("\\ud" in text.lower() and not is_utf8(json.dumps(row, ensure_ascii=False))):
            yield line, 0, _wrong_bytes(text)
        else:
            yield line, len(text), row


def _wrong_bytes(text: str) -> str:
    return f"the row is not valid UTF-8 or of the given encoding ({other_encoding(text)})"


def _read_parquet(raw: IO[bytes], file: File) -> Iterator[Window]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20) as table:
            schema, number, total = table.schema_arrow, 0, max(1, table.metadata.num_rows)
            _check_names(schema.names, file.address)
            # Small batches: 300 bytes may become gigabytes.
            small = table.iter_batches(min(_ROWS_AT_ONCE, WINDOW_ROWS))
            for group in _grouped(small, lambda batch: (batch.num_rows, batch.nbytes)):
                batch = pa.concat_batches(group) if group else pa.RecordBatch.from_pylist([], schema=schema)
                lines = list(range(number + 1, number + batch.num_rows + 1))
                number += batch.num_rows
                yield Window(file.address, schema.names, [], batch, lines, done=round(file.size * number / total))
    except pa.ArrowException as error:
        raise InputError(f"not a readable Parquet file: {error}", given=file.address, remedy="write it again") from None


def _check_names(names: list[str], file: str) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError("two columns have one name", given=f"{file}: {', '.join(twice)}", remedy="rename one")
    if not all(map(is_utf8, names)):
        raise InputError("the header is not valid UTF-8", given=file, remedy="name its --encoding")
