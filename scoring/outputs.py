"""Writes answered windows: each a piece of bytes, and the pieces joined to one file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import orjson

from errors import InputError
from scoring.inputs import Window

if TYPE_CHECKING:
    import pyarrow as pa

_BETWEEN = "|"  # labels of a multi-label task in one cell


class Writer:
    """One format of output.

    Args:
        kind: csv, tsv, jsonl or parquet.
        added: new columns with what they hold, see `Columns.added`.
    """

    def __init__(self, kind: str, added: Mapping[str, str]) -> None:
        self.kind = kind
        self._added = dict(added)
        self._names: list[str] | None = None  # of the first window: what every row of a table has
        self._schema: pa.Schema | None = None

    def check(self, window: Window) -> None:
        """See that the window's columns fit those before, and that the new ones are new.

        Raises:
            InputError: they do not.
        """
        taken = sorted(set(window.names) & set(self._added))
        if taken:
            raise InputError(
                f"the input has a column {', '.join(taken)} already", given=window.file,
                remedy="give the new columns other names: --prefix predicted_",
            )  # fmt: skip
        if self.kind == "jsonl" or not window.names:
            return
        if self._names is None:
            self._names = list(window.names)
        elif more := [name for name in window.names if name not in self._names]:
            raise InputError(
                f"rows have columns that the first ones have not: {', '.join(more[:5])}", given=window.file,
                remedy="write .jsonl, or one output for each file",
            )  # fmt: skip

    def learn(self, piece: bytes) -> None:
        """Take a finished piece's column types over, of a job that goes on."""
        if self.kind == "parquet" and piece and self._schema is None:
            import pyarrow.parquet as pq

            self._schema = pq.read_schema(io.BytesIO(piece))

    def piece(self, window: Window, answers: Mapping[str, Sequence[Any]]) -> bytes:
        """A window's rows with their answers, without a header.

        Raises:
            InputError: the values of a column are not of the type that it began with.
        """
        if self.kind == "jsonl":
            return b"".join(self._lines(window, answers))
        if self.kind == "parquet":
            return self._table(window, answers)
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, delimiter=self._separator, lineterminator="\n")
        names = self._names or []
        for place, row in enumerate(window.rows):
            added = (_cell(values[place]) for values in answers.values())
            writer.writerow([*(_cell(row.get(name)) for name in names), *added])
        return stream.getvalue().encode()

    def join(self, pieces: Iterable[bytes], stream: IO[bytes]) -> None:
        """Write the pieces as one file."""
        if self.kind == "parquet":
            self._join_tables(pieces, stream)
            return
        if self.kind != "jsonl":
            header = io.StringIO(newline="")
            csv.writer(header, delimiter=self._separator, lineterminator="\n").writerow(
                [*(self._names or []), *self._added]
            )
            stream.write(header.getvalue().encode())
        for piece in pieces:
            stream.write(piece)

    @property
    def _separator(self) -> str:
        return "\t" if self.kind == "tsv" else ","

    def _lines(self, window: Window, answers: Mapping[str, Sequence[Any]]) -> Iterable[bytes]:
        for place, row in enumerate(window.rows):
            whole = row | {name: values[place] for name, values in answers.items()}
            try:
                yield orjson.dumps(whole, default=str, option=orjson.OPT_APPEND_NEWLINE)
            except orjson.JSONEncodeError:  # integers beyond 64 bits, or a lone surrogate in another column
                yield json.dumps(whole, default=str).encode() + b"\n"

    def _table(self, window: Window, answers: Mapping[str, Sequence[Any]]) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not window.rows and window.schema is None:  # nothing to know the types by
            return b""
        values = {name: [row.get(name) for row in window.rows] for name in self._names or []}
        try:
            if self._schema is None:
                self._schema = self._schema_of(window, values)
            table = pa.table(values | dict(answers), schema=self._schema)
        except (pa.ArrowException, UnicodeEncodeError) as error:
            raise InputError(
                f"a column's values are of different types: {error}",
                given=f"{window.file}, lines {window.lines[0]} to {window.lines[-1]}", remedy="write .jsonl",
            ) from None  # fmt: skip
        stream = io.BytesIO()
        pq.write_table(table, stream)
        return stream.getvalue()

    def _schema_of(self, window: Window, values: Mapping[str, list[Any]]) -> pa.Schema:
        """The input's own types; of CSV text, of JSONL what the first window holds."""
        import pyarrow as pa

        own = window.schema if window.schema is not None else pa.table(dict(values)).schema
        # A column of nothing but nulls so far may yet hold text.
        own = pa.schema([each.with_type(pa.string()) if pa.types.is_null(each.type) else each for each in own])
        types = {"text": pa.string(), "texts": pa.list_(pa.string()), "number": pa.float32()}
        return pa.schema([*own, *((name, types[what]) for name, what in self._added.items())])

    def _join_tables(self, pieces: Iterable[bytes], stream: IO[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        writer = None
        for piece in filter(None, pieces):
            table = pq.read_table(io.BytesIO(piece))
            writer = writer or pq.ParquetWriter(stream, table.schema)
            writer.write_table(table)
        if writer is None:  # no row at all
            types = {"text": pa.string(), "texts": pa.list_(pa.string()), "number": pa.float32()}
            writer = pq.ParquetWriter(stream, pa.schema([(name, types[what]) for name, what in self._added.items()]))
        writer.close()


def _cell(value: Any) -> str:
    """A value as CSV has it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return _BETWEEN.join(value)
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
