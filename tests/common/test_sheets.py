"""Sheets: rows come out as written, formulas are not computed, and a small file cannot fill the memory."""

import datetime
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kdc.common import sheets
from kdc.common.errors import InputError
from kdc.common.sheets import read_sheet

openpyxl = pytest.importorskip("openpyxl")
_SHEET = "xl/worksheets/sheet1.xml"
_HEAD = '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
_END = "</sheetData></worksheet>"


def saved(path: Path, rows: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.create_sheet("second").append(["other"])
    book.save(path)
    return path


def with_sheet(path: Path, xml: str) -> Path:
    """A workbook whose first sheet is this XML."""
    whole = saved(path.with_name("whole.xlsx"), [["text"]])
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, xml if part.filename == _SHEET else source.read(part.filename))
    return path


def read(path: Path) -> list[tuple[int, list[Any]]]:
    return list(read_sheet(path, path.name))


def test_rows_of_the_first_sheet_come_out_with_their_numbers(tmp_path: Path) -> None:
    rows: list[list[Any]] = [
        [],
        ["text", "label", None],
        ["für; 5 €", 1],
        [],
        [None, "x"],
        ["a", 0.5, None],
        ["b", "c", "more"],
    ]
    rows.append([datetime.datetime(2026, 12, 3, 8), True])
    assert read(saved(tmp_path / "t.xlsx", rows)) == [
        (2, ["text", "label"]),
        (3, ["für; 5 €", 1]),
        (4, []),
        (5, [None, "x"]),
        (6, ["a", 0.5]),
        (7, ["b", "c", "more"]),
        (8, ["2026-12-03 08:00:00", True]),
    ]


def test_a_formula_is_its_stored_value(tmp_path: Path) -> None:
    cells = '<row r="1"><c r="A1" t="str"><v>text</v></c></row><row r="2"><c r="A2"><f>1+1</f><v>7</v></c></row>'
    never = '<row r="3"><c r="A3"><f>1+1</f></c><c r="B3"><v>1</v></c></row>'
    rows = read(with_sheet(tmp_path / "t.xlsx", _HEAD + cells + never + _END))
    assert rows == [(1, ["text"]), (2, [7]), (3, [None, 1])]


def test_a_wrong_dimension_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "MOST_CELLS", 1000)
    head = _HEAD.replace("<sheetData>", '<dimension ref="A1:XFD1048576"/><sheetData>')
    xml = head + '<row r="1"><c r="A1" t="str"><v>text</v></c></row>' + _END
    assert read(with_sheet(tmp_path / "t.xlsx", xml)) == [(1, ["text"])]


_FAR = '<row r="{}"><c r="A1" t="str"><v>text</v></c></row>'


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (_HEAD + " " * (2 << 20) + _END, "too large"),  # a zip bomb: 1000 to 1
        (_HEAD + _FAR.format(1) + _FAR.format(2_000_000_000) + _END, "too large"),
        (
            _HEAD
            + '<row r="1"><c r="A1" t="str"><v>text</v></c></row>'
            + '<row><c r="XFD2"><v>1</v></c></row>' * 99
            + _END,
            "too large",
        ),
        (_HEAD + _END, "the sheet is empty"),
        (_HEAD, "not a readable .xlsx file"),
        (
            '<!DOCTYPE x [<!ENTITY a "ha">'
            + "".join(f'<!ENTITY {b} "{f"&{a};" * 50}">' for a, b in zip("abcdef", "bcdefg", strict=True))
            + "]>"
            + _HEAD
            + '<row r="1"><c r="A1" t="str"><v>&g;</v></c></row>'
            + _END,
            "not a readable .xlsx file",
        ),
    ],
    ids=["zip bomb", "far row", "many cells", "empty", "cut", "entities"],
)
def test_a_hostile_sheet_is_refused(xml: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "MOST_CELLS", 1_000_000)
    with pytest.raises(InputError, match=message):
        read(with_sheet(tmp_path / "t.xlsx", xml))


def test_an_error_quotes_no_cell(tmp_path: Path) -> None:
    xml = _HEAD + '<row r="1"><c r="A1"><v>a secret text</v></c></row>' + _END
    with pytest.raises(InputError, match="not a readable") as error:
        read(with_sheet(tmp_path / "t.xlsx", xml))
    assert "secret" not in f"{error.value.what} {error.value.given} {error.value.remedy}"


def test_a_file_that_is_no_sheet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_text("text,label\n")
    with pytest.raises(InputError, match=r"not a readable \.xlsx file"):
        read(tmp_path / "t.xlsx")
