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
    """How a job is shared out.

    Attributes:
        count: number of actors, each with its own model.
        threads: threads of each actor; Ray reserves as many cores for it.
        device: what each actor runs on. It is never "auto", because all actors must give the same answers.
    """

    count: int
    threads: int
    device: Device


@dataclass(frozen=True)
class Work:
    """What every node has to know.

    Attributes:
        finished: the job's finished windows.
        writer: already knows the columns and their types, so that all shards have the same.
        columns_seen_at: file and window of the first good row. All later windows come after a row with the columns.
        run: tells the marks of this run from those of an earlier one.
    """

    finished: FinishedWindows
    writer: Writer
    columns_seen_at: tuple[int, int]
    run: str


def key_of(file: int, window: int) -> str:
    """The name of a window. Sorted names are in the order of the input."""
    return f"part-{file:06d}-{window:06d}"


def windows_of(row: Row, work: Work) -> Iterator[Row]:
    """Read the windows of a file.

    Yields:
        a row for each window: its place, whether it is the last of the file, and pickled the window, or its record if
        an earlier run has finished it. If the file cannot be read any further, the last row holds the error instead.
    """
    file = row["file"]
    number, waiting = 0, None
    try:
        for window in read_windows(work.finished.job.files[file]):
            if waiting is not None:
                yield _row(file, number, waiting, work, last=False)
                number += 1
            waiting = window
        assert waiting is not None
        yield _row(file, number, waiting, work, last=True)
    except (KdcError, OSError) as error:
        yield {"file": file, "window": number, "last": False, "done": 0, "data": pickle.dumps(_portable(error))}


def _row(file: int, number: int, window: Window, work: Work, *, last: bool) -> Row:
    record = work.finished.find(key_of(file, number), window)
    data = pickle.dumps(window if record is None else record)
    return {"file": file, "window": number, "last": last, "done": window.done, "data": data}


class Answerer:
    """An actor: loads the model once, answers window after window, and writes the shard of each.

    Args:
        task: a list with one reference to (`Work`, `Actors`, the artifact's files by name) in Ray's object store. It is
            in a list so that Ray hands the reference itself on, and each actor fetches the content from its own node.
    """

    _work: Work

    def __init__(self, task: list[Any]) -> None:
        import ray

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
        resumed = isinstance(content, WindowRecord)
        if isinstance(content, Window):
            try:
                content = self._problem or self._answer(int(row["file"]), int(row["window"]), content)
            except (KdcError, OSError) as error:
                content = _portable(error)
        return {**row, "resumed": resumed, "data": pickle.dumps(content)}

    def _answer(self, file: int, number: int, window: Window) -> WindowRecord:
        work, key = self._work, key_of(file, number)
        if self._restarted:
            count_try(work.finished.folder, f"{key}.{work.run}.tries", window)
        work.writer.check(window)
        seen = (file, number) > work.columns_seen_at
        good, rows = answer_window(work.finished.job, self._scorer, work.writer, window, columns_seen=seen)
        return work.finished.add(key, good, work.writer.file(rows))


def count_try(folder: Folder, mark: str, window: Window) -> None:
    """Count the tries of a restarted actor at a window, in the file `mark`. Ray would let actors die there for ever.

    Raises:
        KdcError: actors died at it too often.
    """
    tries = int(folder.read(mark)) if mark in folder else 1  # the first actor that died left no mark
    if tries >= _TRIES:
        remedy = "did memory run out? fewer --actors; then the same command goes on"
        raise KdcError(f"Ray's workers died at these rows, {tries} times", given=window.place, remedy=remedy)
    folder.write(mark, str(tries + 1).encode())


def _load(job: Job, actors: Actors, files: Mapping[str, bytes]) -> Engine:
    """Load the engine, from files that are removed as soon as it is loaded."""
    with tempfile.TemporaryDirectory(prefix="kdc-artifact-") as place:
        for name, content in files.items():
            (Path(place) / name).write_bytes(content)
        return Engine.load(
            place,
            variant=job.request.variant,
            device=actors.device,
            threads=actors.threads,
            lanes=LANES,
            expect_sha256=job.identity["artifact"],
        )


def _portable(error: KdcError | OSError) -> KdcError:
    """An error that can be pickled and has all its parts."""
    if isinstance(error, KdcError):
        given = None if error.given is None else str(error.given)
        return type(error)(error.what, given=given, remedy=error.remedy)
    return KdcError(
        "a node cannot read or write",
        given=f"{platform.node()}: {error}",
        remedy="input and output have to be where every node reaches them: an object store, or a shared disk",
    )
