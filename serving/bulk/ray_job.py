"""Answers a table on Ray (`--engine ray`).

Actors write a shard per window. A local directory of shards appears whole. In an object store `_SUCCESS` comes last.
"""

import importlib
import logging
import pickle
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from kdc.artifact.manifest import MANIFEST_NAME, Device, Manifest
from kdc.common.errors import InputError, KdcError
from kdc.common.places import Folder, file_system, is_local, lock
from kdc.serving.bulk.inputs import read_windows
from kdc.serving.bulk.job import SUCCESS, Counts, FinishedWindows, Job, Progress, WindowRecord
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.ray_workers import Actors, Answerer, Row, Work, key_of, windows_of
from kdc.serving.bulk.windows import split_bad

# Reading is many times faster than answering.
_ACTORS_A_READER = 4


def share_out(nodes: list[dict[str, float]], device: Device, count: int | None, threads: int | None) -> Actors:
    """Plan the cluster's actors: one per GPU, or one per `threads` cores of a node.

    Args:
        nodes: each node's resources, by Ray's names ("CPU", "GPU").
        count: actors without room wait for new nodes.
        threads: of each actor; None: 1 on a CPU, else a GPU's share of its node's cores.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cpu":
        threads = threads or 1
        room = sum(int(node.get("CPU", 0)) // threads for node in nodes)
    else:
        shares = [int(node.get("CPU", 0)) // int(node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
        threads = threads or max(1, min(shares, default=1))
        room = sum(min(int(node.get("GPU", 0)), int(node.get("CPU", 0)) // threads) for node in nodes)
    if count is None and not room:
        raise InputError(
            "no node has room for an actor",
            given=f"{threads} threads on {device}; {len(nodes)} nodes, {gpus} GPUs",
            remedy="fewer --threads, --device cpu, or --actors N to wait for nodes that join",
        )
    return Actors(count or room, threads, device)


def run(ray: Any, job: Job, manifest: Manifest, actors: Actors, *, progress: Progress) -> Counts:
    output = job.request.output
    grows = not is_local(file_system(output)[0])
    shards = Folder(output if grows else f"{output}.partial/rows", first=SUCCESS)
    finished = FinishedWindows(job, f".{job.request.format}", shards)
    importlib.import_module("ray.data")  # `import ray` leaves it out
    # Nodes may not see the artifact's folder.
    files = {name: (job.request.artifact / name).read_bytes() for name in (MANIFEST_NAME, *manifest.files)}
    with lock(output):
        finished.resume_or_start(shards if grows else None)
        writer = Writer(job)
        work = Work(finished, writer, _first_rows(job, writer), run=str(time.time_ns()))
        with _quiet(ray), closing(_rows(ray, work, actors, files)) as rows:
            counts, records = _gather(job, rows, progress)
        finished.conclude(records)
        shards.write(SUCCESS, b"")
        if not grows:
            shards.move(output)
        finished.folder.remove()
    return counts


def _first_rows(job: Job, writer: Writer) -> tuple[int, int]:
    position = (0, 0)
    for number, file in enumerate(job.files):
        for window_number, window in enumerate(read_windows(file)):
            position = (number, window_number)
            writer.check(window)
            good, _ = split_bad(window, job, columns_seen=False)
            writer.begin_with(good)
            if good.lines:
                return position
    return position


def _rows(ray: Any, work: Work, actors: Actors, artifact: dict[str, bytes]) -> Generator[Row]:
    from ray.exceptions import RayError

    files = [{"file": number} for number in range(len(work.finished.job.files))]
    readers = max(1, min(len(files), actors.count // _ACTORS_A_READER))
    windows = ray.data.from_items(files, override_num_blocks=len(files)).flat_map(
        windows_of, fn_kwargs={"work": work}, num_cpus=0, concurrency=readers
    )
    task = ray.put((work, actors, artifact))  # fetched once a node
    answered = windows.map(
        Answerer,
        fn_constructor_args=[[task]],
        compute=ray.data.ActorPoolStrategy(size=actors.count),
        num_cpus=actors.threads,
        num_gpus=None if actors.device == "cpu" else 1,
    )
    try:
        yield from answered.iter_rows()
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise KdcError(
            "a worker of Ray failed",
            given=lines[-1] if lines else type(error).__name__,
            remedy="is this version of kdc installed on every node? else see Ray's logs, by default in "
            "/tmp/ray/session_latest/logs",
        ) from error


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Silence Ray Data. Each window gets its own block, so none waits for others."""
    context = ray.data.DataContext.get_current()
    settings = {"enable_progress_bars": False, "print_on_execution_start": False, "target_max_block_size": 1}
    logger = logging.getLogger("ray.data")
    with ExitStack() as restored, warnings.catch_warnings():
        restored.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        for name, value in settings.items():
            restored.callback(setattr, context, name, getattr(context, name))
            setattr(context, name, value)
        warnings.filterwarnings("ignore", module=r"ray\.")
        yield


def _gather(job: Job, rows: Iterator[Row], progress: Progress) -> tuple[Counts, dict[str, WindowRecord]]:
    counts, windows = Counts(), {}
    records: dict[str, WindowRecord] = {}
    read = [0] * len(job.files)
    for row in rows:
        content, file, number = pickle.loads(row["data"]), int(row["file"]), int(row["window"])
        if isinstance(content, KdcError):
            raise content
        if content is None:
            windows[file] = number
            continue
        if (key := key_of(file, number)) not in records:
            records[key] = content
            counts = counts.plus(content)
        read[file] = max(read[file], int(row["done"]))
        progress(counts, sum(read))
    expected = {key_of(file, number) for file, count in windows.items() for number in range(count)}
    if len(windows) < len(job.files) or expected != set(records):
        raise KdcError(
            "not every window came back",
            given=f"{len(records)} windows of {len(windows)} files, of {len(job.files)}",
            remedy="the same command again resumes the job",
        )
    return counts, records
