"""What runs on Ray's nodes: a file becomes windows, and an actor with a model of its own answers them, one at a time.

Errors travel as values: raised, they would come out as Ray's, with their parts lost in a traceback.
"""

from __future__ import annotations

import os
import pickle
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc.common.errors import KdcError
from kdc.common.places import Folder
from kdc.serving.bulk.inputs import Window, read_windows
from kdc.serving.bulk.job import Job, Kept, answered
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.ray_cluster import Actors
from kdc.serving.bulk.windows import LANES, Scorer
from kdc.serving.engine.engine import Engine

Row = dict[str, Any]  # of a Dataset
_TRIES = 4  # of a window at which actors die


@dataclass(frozen=True)
class Work:
    """All that a node has to know.

    Attributes:
        job: what is asked.
        writer: knows the columns and their types already, so that all shards have the same.
        kept: where finished windows go.
        folder: of their records.
        goes_on: whether some may be there already.
        known_from: file and window of the first usable row: from the next window on, the columns are known.
        run: tells this run's marks from those of one before.
    """

    job: Job
    writer: Writer
    kept: Kept
    folder: Folder
    goes_on: bool
    known_from: tuple[int, int]
    run: str


@dataclass(frozen=True)
class Model:
    """The artifact's files, by name, and how to load them. It travels once to each node.

    Attributes:
        files: content by name, the manifest among them.
        sha256: of the manifest.
        variant: as for the command.
    """

    files: dict[str, bytes]
    sha256: str
    variant: str | None


def key_of(file: int, window: int) -> str:
    """A window's name. Sorted names are in the order of the input."""
    return f"part-{file:06d}-{window:06d}"


def windows_of(row: Row, work: Work) -> Iterator[Row]:
    """A file's windows, each as one row of the Dataset: pickled, with its place and whether it is the file's last.

    A window that was done before is its record alone.
    """
    file = row["file"]
    number, waiting = 0, None
    try:
        for window in read_windows(work.job.files[file]):
            if waiting is not None:
                yield _row(file, number, waiting, work, last=False)
                number += 1
            waiting = window
        assert waiting is not None
        yield _row(file, number, waiting, work, last=True)
    except (KdcError, OSError) as error:
        yield {"file": file, "window": number, "last": False, "done": 0, "data": pickle.dumps(_told(error))}


def _row(file: int, number: int, window: Window, work: Work, *, last: bool) -> Row:
    record = work.kept.find(key_of(file, number), window, work.job) if work.goes_on else None
    data = pickle.dumps(window if record is None else record)
    return {"file": file, "window": number, "last": last, "done": window.done, "data": data}


class Answerer:
    """An actor: loads the model once, answers window after window, and writes each one's shard.

    Args:
        task: reference to (`Work`, `Model`, `Actors`) in Ray's object store, in a list: each actor fetches it from its
            own node.
    """

    _work: Work

    def __init__(self, task: list[Any]) -> None:
        import ray

        model: Model
        actors: Actors
        self._work, model, actors = ray.get(task[0])
        self._restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._problem: KdcError | None = None
        # The tokenizer has a thread for each core of the machine else, in every actor.
        os.environ.setdefault("RAYON_NUM_THREADS", str(actors.threads))
        try:
            self._engine = _load(model, actors)
            self._scorer = Scorer(self._engine)
        except (KdcError, OSError) as error:
            self._problem = _told(error)

    def __call__(self, row: Row) -> Row:
        """The row with the window's record, or what went wrong, in the window's place."""
        found = pickle.loads(row["data"])
        resumed = isinstance(found, dict)
        if isinstance(found, Window):
            try:
                found = self._problem or self._answer(int(row["file"]), int(row["window"]), found)
            except (KdcError, OSError) as error:
                found = _told(error)
        return {**row, "resumed": resumed, "data": pickle.dumps(found)}

    def _answer(self, file: int, number: int, window: Window) -> dict[str, Any]:
        work, key = self._work, key_of(file, number)
        if self._restarted:
            count_try(work.folder, f"{key}.{work.run}.tries", window)
        work.writer.check(window)
        known = (file, number) > work.known_from
        good, piece = answered(work.job, self._engine, self._scorer, work.writer, window, known=known)
        return work.kept.add(key, good, work.writer.file(piece))


def count_try(folder: Folder, mark: str, window: Window) -> None:
    """Count that an actor which died before tries a window: Ray would let actors die at it for ever.

    Raises:
        KdcError: it was tried often enough.
    """
    tries = int(folder.read(mark)) if mark in folder else 1  # the first one left no mark
    if tries >= _TRIES:
        where = f"{window.file}, rows from line {window.lines[0]} on" if window.lines else window.file
        raise KdcError(
            f"Ray's workers died at these rows, {tries} times",
            given=where,
            remedy="did memory run out? fewer --actors; then the same command goes on",
        )
    folder.write(mark, str(tries + 1).encode())


def _load(model: Model, actors: Actors) -> Engine:
    """The engine, from files that are removed as soon as it has them."""
    with tempfile.TemporaryDirectory(prefix="kdc-artifact-") as place:
        for name, content in model.files.items():
            (Path(place) / name).write_bytes(content)
        return Engine.load(
            place,
            variant=model.variant,
            device=actors.device,
            threads=actors.threads,
            lanes=LANES,
            expect_sha256=model.sha256,
        )


def _told(error: KdcError | OSError) -> KdcError:
    """An error that can travel."""
    if isinstance(error, KdcError):
        given = None if error.given is None else str(error.given)
        return type(error)(error.what, given=given, remedy=error.remedy)
    return KdcError(
        "a node cannot read or write",
        given=f"{platform.node()}: {error}",
        remedy="input and output have to be where every node reaches them: an object store, or a shared disk",
    )
