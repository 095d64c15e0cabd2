"""Bulk scoring on Ray (`--engine ray`): files are read, and their windows answered, side by side on all nodes.

A Dataset of the input's files; each becomes its windows; actors answer them (`ray_workers.py`) and write a shard
for each. What comes back here is records alone. The output is a directory of shards whose sorted names are in the order
of the input. On a disk it appears whole; in an object store it grows, and `_SUCCESS` is written last.
"""

from __future__ import annotations

import importlib
import logging
import pickle
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import MANIFEST_NAME, Manifest
from kdc.common.errors import KdcError
from kdc.common.places import Folder, file_system, is_local
from kdc.serving.bulk.inputs import read_windows
from kdc.serving.bulk.job import JOB, SUCCESS, Counts, Job, Kept, Progress, begin, lock, usable
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.ray_cluster import Actors
from kdc.serving.bulk.ray_workers import Answerer, Model, Row, Work, key_of, windows_of

# Reading and parsing is many times faster than answering, and readers take no core of their own.
_ACTORS_A_READER = 4


def run(
    ray: Any,
    job: Job,
    artifact: Path,
    manifest: Manifest,
    *,
    variant: str | None,
    actors: Actors,
    progress: Progress | None = None,
) -> Counts:
    """Answer everything.

    Args:
        ray: connected, see `on_ray.connected`.
        job: what.
        artifact: folder of the artifact. It travels through Ray: the nodes need not reach it.
        manifest: of the artifact.
        variant: of the model; None takes the manifest's choice.
        actors: how many, and what each has.
        progress: called with the rows' counts and the bytes of the input that are done, after each window.

    Raises:
        InputError: the input cannot be used, a bad row where those stop the job, or an output that is there.
        KdcError: a worker failed, or what was finished is gone.
    """
    records = Folder(f"{job.output}.partial", first=JOB)
    grows = not is_local(file_system(job.output)[0])
    shards = Folder(job.output if grows else f"{job.output}.partial/rows", first=SUCCESS)
    importlib.import_module("ray.data")  # which `import ray` leaves out
    with lock(job):
        goes_on = begin(job, records, shards if grows else None)
        writer = Writer(job.kind, job.columns.added(manifest.task))
        known_from = _first_rows(job, writer)
        kept = Kept(records, shards, f".{job.kind}")
        work = Work(job, writer, kept, records, goes_on, known_from, run=str(time.time_ns()))
        model = Model(_content(artifact, manifest), manifest.sha256, variant)
        with _quiet(ray), _told(), closing(_rows(ray, work, model, actors)) as rows:
            counts, done = _gather(job, rows, progress)
        _check(job, kept, shards, done)
        _finish(job, kept, shards, done, grows=grows)
        records.remove()
    return counts


def _first_rows(job: Job, writer: Writer) -> tuple[int, int]:
    """Read up to the first usable row, which settles the output's columns and types. Returns its file and window.

    Raises:
        InputError: as in a job that reads window after window.
    """
    place = (0, 0)
    for number, file in enumerate(job.files):
        for window_number, window in enumerate(read_windows(file)):
            place = (number, window_number)
            writer.check(window)
            good, _ = usable(job, window, known=False)
            writer.begin_with(good)
            if good.lines:
                return place
    return place


def _content(artifact: Path, manifest: Manifest) -> dict[str, bytes]:
    return {name: (artifact / name).read_bytes() for name in (MANIFEST_NAME, *manifest.files)}


def _rows(ray: Any, work: Work, model: Model, actors: Actors) -> Generator[Row]:
    """Each window's record, as they come."""
    files = [{"file": number} for number in range(len(work.job.files))]
    readers = max(1, min(len(files), actors.count // _ACTORS_A_READER))
    windows = ray.data.from_items(files, override_num_blocks=len(files)).flat_map(
        windows_of, fn_kwargs={"work": work}, num_cpus=0, concurrency=readers
    )
    task = ray.put((work, model, actors))  # once; each node then fetches it once
    answered = windows.map(
        Answerer,
        fn_constructor_args=[[task]],
        compute=ray.data.ActorPoolStrategy(size=actors.count),
        num_cpus=actors.threads,
        num_gpus=actors.gpus or None,
    )
    yield from answered.iter_rows()


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Ray Data without a word, and with a block for each window: one that is answered does not wait for others."""
    context = ray.data.DataContext.get_current()
    wanted = {"enable_progress_bars": False, "print_on_execution_start": False, "target_max_block_size": 1}
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.")  # that a small job leaves actors idle
            yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


@contextmanager
def _told() -> Iterator[None]:
    """What Ray raises, without its tracebacks."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise KdcError(
            "a worker of Ray failed",
            given=lines[-1] if lines else type(error).__name__,
            remedy="is this version of kdc installed on every node? else see Ray's logs, by default in "
            "/tmp/ray/session_latest/logs",
        ) from error


def _gather(
    job: Job, rows: Iterator[Row], progress: Progress | None
) -> tuple[Counts, dict[tuple[int, int], dict[str, Any]]]:
    """Rows' counts, and each window's record by file and window.

    Raises:
        KdcError: what a worker told, or windows that did not come back.
    """
    counts, done, windows = Counts(), {}, {}
    read = [0] * len(job.files)
    for row in rows:
        record, file, window = pickle.loads(row["data"]), int(row["file"]), int(row["window"])
        if isinstance(record, KdcError):
            raise record
        if row["last"]:
            windows[file] = window + 1
        if (file, window) not in done:
            done[file, window] = record
            counts.add(record, resumed=bool(row["resumed"]))
        read[file] = max(read[file], int(row["done"]))
        if progress is not None:
            progress(counts, sum(read))
    wanted = {(file, window) for file, many in windows.items() for window in range(many)}
    if len(windows) < len(job.files) or wanted != set(done):
        raise KdcError(
            "not every window came back",
            given=f"{len(done)} windows of {len(windows)} files, of {len(job.files)}",
            remedy="the same command answers what is missing",
        )
    return counts, done


def _check(job: Job, kept: Kept, shards: Folder, done: dict[tuple[int, int], dict[str, Any]]) -> None:
    """Rows in are rows out, and all shards lie where this process sees them, as they were written.

    Raises:
        KdcError: they do not.
    """
    sizes = shards.sizes()
    for place, record in done.items():
        key = key_of(*place)
        kept.check_size(key, record["bytes"], sizes.get(f"{key}.{job.kind}"))
        if record["read"] != record["written"] + record["skipped"]:
            raise KdcError("rows were lost", given=f"{key}: {record}", remedy="this is a bug of kdc, please report it")


def _finish(job: Job, kept: Kept, shards: Folder, done: dict[tuple[int, int], dict[str, Any]], *, grows: bool) -> None:
    """Name the bad rows, and let the output appear."""
    if job.errors is not None:
        kept.name_errors(job.errors, (key_of(*place) for place in sorted(done) if done[place]["skipped"]))
    shards.write(SUCCESS, b"")
    if not grows:
        shards.move(job.output)
