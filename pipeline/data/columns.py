"""Which columns of a file are read, and where they stand in its header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kdc.pipeline.data.validate import FileProblem, nearest_name, show


@dataclass(frozen=True)
class Columns:
    """The columns to read: for each the names it may have, best first; () where it is not wanted."""

    text: tuple[str, ...]
    text_pair: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    group: tuple[str, ...] = ()


class Row(NamedTuple):
    """One row as it was read, unchecked. `line` counts from 1: lines in text files, rows elsewhere."""

    line: int
    text: object
    text_pair: object
    label: object
    group: object


class Positions(NamedTuple):
    """Where the wanted columns stand in a row; None where one is not wanted."""

    text: int
    text_pair: int | None
    label: int | None
    group: int | None


def find_columns(header: Sequence[str], columns: Columns) -> Positions:
    """Where the wanted columns stand.

    Raises:
        FileProblem: one is missing or there twice; names all of them, with the nearest name.
    """
    found: list[int | None] = []
    faults: list[str] = []
    for names in (columns.text, columns.text_pair, columns.label, columns.group):
        name = next((name for name in names if name in header), None)
        found.append(None if name is None else header.index(name))
        if names and name is None:
            faults.append(f"no column {names[-1]!r}{nearest_name(names[-1], header)}")
        elif name is not None and header.count(name) > 1:
            faults.append(f"column {name!r} is there {header.count(name)} times")
    text = found[0]
    if faults or text is None:
        shown = ", ".join(show(name) for name in header[:20]) + (", ..." if len(header) > 20 else "")
        remedy = "name the columns: --text, --text-pair, --label"
        if len(header) == 1 and any(mark in header[0] for mark in ";\t,|"):
            remedy = "fields are separated by commas in .csv and by tabs in .tsv: rename or convert the file"
        raise FileProblem("wrong columns", f"{'; '.join(faults)}; the file has: {shown}", remedy)
    return Positions(text, found[1], found[2], found[3])


def make_row(line: int, fields: Sequence[object], at: Positions) -> Row:
    """The wanted fields of a row."""
    text, pair, label, group = at
    return Row(
        line,
        fields[text],
        None if pair is None else fields[pair],
        None if label is None else fields[label],
        None if group is None else fields[group],
    )
