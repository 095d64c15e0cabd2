"""Reads CSV, TSV, GLUE's TSV and JSONL files row by row; constant memory.

Files are UTF-8 (with or without a byte order mark, LF or CRLF). CSV and TSV follow csv's quoting rules, so a quoted
field may hold separators and line breaks; GLUE's own TSV files are not quoted at all. A row that does not fit is
reported with the line it begins on and left out; a file that cannot be read any further ends with `FileProblem`.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from kdc.pipeline.data.columns import Columns, Row, find_columns, make_row
from kdc.pipeline.data.validate import FileLog, FileProblem, RowProblem, show

_LINE_LIMIT_BYTES = 64 << 20  # a "line" beyond that is not a row of text
_COLA_HEADER = ["source", "label", "star", "sentence"]
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _wrong_width(width: int, wanted: int) -> RowProblem:
    what = "row has too few columns" if width < wanted else "row has too many columns"
    remedy = "complete or remove these rows" if width < wanted else "quote fields that hold the separator"
    return RowProblem(what, f"{width} instead of {wanted}", remedy)


def read_csv(path: Path, columns: Columns, log: FileLog, *, delimiter: str) -> Iterator[Row]:
    """Rows of a file with quoting and a header line.

    Raises:
        FileProblem: empty, not UTF-8, wrong columns, or broken quoting.
    """
    # The csv module's limit of 128 KiB is short for a document; without any, an unclosed quote would swallow the file.
    csv.field_size_limit(_LINE_LIMIT_BYTES)
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    begins = 1
    try:
        header = next(reader, [])
        at = find_columns(header, columns)
        begins = reader.line_num + 1
        for fields in reader:
            line, begins = begins, reader.line_num + 1
            if len(fields) == len(header):
                yield make_row(line, fields, at)
            elif fields:  # [] is a blank line
                log.mistake(line, _wrong_width(len(fields), len(header)))
    except csv.Error as error:
        if "new-line character" in str(error):
            remedy = f"end lines with line feeds: tr '\\r' '\\n' < {path} > {path.stem}.lf{path.suffix}"
            raise FileProblem("a carriage return inside a row", remedy=remedy, line=begins) from None
        remedy = 'a quote inside a quoted field is written twice (""), and every quote that opens a field is closed'
        raise FileProblem("broken quoting", str(error), remedy, line=begins) from None


def read_glue(path: Path, columns: Columns, log: FileLog, *, headless: bool, skip_broken: bool) -> Iterator[Row]:
    """Rows of a tab-separated file without quoting.

    Args:
        path: the file.
        columns: what to take.
        log: where rows that do not fit are reported.
        headless: CoLA's: if the first line names no column, it is a row.
        skip_broken: QQP's: rows with too few columns are left out and counted.

    Raises:
        FileProblem: empty, not UTF-8, or wrong columns.
    """
    lines = (line.removesuffix("\n").removesuffix("\r") for line in _lines(path))
    numbered: Iterable[tuple[int, str]] = enumerate(lines, start=1)
    first = next(iter(numbered))
    header = first[1].split("\t")
    if headless and not any(name in header for name in columns.text):
        header, numbered = _COLA_HEADER, chain([first], numbered)
    at = find_columns(header, columns)
    for number, line in numbered:
        fields = line.split("\t")
        if len(fields) == len(header):
            yield make_row(number, fields, at)
        elif line and len(fields) < len(header) and skip_broken:
            log.skip()
        elif line:
            log.mistake(number, _wrong_width(len(fields), len(header)))


def read_jsonl(path: Path, columns: Columns, log: FileLog) -> Iterator[Row]:
    """Rows of a file with one JSON object a line.

    Raises:
        FileProblem: empty, not UTF-8, or one JSON array.
    """
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == 1 and line.lstrip().startswith("["):
                raise _json_array(path) from None
            log.mistake(number, RowProblem("not JSON", show(str(error)), "write one JSON object a line"))
            continue
        if not isinstance(values, dict):
            if number == 1 and isinstance(values, list):
                raise _json_array(path)
            log.mistake(number, RowProblem("not a JSON object", type(values).__name__, "write one JSON object a line"))
            continue
        try:
            yield make_row(number, list(values.values()), find_columns(list(values), columns))
        except FileProblem as problem:  # here each row has its own columns
            log.mistake(number, RowProblem(problem.what, problem.detail, problem.remedy))


def _json_array(path: Path) -> FileProblem:
    remedy = f"convert it: jq -c '.[]' {path} > {path.stem}.jsonl"
    return FileProblem("one JSON array instead of one object a line", remedy=remedy)


def _lines(path: Path) -> Iterator[str]:
    """The decoded lines with their ends, split at line feeds only: a text may hold any other separator.

    Raises:
        FileProblem: empty file, not UTF-8, or a line that never ends.
    """
    number = 0
    with open(path, "rb") as stream:
        while raw := stream.readline(_LINE_LIMIT_BYTES):
            number += 1
            if number == 1:
                if raw.startswith(_UTF16_MARKS):
                    raise _not_utf8(path, 1, "it begins with the mark of UTF-16", "UTF-16")
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if len(raw) == _LINE_LIMIT_BYTES:
                raise FileProblem(f"a line longer than {_LINE_LIMIT_BYTES >> 20} MiB", line=number)
            if b"\0" in raw:
                at = raw.index(b"\0") + 1
                raise _not_utf8(path, number, f"a zero byte, byte {at} of the line", "UTF-16LE")
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"byte 0x{raw[error.start]:02x}, byte {error.start + 1} of the line"
                raise _not_utf8(path, number, where, "WINDOWS-1252") from None
    if number == 0:
        raise FileProblem("the file is empty", remedy="check the path")


def _not_utf8(path: Path, line: int, detail: str, guess: str) -> FileProblem:
    remedy = f"convert it: iconv -f {guess} -t UTF-8 {path} > {path.stem}.utf8{path.suffix} (or name its true encoding)"
    return FileProblem("not UTF-8", detail, remedy, line=line)
