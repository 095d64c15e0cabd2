"""Reads a table in windows of rows, in order and in constant memory: CSV, TSV, JSONL, Parquet, or JSONL on stdin.

All columns are kept. CSV and TSV hold text; what JSONL and Parquet hold keeps its type. A row that is no row (too few
columns, not JSON, not UTF-8) is reported with its file and line, and what to do with it is the caller's choice.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from kdc.common.errors import InputError
from kdc.common.places import STANDARD, File, reaching

if TYPE_CHECKING:
    import pyarrow as pa

WINDOW_ROWS = 8192
_WINDOW_BYTES = 32 << 20  # long texts make smaller windows
_LINE_LIMIT = 64 << 20  # characters: what is longer is no row, and an unclosed quote would swallow the file


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
        file: as people are told it.
        names: of the columns.
        rows: values by column; what JSONL leaves out is left out. Empty where there is a batch.
        batch: the rows of a Parquet file, as Arrow has them.
        lines: where each row begins: a line of a text file, the row's number (from 1) of Parquet.
        bad: rows that are none.
        done: bytes of the file that were read so far, about.
    """

    file: str
    names: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    batch: pa.RecordBatch | None = None
    lines: list[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    done: int = 0

    def __len__(self) -> int:
        """Rows, the bad ones among them."""
        return len(self.lines) + len(self.bad)

    def column(self, name: str) -> list[Any]:
        """A column's values; None where a row has none."""
        if self.batch is None:
            return [row.get(name) for row in self.rows]
        return self.batch.column(name).to_pylist()

    def dicts(self) -> list[dict[str, Any]]:
        """The rows, values by column.

        Raises:
            InputError: Parquet holds a value that Python has not.
        """
        if self.batch is None:
            return self.rows
        try:
            return self.batch.to_pylist()
        except (ValueError, OverflowError) as error:  # nanoseconds, years beyond 9999
            raise InputError(
                f"a value has no form in text: {error}", given=self.file, remedy="write .parquet"
            ) from error

    def without(self, bad: list[BadRow]) -> Window:
        """The window without rows that turned out to be bad."""
        lines = {each.line for each in bad}
        kept = [place for place, line in enumerate(self.lines) if line not in lines]
        return Window(
            self.file,
            self.names,
            [self.rows[place] for place in kept] if self.batch is None else [],
            self.batch.take(kept) if self.batch is not None else None,
            [self.lines[place] for place in kept],
            sorted([*self.bad, *bad], key=lambda each: each.line),
            self.done,
        )


def read_windows(file: File) -> Iterator[Window]:
    """Windows of a file, the same ones each time; one without rows where the file has none.

    Raises:
        InputError: the file cannot be read (any further).
        KdcError: nor can the store.
    """
    with reaching(file.system, file.address):
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
    """Windows of JSONL on standard input."""
    yield from _read_text(sys.stdin.buffer, STANDARD, "jsonl")


def _read_text(raw: IO[bytes], name: str, kind: str) -> Iterator[Window]:
    # What is not UTF-8 becomes surrogates, which no row may hold: it is reported, and the file goes on.
    stream = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        if kind == "jsonl":
            yield from _windows_of_objects(stream, name, raw)
        else:
            yield from _windows_of_fields(stream, name, "," if kind == "csv" else "\t", raw)
    finally:
        stream.detach()


class _Gathering:
    """Rows on their way into windows.

    Args:
        name: of the file.
        header: column names; None where each row has its own.
        raw: the file, to tell how far it was read.
    """

    def __init__(self, name: str, header: list[str] | None, raw: IO[bytes]) -> None:
        self._name, self._header, self._raw = name, header, raw
        self._any = False
        self._new()

    def _new(self) -> None:
        self._window, self._characters = Window(self._name, self._header or []), 0

    def row(self, row: dict[str, Any], line: int, characters: int) -> None:
        """One more row."""
        self._window.rows.append(row)
        self._window.lines.append(line)
        self._characters += characters

    def bad(self, line: int, problem: str) -> None:
        """One that is none."""
        self._window.bad.append(BadRow(self._name, line, problem))

    @property
    def is_full(self) -> bool:
        """Whether it is time for the next window."""
        return len(self._window) >= WINDOW_ROWS or self._characters >= _WINDOW_BYTES

    @property
    def is_needed(self) -> bool:
        """At the end: whether there is something left, or nothing was there at all."""
        return len(self._window) > 0 or not self._any

    def take(self) -> Window:
        """The window, and begin the next."""
        window = self._window
        if self._header is None:
            window.names = list(dict.fromkeys(name for row in window.rows for name in row))
        try:
            window.done = self._raw.tell()
        except (OSError, ValueError):  # a pipe
            window.done = 0
        self._any = True
        self._new()
        return window


def _windows_of_fields(stream: IO[str], name: str, separator: str, raw: IO[bytes]) -> Iterator[Window]:
    csv.field_size_limit(_LINE_LIMIT)
    reader = csv.reader(_lines(stream, name), delimiter=separator, strict=True)
    begins = 1
    try:
        header = next(reader, None)
        if not header:
            raise InputError("the file is empty", given=name, remedy="a header line with the columns' names, then rows")
        _check_names(header, name)
        gathering, begins = _Gathering(name, header, raw), reader.line_num + 1
        for fields in reader:
            line, begins = begins, reader.line_num + 1
            if not fields:  # a blank line
                continue
            if len(fields) != len(header):
                gathering.bad(line, f"the row has {len(fields)} columns, the header {len(header)}")
            elif not _is_utf8(whole := "".join(fields)):
                gathering.bad(line, "the row is not valid UTF-8")
            else:
                gathering.row(dict(zip(header, fields, strict=True)), line, len(whole))
            if gathering.is_full:
                yield gathering.take()
    except csv.Error as error:
        raise InputError(
            f"broken quoting: {error}",
            given=f"{name}, line {begins}",
            remedy='write a quote inside a quoted field twice (""), and close every quote',
        ) from None
    if gathering.is_needed:
        yield gathering.take()


def _windows_of_objects(stream: IO[str], name: str, raw: IO[bytes]) -> Iterator[Window]:
    gathering = _Gathering(name, None, raw)
    for line, text in enumerate(_lines(stream, name), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            gathering.bad(line, "the line is no JSON object")
        elif not _is_utf8(text) or ("\\ud" in text.lower() and not _is_utf8(json.dumps(row, ensure_ascii=False))):
            gathering.bad(line, "the row is not valid UTF-8")
        else:
            gathering.row(row, line, len(text))
        if gathering.is_full:
            yield gathering.take()
    if gathering.is_needed:
        yield gathering.take()


def _lines(stream: IO[str], name: str) -> Iterator[str]:
    """Lines of bounded length.

    Raises:
        InputError: a line is longer.
    """
    number = 0
    while line := stream.readline(_LINE_LIMIT):
        number += 1
        if len(line) == _LINE_LIMIT and not line.endswith("\n"):
            raise InputError(
                f"a line is longer than {_LINE_LIMIT >> 20} million characters",
                given=f"{name}, line {number}",
                remedy="one row a line: is this another format?",
            )
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
            content = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
            a_window = max(1, min(WINDOW_ROWS, _WINDOW_BYTES * total // max(1, content)))
            for batch in table.iter_batches(a_window):
                lines = list(range(number + 1, number + batch.num_rows + 1))
                number += batch.num_rows
                yield Window(file.address, names, [], batch, lines, [], round(file.size * number / total))
            if not number:
                empty = pa.RecordBatch.from_pylist([], schema=table.schema_arrow)
                yield Window(file.address, names, [], empty, [], [], file.size)
    except pa.ArrowException as error:
        raise InputError(f"not a readable Parquet file: {error}", given=file.address, remedy="write it again") from None


def _check_names(names: list[str], file: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError("two columns have one name", given=f"{file}: {', '.join(twice)}", remedy="rename one")
    if not all(map(_is_utf8, names)):
        raise InputError("the header is not valid UTF-8", given=file, remedy="save the file as UTF-8")


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
