"""Parses tables of text record by record, in constant memory: CSV and TSV with quoting, and JSONL.

The caller decodes the lines and decides what a broken record means for it. Each record comes with the line, counted
from 1, on which it begins.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

Format = Literal["csv", "tsv", "jsonl", "parquet"]
# The formats of tables by the ending of their files.
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}
# A longer line is no row of a table. Without a limit, a quote that is never closed would swallow the whole file.
LONGEST_LINE = 64 << 20


class BrokenQuoting(Exception):
    """The rest of a CSV or TSV file cannot be parsed, from the record on that begins at `line`."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason, line)
        self.reason, self.line = reason, line


def parse_delimited(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Parse lines, with their line ends, by csv's quoting rules: a quoted field may hold delimiters and line breaks.

    Yields:
        the line on which a record begins, and its fields. The header comes first; a blank line has no fields.

    Raises:
        BrokenQuoting: a quote is not closed or not doubled, or a carriage return stands inside a record.
    """
    csv.field_size_limit(LONGEST_LINE)  # Python's own limit of 128 KiB is short for a document
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    begins = 1
    try:
        for fields in reader:
            line, begins = begins, reader.line_num + 1
            yield line, fields
    except csv.Error as error:
        raise BrokenQuoting(str(error), begins) from None


def _finite(text: str) -> float:
    """A number of JSON as Python holds it; ValueError if it is none, or too large."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is no number that JSON can hold")
    return number


_FINITE = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def parse_jsonl(lines: Iterable[str], *, finite: bool = False) -> Iterator[tuple[int, str, Any]]:
    """Parse one JSON value a line; blank lines are left out. `finite` refuses numbers that JSON cannot hold (NaN,
    1e999), which Python reads and writes.

    Yields:
        the line's number, its text, and its value. The value of a line that is no JSON is the error.
    """
    decoder = _FINITE if finite else json.JSONDecoder()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                value = decoder.decode(line)
            except (ValueError, RecursionError) as error:
                value = error
            yield number, line, value
