"""Runs on Ray's nodes. Errors are returned, because Ray wraps raised errors and loses their parts."""

import os
import pickle
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import Device
from kdc.common.errors import KdcError
from kdc.common.places import Folder
from kdc.serving.bulk.inputs import Window, read_windows
from kdc.serving.bulk.job import FinishedWindows, Job, WindowRecord
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.windows import LANES, Scorer, answer_window
from kdc.serving.engine.engine import Engine

Row = dict[str, Any]  # one row of a Ray Dataset
_TRIES = 4  # deaths at one window


@dataclass(frozen=True)
class Actors:
    count: int
    threads: int  # of each; Ray reserves as many cores
    device: Device  # not "auto": all actors must give the same answers


@dataclass(frozen=True)
class Work:
    finished: FinishedWindows
    writer: Writer
    columns_seen_at: tuple[int, int]  # file and window of the first good row
    run: str  # in the names of marks


def key_of(file: int, window: int) -> str:
    """Names sort in input order."""
    return f"part-{file:06d}-{window:06d}"


def windows_of(row: Row, work: Work) -> Iterator[Row]:
    """Yield a row per window: the pickled window or its earlier record.

    The last row has the number of windows, and None or the error that ended the reading.
    """
    file, number, end = row["file"], 0, None
    try:
        for window in read_windows(work.finished.job.files[file]):
            data = pickle.dumps(work.finished.find(key_of(file, number), window) or window)
            yield {"file": file, "window": number, "done": window.done, "data": data}
            number += 1
    except (KdcError, OSError) as error:
        end = _portable(error)
    yield {"file": file, "window": number, "done": 0, "data": pickle.dumps(end)}


class Answerer:
    """An actor loads the model once.

    Args:
        task: a reference to (`Work`, `Actors`, artifact files), in a list so that each actor fetches from its own node.
    """

    def __init__(self, task: list[Any]) -> None:
        import ray

        self._work: Work
        self._work, actors, files = ray.get(task[0])
        self._restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._problem: KdcError | None = None
        # Otherwise every tokenizer starts a thread per core.
        os.environ.setdefault("RAYON_NUM_THREADS", str(actors.threads))
        try:
            self._scorer = Scorer(_load(self._work.finished.job, actors, files))
        except (KdcError, OSError) as error:
            self._problem = _portable(error)

    def __call__(self, row: Row) -> Row:
        content = pickle.loads(row["data"])
        if isinstance(content, Window):
            try:
                content = self._problem or self._answer(int(row["file"]), int(row["window"]), content)
            except (KdcError, OSError) as error:
                content = _portable(error)
        return {**row, "data": pickle.dumps(content)}

    def _answer(self, file: int, number: int, window: Window) -> WindowRecord:
        work, key = self._work, key_of(file, number)
        if self._restarted:
            count_try(work.finished.folder, f"{key}.{work.run}.tries", window)
        work.writer.check(window)
        seen = (file, number) > work.columns_seen_at
        good, rows = answer_window(self._scorer, work.writer, window, columns_seen=seen)
        return work.finished.add(key, good, work.writer.file(rows))


def count_try(folder: Folder, mark: str, window: Window) -> None:
    """Ray would restart actors without end. `mark` names the file that holds the count."""
    tries = int(folder.read(mark)) if mark in folder else 1  # the first death leaves no mark
    if tries >= _TRIES:
        remedy = "did memory run out? use fewer --actors; the same command resumes"
        raise KdcError(f"Ray's workers died at these rows, {tries} times", given=window.position, remedy=remedy)
    folder.write(mark, str(tries + 1).encode())


def _load(job: Job, actors: Actors, files: Mapping[str, bytes]) -> Engine:
    with tempfile.TemporaryDirectory(prefix="kdc-artifact-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return Engine.load(
            folder,
            variant=job.request.variant,
            device=actors.device,
            threads=actors.threads,
            lanes=LANES,
            expect_sha256=job.identity["artifact"],
        )


def _portable(error: KdcError | OSError) -> KdcError:
    if isinstance(error, KdcError):
        return error
    return KdcError(
        "a node cannot read or write",
        given=f"{platform.node()}: {error}",
        remedy="put input and output in an object store, or on a disk that all nodes share",
    )
