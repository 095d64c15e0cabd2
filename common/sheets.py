"""Reads the first sheet of an .xlsx file, row by row. Formulas are never computed: their stored value is read."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from kdc.common.errors import InputError, installing

# A small zip file may hold gigabytes, and a small sheet may name a cell far away.
MOST_BYTES, _MOST_RATIO = 512 << 20, 100  # unpacked, and by packed byte
MOST_CELLS, _MOST_ROWS = 50_000_000, 1_048_576  # the format has no more rows
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, LookupError, ValueError, TypeError, AttributeError),
    *(SyntaxError, EOFError, RuntimeError, ArithmeticError),
)


def read_sheet(file: Path | IO[bytes], name: str) -> Iterator[tuple[int, list[Any]]]:
    """Yield each row's number and values, header first. Rows have at least the header's width; blank rows are empty."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise InputError("sheets need openpyxl", given=name, remedy=f"{installing('xlsx')}, or save as .csv") from None
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
        packed, size = sum(part.compress_size for part in parts), sum(part.file_size for part in parts)
        if size > min(MOST_BYTES, max(_MOST_RATIO * packed, 1 << 20)):
            raise _too_large(name, f"{size:,} bytes, packed in {packed:,}")
        sheet = load_workbook(file, read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # programs write wrong ones
        cells = width = 0
        for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
            if (cells := cells + len(row)) > MOST_CELLS or number > _MOST_ROWS:
                raise _too_large(name, f"row {number:,}")
            values = [value if value is None or isinstance(value, str | int | float) else str(value) for value in row]
            while values and values[-1] is None:
                values.pop()
            if not width and values:
                width, values = len(values), ["" if value is None else str(value) for value in values]
            if width:
                yield number, values + [None] * (width - len(values)) if values else []
    except _DAMAGED as error:  # whose words may quote a cell
        what = f"not a readable .xlsx file ({type(error).__name__})"
        raise InputError(what, given=name, remedy="save it again, or as .csv") from None
    if not width:
        raise InputError("the sheet is empty", given=name, remedy="the rows belong into the first sheet")


def _too_large(name: str, what: str) -> InputError:
    return InputError("the sheet is too large", given=f"{name}: {what}", remedy="save it as .csv")
