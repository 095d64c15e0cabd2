from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import orjson

from kdc.common.errors import InputError
from kdc.common.records import DELIMITERS
from kdc.serving.bulk.inputs import Window
from kdc.serving.bulk.job import Job

if TYPE_CHECKING:
    import pyarrow as pa

_SEPARATOR = "|"


class Writer:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.kind = job.request.format
        self._added = job.added_columns
        unclear = [label for label in job.task.labels if _SEPARATOR in label]
        if unclear and self.kind in DELIMITERS and "texts" in self._added.values():
            what = f"a cell holds several labels with {_SEPARATOR} between them, which stands in a label too"
            raise InputError(what, given=unclear[0], remedy="write .jsonl or .parquet")
        # Columns of the first window; a dict, because there may be 10,000.
        self._names: dict[str, None] | None = None
        self._schema: pa.Schema | None = None

    def check(self, window: Window) -> None:
        taken = sorted(set(window.names) & set(self._added))
        if taken:
            what = f"the input has a column {', '.join(taken)} already"
            raise InputError(what, given=window.file, remedy="give the new columns other names: --prefix predicted_")
        if self.kind == "jsonl" or not window.names:
            return
        if self._names is None:
            self._names = dict.fromkeys(window.names)
        elif more := [name for name in window.names if name not in self._names]:
            what = f"rows have columns that the first ones have not: {', '.join(more[:5])}"
            raise InputError(what, given=window.file, remedy="write .jsonl, or one output for each file")

    @property
    def needs_types(self) -> bool:
        return self.kind == "parquet" and self._schema is None

    def begin_with(self, window: Window) -> None:
        """Take the column types from a window that is answered already."""
        if self.needs_types and (window.lines or window.batch is not None):
            with _refusing(window):
                self._own_columns(window)

    def piece(self, window: Window, answers: Mapping[str, Sequence[Any]]) -> bytes:
        """Answered rows without a header.

        Raises:
            InputError: the format or the column's type cannot hold a value.
        """
        if self.kind == "parquet":
            return self._table(window, answers)
        answers_by_row = zip(*answers.values(), strict=True)
        if self.kind == "jsonl":
            rows = zip(window.dicts(), answers_by_row, strict=True)
            return b"".join(_json_line(row | dict(zip(answers, added, strict=True))) for row, added in rows)
        stream = io.StringIO(newline="")
        plain, quoted = self._csv_writer(stream), self._csv_writer(stream, quoting=csv.QUOTE_ALL)
        for row, added in zip(window.dicts(), answers_by_row, strict=True):
            cells = list(map(_cell, [*(row.get(name) for name in self._names or []), *added]))
            # Python's csv module leaves a lone carriage return unquoted.
            (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)
        return stream.getvalue().encode()

    def join(self, pieces: Iterable[bytes], stream: IO[bytes]) -> None:
        if self.kind == "parquet":
            self._join_tables(pieces, stream)
            return
        if self.kind != "jsonl":
            header = io.StringIO(newline="")
            self._csv_writer(header).writerow([*(self._names or []), *self._added])
            stream.write(header.getvalue().encode())
        for piece in pieces:
            stream.write(piece)

    def file(self, piece: bytes) -> bytes:
        if self.kind == "parquet" and piece:  # already a file
            return piece
        stream = io.BytesIO()
        self.join([piece], stream)
        return stream.getvalue()

    def _csv_writer(self, stream: IO[str], quoting: int = csv.QUOTE_MINIMAL) -> Any:
        return csv.writer(stream, delimiter=DELIMITERS[self.kind], lineterminator="\n", quoting=quoting)  # type: ignore[arg-type]

    def _table(self, window: Window, answers: Mapping[str, Sequence[Any]]) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not window.lines and window.batch is None:  # nothing tells the types
            return b""
        stream = io.BytesIO()
        with _refusing(window):
            own = self._own_columns(window)
            assert self._schema is not None
            present = dict(zip(own.column_names, own.columns, strict=True))
            columns = [present[name] if name in present else pa.nulls(len(own)) for name in self._names or ()]
            columns += [pa.array(answers[name], self._schema.field(name).type) for name in self._added]
            pq.write_table(pa.table(columns, names=self._schema.names).cast(self._schema), stream)
        return stream.getvalue()

    def _own_columns(self, window: Window) -> pa.Table:
        import pyarrow as pa

        own = self._typed(window)
        if self._schema is None:
            self._schema = pa.schema([*own.schema.remove_metadata(), *self._added_fields()])
        return own

    def _typed(self, window: Window) -> pa.Table:
        import pyarrow as pa

        if window.batch is not None:
            return pa.Table.from_batches([window.batch])
        table = pa.table({name: window.column(name) for name in self._names or []})
        fields = []
        for field in table.schema:
            began = None if self._schema is None else self._schema.field(field.name).type
            is_null = pa.types.is_null(field.type)
            # A cast would drop object members that the first window lacked.
            if began is not None and pa.types.is_nested(field.type) and field.type != began:
                raise pa.ArrowInvalid(f"column {field.name} holds {field.type}, and began with {began}")
            fields.append((field.name, (began or pa.string()) if is_null else field.type))
        return table.cast(pa.schema(fields))

    def _added_fields(self) -> list[pa.Field]:
        import pyarrow as pa

        types = {"text": pa.string(), "texts": pa.list_(pa.string()), "number": pa.float32()}
        return [pa.field(name, types[what]) for name, what in self._added.items()]

    def _join_tables(self, pieces: Iterable[bytes], stream: IO[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text = [pa.field(name, pa.string()) for name in self._names or []]
        with pq.ParquetWriter(stream, self._schema or pa.schema([*text, *self._added_fields()])) as writer:
            for piece in filter(None, pieces):
                # read_table needs twice the memory.
                writer.write_table(pq.ParquetFile(io.BytesIO(piece)).read())


@contextmanager
def _refusing(window: Window) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OverflowError) as error:
        what = f"values that one Parquet column cannot hold: {error}"
        raise InputError(what, given=window.position, remedy="write .jsonl") from None


def _json_line(row: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # integers beyond 64 bits
        return json.dumps(row, default=str).encode() + b"\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return _SEPARATOR.join(value)
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
