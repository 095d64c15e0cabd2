"""Parses CSV, TSV and JSONL record by record, in constant memory. Lines count from 1."""

import codecs
import csv
import io
import json
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Literal

from kdc.common.errors import InputError

Format = Literal["csv", "tsv", "jsonl", "parquet", "xlsx"]
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}
_OTHER_DELIMITERS = ";\t|,"  # by how usual they are
_ENCODINGS = "cp1252 (Western Europe), cp932 (Japan), gb18030 (China), utf-16"
# Without it, an unclosed quote would swallow the file.
LONGEST_LINE = 64 << 20


@dataclass(frozen=True)
class Dialect:
    delimiter: str | None = None  # None: by the file's ending
    encoding: str | None = None  # None: UTF-8

    def __post_init__(self) -> None:
        if len(mark := self.delimiter_of("csv")) != 1 or mark in '"\r\n\0':
            raise InputError("a delimiter is one character", given=repr(mark), remedy="for example --delimiter ';'")
        try:
            "".encode(self.codec)  # codecs of bytes fail too
        except (LookupError, ValueError):
            raise InputError("no such encoding", given=self.encoding, remedy=f"such as {_ENCODINGS}") from None

    @property
    def codec(self) -> str:
        return self.encoding or "utf-8"

    def delimiter_of(self, format: str) -> str:
        return DELIMITERS[format] if self.delimiter is None else self.delimiter.replace("\\t", "\t")


USUAL = Dialect()


class BrokenLine(Exception):
    def __init__(self, reason: str, line: int, remedy: str) -> None:
        super().__init__(reason, line)
        self.reason, self.line, self.remedy = reason, line, remedy


def decoded_lines(raw: IO[bytes], dialect: Dialect, newline: str) -> Generator[str, None, None]:
    """Lines with their ends (`newline` as of `io.TextIOWrapper`). Bytes of another encoding become surrogates.

    Raises:
        BrokenLine: a line is too long, or its bytes do not decode.
    """
    number, stream = 0, io.TextIOWrapper(raw, encoding=dialect.codec, errors="surrogateescape", newline=newline)
    try:
        for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE), ""), start=1):
            if len(line) == LONGEST_LINE and not line.endswith("\n"):
                what = f"a line is longer than {LONGEST_LINE >> 20} million characters"
                raise BrokenLine(what, number, "one row a line: is this another format?")
            yield line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError:
        raise BrokenLine(f"not {dialect.codec.upper()}", number + 1, f"--encoding {_ENCODINGS}") from None
    finally:
        if not raw.closed:
            stream.detach()


def other_encoding(line: str) -> str:
    """The option for a line of another encoding."""
    raw = line.encode("utf-8", "surrogateescape")
    guess = "utf-16-le" if raw[1::2].count(0) > raw[::2].count(0) else "utf-16-be"
    if b"\0" not in raw:
        guess = "cp1252"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        guess = "utf-16"
    try:
        codecs.getincrementaldecoder(guess)().decode(raw)  # it may end within a character
        return f"--encoding {guess}, or name the true one"
    except UnicodeDecodeError:
        return f"name the encoding: --encoding {_ENCODINGS}"


def other_delimiter(header: Sequence[str]) -> str:
    """The option for a table that seems to be one column, or ""."""
    mark = max(_OTHER_DELIMITERS, key=header[0].count) if len(header) == 1 else ""
    return f"--delimiter {mark!r}" if mark and mark in header[0] else ""


def parse_delimited(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Parse lines with their ends.

    Yields:
        Each record's first line and fields, header first. A blank line has no fields.

    Raises:
        BrokenLine: a quote is not closed or doubled, or a record holds a carriage return.
    """
    csv.field_size_limit(LONGEST_LINE)  # Python's 128 KiB are too few
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    begins = 1
    try:
        for fields in reader:
            line, begins = begins, reader.line_num + 1
            yield line, fields
    except csv.Error as error:
        remedy = 'write a quote inside a quoted field twice (""), and close every quote'
        if begins == 1 and "expected after" in str(error):
            remedy += "; or name the character between the fields, as in --delimiter ';'"
        raise BrokenLine(f"broken quoting: {error}", begins, remedy) from None


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
