"""Runs on Ray's nodes: turns a file into windows, and answers them one at a time in an actor with its own model.

Errors travel as values. If they were raised, they would arrive as Ray's errors, with their parts lost in a traceback.
"""

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
_TRIES = 4  # after so many actors have died at a window, the job ends


@dataclass(frozen=True)
class Actors:
    """How a job is shared out."""

    count: int  # each has its own model
    threads: int  # of each actor; Ray reserves as many cores for it
    device: Device  # what each actor runs on, never "auto": all actors must give the same answers


@dataclass(frozen=True)
class Work:
    """What every node has to know."""

    finished: FinishedWindows
    writer: Writer  # already knows the columns and their types: all shards have the same
    columns_seen_at: tuple[int, int]  # file and window of the first good row; later windows come after these columns
    run: str  # tells the marks of this run from those of an earlier one


def key_of(file: int, window: int) -> str:
    """The name of a window. Sorted names are in the order of the input."""
    return f"part-{file:06d}-{window:06d}"


def windows_of(row: Row, work: Work) -> Iterator[Row]:
    """Read the windows of a file.

    Yields:
        a row for each window: its numbers, and pickled the window, or its record if an earlier run has finished it.
        Then a row with the number of windows, which holds None, or the error if the file cannot be read any further.
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
    """An actor: loads the model once, answers window after window, and writes the shard of each.

    Args:
        task: a list with one reference to (`Work`, `Actors`, the artifact's files by name) in Ray's object store. Ray
            hands a reference in a list on as it is, and each actor fetches the content from its own node.
    """

    def __init__(self, task: list[Any]) -> None:
        import ray

        self._work: Work
        self._work, actors, files = ray.get(task[0])
        self._restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._problem: KdcError | None = None
        # Otherwise the tokenizer of every actor starts a thread for each core of the machine.
        os.environ.setdefault("RAYON_NUM_THREADS", str(actors.threads))
        try:
            self._scorer = Scorer(_load(self._work.finished.job, actors, files))
        except (KdcError, OSError) as error:
            self._problem = _portable(error)

    def __call__(self, row: Row) -> Row:
        """The row with the window's record in place of the window, or with the error."""
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
    """Count the tries of restarted actors at a window, in the file `mark`. Ray would let actors die there for ever.

    Raises:
        KdcError: actors died at it too often.
    """
    tries = int(folder.read(mark)) if mark in folder else 1  # the first actor that died left no mark
    if tries >= _TRIES:
        remedy = "did memory run out? fewer --actors; then the same command goes on"
        raise KdcError(f"Ray's workers died at these rows, {tries} times", given=window.position, remedy=remedy)
    folder.write(mark, str(tries + 1).encode())


def _load(job: Job, actors: Actors, files: Mapping[str, bytes]) -> Engine:
    """Load the engine, from files that are removed as soon as it is loaded."""
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
    """An error of kdc, which can be pickled with all its parts."""
    if isinstance(error, KdcError):
        return error
    return KdcError(
        "a node cannot read or write",
        given=f"{platform.node()}: {error}",
        remedy="input and output have to be where every node reaches them: an object store, or a shared disk",
    )
