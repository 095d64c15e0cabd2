"""Parses CSV, TSV and JSONL record by record, in constant memory. Lines count from 1."""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

Format = Literal["csv", "tsv", "jsonl", "parquet"]
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}
# Without it, an unclosed quote would swallow the file.
LONGEST_LINE = 64 << 20


class BrokenQuoting(Exception):
    """A table cannot be parsed from the record at `line` on."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason, line)
        self.reason, self.line = reason, line


def parse_delimited(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Parse lines (with their ends); quoted fields may hold delimiters and line breaks.

    Yields:
        Each record's first line and fields, header first. A blank line has no fields.

    Raises:
        BrokenQuoting: a quote is not closed or doubled, or a record holds a carriage return.
    """
    csv.field_size_limit(LONGEST_LINE)  # Python's 128 KiB are too few
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    begins = 1
    try:
        for fields in reader:
            line, begins = begins, reader.line_num + 1
            yield line, fields
    except csv.Error as error:
        raise BrokenQuoting(str(error), begins) from None


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is no number that JSON can hold")
    return number


_FINITE = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def parse_jsonl(lines: Iterable[str], *, finite: bool = False) -> Iterator[tuple[int, str, Any]]:
    """Parse a JSON value a line, skipping blank lines. `finite` refuses NaN and 1e999.

    Yields:
        Line number, text, and value (for a broken line, its error).
    """
    decoder = _FINITE if finite else json.JSONDecoder()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                value = decoder.decode(line)
            except (ValueError, RecursionError) as error:
                value = error
            yield number, line, value
