"""Writes rows in memory as `given/<split>.parquet` of the run, which reads them like any file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdc.common.errors import InputError
from kdc.common.files import whole_file
from kdc.pipeline.config.resolve import Layer, resolve
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import Task, task_of
from kdc.pipeline.data.problems import RowProblem
from kdc.pipeline.data.readers import find_columns
from kdc.pipeline.data.sources import SplitSource, columns_for
from kdc.pipeline.rundir.directory import locked, root_of
from kdc.pipeline.training import ranks

_FORMS = "(texts, labels), a pandas or polars DataFrame, a datasets.Dataset, or a path; unlabeled also takes texts"


def resolve_with_rows(held: Mapping[str, Any], flags: Layer, file: Layer) -> Config:
    """Resolve the settings, and write the rows.

    Args:
        held: rows of "train", "eval" or "unlabeled".

    Raises:
        InputError: wrong settings, rows that are no table, or another run in the directory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"text": "text"} if any(isinstance(rows, list | tuple) for rows in held.values()) else {}
    data = flags["data"] | {split: Path(f"{split}.parquet") for split in held}
    config = resolve(flags=flags | {"data": data}, sets={}, file=file | {"data": columns | file.get("data", {})})
    root, task = root_of(config), task_of(config.data)
    files = {split: root / "given" / f"{split}.parquet" for split in held}
    reading = config.model_copy(update={"data": config.data.model_copy(update=files)})
    if ranks.rank() > 0:  # the leader writes
        return reading
    with locked(root):
        for split, path in files.items():
            wanted = columns_for(SplitSource(split, "parquet", path), task, config.data)
            try:
                table = _table(held[split], task, is_labelled=split != "unlabeled")
                places = find_columns(table.column_names, wanted)
                path.parent.mkdir(exist_ok=True)
                with whole_file(path) as stream:
                    pq.write_table(table.select([place for place in places if place is not None]), stream)
            except RowProblem as problem:
                raise InputError(f"{problem.what}: {problem.detail}", given=split, remedy=problem.remedy) from None
            except (pa.ArrowException, TypeError, ValueError) as error:
                what = f"{split} is no table of rows: {error}"
                raise InputError(what, given=type(held[split]).__name__, remedy=_FORMS) from None
    return reading


def _table(rows: Any, task: Task, *, is_labelled: bool) -> Any:
    import pyarrow as pa

    if hasattr(rows, "with_format"):  # a datasets.Dataset
        return rows.with_format("arrow")[:]
    if not isinstance(rows, list | tuple):
        return pa.table(rows)
    texts, labels = rows if is_labelled else (rows, None)
    if isinstance(texts, str):
        raise TypeError("a text is where a list of texts belongs")
    sides = [texts] if task.text_pair is None else list(zip(*texts, strict=True))
    columns = dict(zip((task.text, task.text_pair), map(list, sides), strict=False))
    return pa.table(columns | ({} if labels is None else {task.label: list(labels)}))
