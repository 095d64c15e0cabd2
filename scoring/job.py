"""The loop of bulk scoring: window after window, each kept when it is done, joined to one file at the end.

While a job runs, `OUTPUT.partial/` holds `job.json` (what is asked), and for each window its rows as they will be
written and, last, a small record. A killed job goes on with the first window that has none; the output appears whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from errors import InputError, KdcError
from scoring.inputs import WINDOW_ROWS, BadRow, Window, read_standard_input, read_windows
from scoring.outputs import Writer
from scoring.places import STANDARD, File, Folder, exists, file_system, is_local, whole_file
from scoring.windows import Columns, Scorer, answers, split_bad
from serving.engine import Engine

_JOB = "job.json"
_START_OVER = "does another process work there? then start over: --force"


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
            "files": [[file.address, file.size, file.changed] for file in self.files],
            "kind": self.kind, "columns": vars(self.columns), "window_rows": WINDOW_ROWS, **self.identity,
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
        self.read += record["read"]
        self.written += record["written"]
        self.skipped += record["skipped"]


Progress = Callable[[Counts, int], None]


def run(job: Job, engine: Engine, *, progress: Progress | None = None) -> Counts:
    """Answer everything.

    Args:
        job: what.
        engine: with whose model.
        progress: called with the rows' counts and the bytes of the input that are done, after each window.

    Raises:
        InputError: the input cannot be used, a bad row where those stop the job, or an output that is there.
        KdcError: the model failed, or what was finished is gone.
    """
    writer = Writer(job.kind, job.columns.added(engine))
    if job.output == STANDARD:
        return _stream(job, engine, writer, progress)
    folder = Folder(f"{job.output}.partial", first=_JOB)
    with _lock(job):
        _begin(job, folder)
        counts, sizes = _answer_all(job, engine, writer, folder, progress)
        _finish(job, folder, writer, sizes)
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
        before += file.size


def _answer_all(
    job: Job, engine: Engine, writer: Writer, folder: Folder, progress: Progress | None
) -> tuple[Counts, list[int]]:
    """Have a piece for every window. Returns the rows' counts, and the bytes of each piece."""
    counts, sizes, scorer = Counts(), [], Scorer(engine)
    for number, (window, done) in enumerate(_windows(job)):
        writer.check(window)
        known = _record(job, folder, number, window)
        if known is not None:
            if writer.needs_types:
                writer.learn(folder.read(_piece(number)))
            counts.resumed += known["read"]
        else:
            good, piece = _answer(job, engine, scorer, writer, window, known=counts.written > 0)
            folder.write(_piece(number), piece)
            folder.write(_errors(number), b"".join(map(_line, good.bad)))
            known = {
                "read": len(window), "written": len(good.lines), "skipped": len(good.bad), "bytes": len(piece)
            }  # fmt: skip
            folder.write(f"{number:09d}.json", json.dumps(known).encode())
        counts.add(known)
        sizes.append(known["bytes"])
        if progress is not None:
            progress(counts, done)
    return counts, sizes


def _record(job: Job, folder: Folder, number: int, window: Window) -> dict[str, int] | None:
    """What is known of a window that was done before. One with bad rows is done again where those stop the job.

    Raises:
        KdcError: the window had other rows.
    """
    name = f"{number:09d}.json"
    if name not in folder:
        return None
    known = json.loads(folder.read(name))
    if known["read"] != len(window):
        raise KdcError("the input changed while the job was stopped", given=window.file, remedy="start over: --force")
    return None if known["skipped"] and not job.skip_bad else known


def _answer(
    job: Job, engine: Engine, scorer: Scorer, writer: Writer, window: Window, *, known: bool
) -> tuple[Window, bytes]:
    """The window without its bad rows, and the rest as it will be written."""
    is_jsonl = window.batch is None and not (job.files and job.files[0].format in ("csv", "tsv"))
    good, texts = split_bad(window, job.columns, known=known and is_jsonl)
    if good.bad and not job.skip_bad:
        first = good.bad[0]
        raise InputError(
            first.problem, given=f"{first.file}, line {first.line}",
            remedy="mend the row (the job then starts over), or go on without such rows: --on-error skip",
        )  # fmt: skip
    return good, writer.piece(good, answers(scorer(texts), engine, job.columns))


def _finish(job: Job, folder: Folder, writer: Writer, sizes: list[int]) -> None:
    """Join the pieces and remove them.

    Raises:
        KdcError: a piece is not what it was.
    """
    try:
        with whole_file(job.output) as stream:
            writer.join((_whole(folder, number, size) for number, size in enumerate(sizes)), stream)
        if job.errors is not None:
            with whole_file(job.errors) as stream:
                for number in range(len(sizes)):
                    stream.write(folder.read(_errors(number)))
    except FileNotFoundError as error:
        raise KdcError("finished rows are gone", given=error, remedy=_START_OVER) from error
    folder.remove()


def _whole(folder: Folder, number: int, size: int) -> bytes:
    piece = folder.read(_piece(number))
    if len(piece) != size:
        raise KdcError(
            "finished rows were changed", given=f"{_piece(number)}: {len(piece)} bytes, {size} were written",
            remedy=_START_OVER,
        )  # fmt: skip
    return piece


def _stream(job: Job, engine: Engine, writer: Writer, progress: Progress | None) -> Counts:
    """Everything to standard output as it comes; nothing is kept to go on from."""
    counts, scorer = Counts(), Scorer(engine)
    with whole_file(job.errors) if job.errors is not None else nullcontext() as errors:
        for window, done in _windows(job):
            writer.check(window)
            good, piece = _answer(job, engine, scorer, writer, window, known=counts.written > 0)
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            if errors is not None:
                errors.write(b"".join(map(_line, good.bad)))
            counts.add({"read": len(window), "written": len(good.lines), "skipped": len(good.bad)})
            if progress is not None:
                progress(counts, done)
    return counts


def _begin(job: Job, folder: Folder) -> None:
    """Go on with the same job, or start anew. Nothing is touched that was not asked for.

    Raises:
        InputError: the output is there, or what is left of another job.
    """
    for address in (job.output, job.errors):
        if address is not None and not job.force and exists(address):
            raise InputError("the output is there already", given=address, remedy="another name, or --force")
    wanted = json.dumps(job.fingerprint(), sort_keys=True).encode()
    # Standard input cannot be read again.
    if job.files and _JOB in folder and folder.read(_JOB) == wanted:
        return
    if folder.exists() and not job.force:
        raise InputError(
            "another job with this output is unfinished: its input, artifact or options were others",
            given=f"{job.output}.partial", remedy="finish it by the same command as before, or drop it: --force",
        )  # fmt: skip
    folder.remove()
    folder.write(_JOB, wanted)


@contextmanager
def _lock(job: Job) -> Iterator[None]:
    """One job an output. Only locally: object stores know no locks."""
    system, path = file_system(job.output)
    if not is_local(system):
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


def _piece(number: int) -> str:
    return f"{number:09d}.rows"


def _errors(number: int) -> str:
    return f"{number:09d}.errors"


def _line(bad: BadRow) -> bytes:
    return json.dumps(vars(bad)).encode() + b"\n"
