"""The fingerprint of a run's rows, equal in every file format and from memory."""

import hashlib
import json
import platform
from functools import lru_cache

from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.tasks import task_of
from kdc.pipeline.data.problems import FileProblem, Problems, is_missing
from kdc.pipeline.data.readers import read_fields
from kdc.pipeline.data.sources import HUB_NAME, Columns, SplitSource, columns_for, for_split, locate


def input_fingerprint(data: DataSettings) -> str:
    """SHA-256 (hex) of the columns that a run reads, the hub's name, or Python's version for `pydocs`.

    Raises:
        InputError: as `locate`, or a labelled table's description is damaged.
    """
    digest, task, sources = hashlib.sha256(), task_of(data), locate(data)
    origins = {"pydocs": platform.python_version(), "hub": HUB_NAME}
    for source in sources:
        origin = origins.get(source.format)
        if origin is not None:
            described = [source.format, source.part, source.task, origin]
        else:
            stats = [file.stat() for file in source.files]
            versions = tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
            described = [_of_rows(source, columns_for(source, task, for_split(source, sources, data)), versions)]
        digest.update(json.dumps([source.split, *described]).encode())
    return digest.hexdigest()


@lru_cache(maxsize=16)
def _of_rows(source: SplitSource, columns: Columns, versions: tuple[tuple[int, ...], ...]) -> str:
    """`versions` gives a changed file another key in the cache."""
    digest, problems = hashlib.sha256(), Problems()
    try:
        for _, fields in read_fields(source, columns, problems):
            row = [field if type(field) is str else _plain(field) for field in fields]
            digest.update(ascii(row).encode())  # faster than JSON
    except FileProblem as problem:
        problems.add(source, problem.line, problem)
    return f"{digest.hexdigest()} {len(problems)}"


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if is_missing(value):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)
