"""Reads a table in windows of rows, in order and in constant memory: CSV, TSV, JSONL, Parquet, or JSONL on stdin.

All columns are kept. CSV and TSV hold text; values of JSONL and Parquet keep their types. A row that cannot be read
(too few columns, not JSON, not UTF-8) is reported with its file and line, and the caller decides what to do with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from kdc.common.errors import InputError
from kdc.common.places import STANDARD, File, reaching_remote
from kdc.common.records import DELIMITERS, LONGEST_LINE, BrokenQuoting, parse_delimited, parse_jsonl
from kdc.serving.engine.tokenizing import is_utf8

if TYPE_CHECKING:
    import pyarrow as pa

WINDOW_ROWS = 8192
WINDOW_BYTES = 32 << 20  # long texts make smaller windows
_ROWS_AT_ONCE = 64  # of Parquet: 0.5 us a row more than thousands at once


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
        file: the file's name, for messages.
        names: names of the columns.
        rows: the values of each row by column; a row of JSONL holds only the columns that it names. Empty for Parquet.
        batch: the rows of a Parquet file, as Arrow has them; None for the other formats.
        lines: where each row begins: its line in a text file, its number (from 1) in Parquet.
        bad: rows that cannot be read or answered.
        done: bytes of the file that have been read so far, roughly.
    """

    file: str
    names: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    batch: pa.RecordBatch | None = None
    lines: list[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    done: int = 0

    def __len__(self) -> int:
        """The number of rows, bad ones included."""
        return len(self.lines) + len(self.bad)

    @property
    def place(self) -> str:
        """Where its rows are, for messages."""
        return f"{self.file}, rows from line {self.lines[0]} on" if self.lines else self.file

    def column(self, name: str) -> list[Any]:
        """A column's values; None for rows that do not have it."""
        if self.batch is None:
            return [row.get(name) for row in self.rows]
        return self.batch.column(name).to_pylist()

    def error_lines(self) -> bytes:
        """The bad rows as JSONL."""
        return b"".join(json.dumps(vars(row)).encode() + b"\n" for row in self.bad)

    def dicts(self) -> list[dict[str, Any]]:
        """The rows, as values by column.

        Raises:
            InputError: Parquet holds a value that Python cannot represent.
        """
        if self.batch is None:
            return self.rows
        try:
            return self.batch.to_pylist()
        except (ValueError, OverflowError) as error:  # nanoseconds, years beyond 9999
            what = f"a value has no form in text: {error}"
            raise InputError(what, given=self.file, remedy="write .parquet") from error

    def without(self, bad: list[BadRow]) -> Window:
        """The window with further rows moved to the bad ones."""
        lines = {each.line for each in bad}
        good = [place for place, line in enumerate(self.lines) if line not in lines]
        kept = Window(self.file, self.names, lines=[self.lines[place] for place in good], done=self.done)
        kept.bad = sorted([*self.bad, *bad], key=lambda each: each.line)
        if self.batch is None:
            kept.rows = [self.rows[place] for place in good]
        else:
            import pyarrow as pa

            kept.batch = self.batch.take(pa.array(good, pa.int64()))  # an empty list alone would have no type
        return kept


def read_windows(file: File) -> Iterator[Window]:
    """Read a file in windows, which are the same each time. A file without rows gives one window without rows.

    Raises:
        InputError: the file cannot be read (any further).
        KdcError: the store refused, or did not answer.
    """
    with reaching_remote(file.system, file.address):
        try:
            with file.open() as raw:
                yield from (
                    _read_parquet(raw, file) if file.format == "parquet" else _read_text(raw, file.address, file.format)
                )
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
                raise
            raise InputError(f"cannot read the file: {error}", given=file.address, remedy="write it again") from error


def read_standard_input() -> Iterator[Window]:
    """Read JSONL on standard input in windows."""
    yield from _read_text(sys.stdin.buffer, STANDARD, "jsonl")


def _read_text(raw: IO[bytes], name: str, kind: str) -> Iterator[Window]:
    # Bytes that are not UTF-8 become surrogates. No row may hold those, so its row is reported, and reading goes on.
    stream = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        if kind == "jsonl":
            yield from _windows(_rows_of_jsonl(_lines(stream, name)), name, None, raw)
            return
        records = parse_delimited(_lines(stream, name), DELIMITERS[kind])
        _, header = next(records, (1, []))
        if not header:
            raise InputError("the file is empty", given=name, remedy="a header line with the columns' names, then rows")
        _check_names(header, name)
        yield from _windows(_rows_of_fields(records, header), name, header, raw)
    except BrokenQuoting as error:
        remedy = 'write a quote inside a quoted field twice (""), and close every quote'
        given = f"{name}, line {error.line}"
        raise InputError(f"broken quoting: {error.reason}", given=given, remedy=remedy) from None
    finally:
        stream.detach()


# A row on its way into a window: where it begins, its values or the problem with it, and its number of characters.
_Row = tuple[int, dict[str, Any] | str, int]


def _windows(rows: Iterable[_Row], name: str, header: list[str] | None, raw: IO[bytes]) -> Iterator[Window]:
    """Collect the rows of the file `name` into windows; without a header each row has column names of its own."""
    window, characters, is_first = Window(name, header or []), 0, True
    for line, row, size in rows:
        if isinstance(row, str):
            window.bad.append(BadRow(name, line, row))
        else:
            window.rows.append(row)
            window.lines.append(line)
            characters += size
        if len(window) >= WINDOW_ROWS or characters >= WINDOW_BYTES:
            yield _completed(window, header, raw)
            window, characters, is_first = Window(name, header or []), 0, False
    if len(window) or is_first:  # a file without rows has one empty window
        yield _completed(window, header, raw)


def _completed(window: Window, header: list[str] | None, raw: IO[bytes]) -> Window:
    if header is None:
        window.names = list(dict.fromkeys(name for row in window.rows for name in row))
    with contextlib.suppress(OSError, ValueError):  # a pipe has no position
        window.done = raw.tell()
    return window


def _rows_of_fields(records: Iterable[tuple[int, list[str]]], header: list[str]) -> Iterator[_Row]:
    for line, fields in records:
        if not fields:  # a blank line
            continue
        if len(fields) != len(header):
            yield line, f"the row has {len(fields)} columns, the header {len(header)}", 0
        elif not is_utf8(whole := "".join(fields)):
            yield line, "the row is not valid UTF-8", 0
        else:
            yield line, dict(zip(header, fields, strict=True)), len(whole)


def _rows_of_jsonl(lines: Iterable[str]) -> Iterator[_Row]:
    for line, text, row in parse_jsonl(lines, finite=True):  # they are written again
        if not isinstance(row, dict):
            yield line, f"the line is no JSON object{f': {row}' if isinstance(row, Exception) else ''}", 0
        elif not is_utf8(text) or ("\\ud" in text.lower() and not is_utf8(json.dumps(row, ensure_ascii=False))):
            yield line, "the row is not valid UTF-8", 0
        else:
            yield line, row, len(text)


def _lines(stream: IO[str], name: str) -> Iterator[str]:
    """The lines of a text file.

    Raises:
        InputError: a line is too long to be a row.
    """
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            what = f"a line is longer than {LONGEST_LINE >> 20} million characters"
            raise InputError(what, given=f"{name}, line {number}", remedy="one row a line: is this another format?")
        yield line


def _read_parquet(raw: IO[bytes], file: File) -> Iterator[Window]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20) as table:
            names = table.schema_arrow.names
            _check_names(names, file.address)
            metadata, number = table.metadata, 0
            total = max(1, metadata.num_rows)
            for batch in _gathered(table.iter_batches(min(_ROWS_AT_ONCE, WINDOW_ROWS))):
                lines = list(range(number + 1, number + batch.num_rows + 1))
                number += batch.num_rows
                yield Window(file.address, names, [], batch, lines, [], round(file.size * number / total))
            if not number:
                empty = pa.RecordBatch.from_pylist([], schema=table.schema_arrow)
                yield Window(file.address, names, [], empty, [], [], file.size)
    except pa.ArrowException as error:
        raise InputError(f"not a readable Parquet file: {error}", given=file.address, remedy="write it again") from None


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Put small batches together. What their rows become is seen only then: a file may have a text once for all rows,
    and 300 bytes become gigabytes."""
    import pyarrow as pa

    gathered: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        gathered, rows, size = [*gathered, batch], rows + batch.num_rows, size + batch.nbytes
        if rows >= WINDOW_ROWS or size >= WINDOW_BYTES:
            yield pa.concat_batches(gathered)
            gathered, rows, size = [], 0, 0
    if gathered:
        yield pa.concat_batches(gathered)


def _check_names(names: list[str], file: str) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError("two columns have one name", given=f"{file}: {', '.join(twice)}", remedy="rename one")
    if not all(map(is_utf8, names)):
        raise InputError("the header is not valid UTF-8", given=file, remedy="save the file as UTF-8")
