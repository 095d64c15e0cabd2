"""The loop of bulk scoring: window after window, each kept when it is done, joined to one file at the end.

While a job runs, `OUTPUT.partial/` holds `job.json` (what is asked), and for each window its rows as they will be
written and, last, a small record. A killed job goes on with the first window that has none; the output appears whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from errors import InputError, KdcError
from scoring.inputs import WINDOW_ROWS, BadRow, Window, read_standard_input, read_windows
from scoring.outputs import Writer
from scoring.places import STANDARD, File, Folder, file_system, whole_file
from scoring.windows import Columns, Scorer, answers, split_bad
from serving.engine import Engine

_JOB = "job.json"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What to answer, and where to.

    Attributes:
        files: the input in its order; none is JSONL on standard input.
        output: address of the file to write, or "-".
        kind: its format.
        columns: where the texts are, and what is added.
        skip_bad: whether rows without a text are left out; else the first one stops the job.
        errors: address of the file that names them, or None.
        identity: what else decides the answers (artifact, variant, provider), to tell this job from another.
        force: drop what is there already.
    """

    files: list[File]
    output: str
    kind: str
    columns: Columns
    skip_bad: bool
    errors: str | None
    identity: dict[str, str]
    force: bool = False

    def fingerprint(self) -> dict[str, Any]:
        """Equal for jobs whose windows are the same."""
        return {
            "files": [[file.address, file.bytes, file.changed] for file in self.files],
            "kind": self.kind, "columns": vars(self.columns), "skip_bad": self.skip_bad,
            "window_rows": WINDOW_ROWS, **self.identity,
        }  # fmt: skip


@dataclass
class Counts:
    """Rows: `read` of the input, `written`, `skipped` as bad, `resumed` that were done before."""

    read: int = 0
    written: int = 0
    skipped: int = 0
    resumed: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """One window's record."""
        self.written += record["written"]
        self.skipped += record["skipped"]


def run(job: Job, engine: Engine, *, progress: Progress | None = None) -> Counts:
    """Answer everything.

    Args:
        job: what.
        engine: with whose model.
        progress: called with (rows, bytes of the input) done, after each window.

    Raises:
        InputError: the input cannot be used, a bad row where those stop the job, or an output that is there.
        KdcError: the model failed, or rows were lost.
    """
    writer = Writer(job.kind, job.columns.added(engine))
    if job.output == STANDARD:
        return _stream(job, engine, writer, progress)
    folder = Folder(f"{job.output}.partial")
    with _lock(job):
        _begin(job, folder)
        counts = _answer_all(job, engine, writer, folder, progress)
        _finish(job, folder, writer, counts)
    return counts


def _windows(job: Job) -> Iterator[tuple[Window, int]]:
    """All windows, each with the bytes of the input that were read with it."""
    if not job.files:
        for window in read_standard_input():
            yield window, 0
    before = 0
    for file in job.files:
        for window in read_windows(file):
            yield window, before + window.done
        before += file.bytes


def _answer_all(job: Job, engine: Engine, writer: Writer, folder: Folder, progress: Progress | None) -> Counts:
    counts, scorer = Counts(), Scorer(engine)
    for number, (window, done) in enumerate(_windows(job)):
        writer.check(window)
        counts.read += len(window)
        record = f"{number:06d}.json"
        if record in folder:
            known = json.loads(folder.read(record))
            if known["read"] != len(window):
                raise KdcError("the input changed while the job was stopped", given=window.file, remedy="use --force")
            writer.learn(folder.read(_piece(number)))
            counts.resumed += known["read"]
        else:
            good, piece = _answer(job, engine, scorer, writer, window)
            folder.write(_piece(number), piece)
            if good.bad:
                folder.write(f"{number:06d}.errors", b"".join(map(_line, good.bad)))
            known = {"read": len(window), "written": len(good.rows), "skipped": len(good.bad)}
            folder.write(record, json.dumps(known).encode())
        counts.add(known)
        if progress is not None:
            progress(counts.read, done)
    return counts


def _answer(job: Job, engine: Engine, scorer: Scorer, writer: Writer, window: Window) -> tuple[Window, bytes]:
    good, texts = split_bad(window, job.columns)
    if good.bad and not job.skip_bad:
        first = good.bad[0]
        raise InputError(
            first.problem, given=f"{first.file}, line {first.line}",
            remedy="mend the row, or leave such rows out: --on-error skip [--errors FILE]",
        )  # fmt: skip
    return good, writer.piece(good, answers(scorer(texts), engine, job.columns))


def _finish(job: Job, folder: Folder, writer: Writer, counts: Counts) -> None:
    """Join the pieces, see that no row was lost, and remove them."""
    if counts.written + counts.skipped != counts.read:
        raise KdcError(
            "rows were lost", given=f"{counts.read} read, {counts.written} written, {counts.skipped} skipped",
            remedy="this is a fault of kdc: please report it",
        )  # fmt: skip
    numbers = range(_windows_in(folder))
    with whole_file(job.output) as stream:
        writer.join((folder.read(_piece(number)) for number in numbers), stream)
    if job.errors is not None:
        with whole_file(job.errors) as stream:
            for number in numbers:
                if (name := f"{number:06d}.errors") in folder:
                    stream.write(folder.read(name))
    folder.remove()


def _stream(job: Job, engine: Engine, writer: Writer, progress: Progress | None) -> Counts:
    """Everything to standard output as it comes; nothing is kept to go on from."""
    counts, scorer, bad = Counts(), Scorer(engine), b""
    for window, done in _windows(job):
        writer.check(window)
        good, piece = _answer(job, engine, scorer, writer, window)
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        bad += b"".join(map(_line, good.bad))
        counts.read += len(window)
        counts.add({"written": len(good.rows), "skipped": len(good.bad)})
        if progress is not None:
            progress(counts.read, done)
    if job.errors is not None:
        with whole_file(job.errors) as stream:
            stream.write(bad)
    return counts


def _begin(job: Job, folder: Folder) -> None:
    """Go on with the same job, or start anew.

    Raises:
        InputError: the output is there, or what is left of another job.
    """
    wanted = json.dumps(job.fingerprint(), sort_keys=True).encode()
    if job.force or not job.files:  # standard input cannot be read again
        folder.remove()
    elif _JOB in folder:
        if folder.read(_JOB) == wanted:
            return
        raise InputError(
            "another job with this output is unfinished: its input, artifact or options were others",
            given=f"{job.output}.partial", remedy="finish it by the same command as before, or drop it: --force",
        )  # fmt: skip
    system, path = file_system(job.output)
    if system.exists(path) and not job.force:
        raise InputError("the output is there already", given=job.output, remedy="another name, or --force")
    folder.write(_JOB, wanted)


@contextmanager
def _lock(job: Job) -> Iterator[None]:
    """One job an output. Only locally: object stores know no locks."""
    system, path = file_system(job.output)
    if "file" not in system.protocol:
        yield
        return
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError("another process writes this output", given=job.output, remedy="wait for it") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _windows_in(folder: Folder) -> int:
    number = 0
    while f"{number:06d}.json" in folder:
        number += 1
    return number


def _piece(number: int) -> str:
    return f"{number:06d}.rows"


def _line(bad: BadRow) -> bytes:
    return json.dumps(vars(bad)).encode() + b"\n"
