"""A job of answering a table, whichever engine does it: what is asked, how it begins, and its finished windows.

While a job runs, the folder `OUTPUT.partial/` holds `job.json` (what is asked), for each finished window its bad rows
and a small record that is written last, and at the end `errors` (where the bad rows are named). A job that was killed
goes on with the windows that have no record.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdc.common.errors import InputError, KdcError
from kdc.common.frozen import Frozen
from kdc.common.places import File, Folder, exists, file_system, is_local, whole_file_at
from kdc.serving.bulk.inputs import WINDOW_ROWS, Window
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.windows import Columns, Scorer, answers, split_bad
from kdc.serving.engine.engine import Engine

JOB = "job.json"
_ERRORS_PLACE = "errors"  # holds where the file of bad rows is that this job writes
SUCCESS = "_SUCCESS"  # in a directory of shards: it is there when all of them are
_START_OVER = "does another process work there? then start over: --force"


@dataclass(frozen=True)
class Job:
    """What to answer, and where to write it.

    Attributes:
        files: the input in its order; an empty list stands for JSONL on standard input.
        output: address of the file or directory to write, or "-".
        kind: the format of the output.
        columns: where the texts are, and which columns are added.
        skip_bad: whether bad rows are left out; otherwise the first one stops the job.
        errors: address of the file that names the bad rows, or None.
        identity: whatever else decides the answers (artifact, variant, provider), to tell this job from another.
        force: whether an existing output and an unfinished job are dropped.
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
            "kind": self.kind,
            "columns": vars(self.columns),
            "window_rows": WINDOW_ROWS,
            **self.identity,
        }


class Rows(Frozen):
    """Rows: how many were read, were answered and written, and were skipped since they have no text."""

    read: int = 0
    written: int = 0
    skipped: int = 0


class WindowRecord(Rows):
    """What is kept of a finished window, as `<key>.json`; `bytes` is the size of the answered rows, as written."""

    bytes: int


class Counts(Rows):
    """The rows of a job so far; `resumed` are those that an earlier, unfinished run of the job had read."""

    resumed: int = 0

    def plus(self, record: WindowRecord, *, resumed: bool = False) -> "Counts":
        """The counts with another window."""
        return Counts(
            read=self.read + record.read,
            written=self.written + record.written,
            skipped=self.skipped + record.skipped,
            resumed=self.resumed + (record.read if resumed else 0),
        )


Progress = Callable[[Counts, int], None]  # called with the counts, and the bytes of the input that have been read


class FinishedWindows:
    """The finished windows of a job: their answered rows, the lines that name their bad rows, and their records.

    Args:
        folder: of the records and the lines.
        rows: folder of the answered rows.
        ending: of the files with the answered rows.
    """

    def __init__(self, folder: Folder, rows: Folder, ending: str) -> None:
        self.folder, self._rows, self._ending = folder, rows, ending

    def find(self, key: str, window: Window, job: Job) -> WindowRecord | None:
        """The record of a window that an earlier run has finished; None if the window has to be answered.

        A window with bad rows is answered again if bad rows stop the job.

        Raises:
            KdcError: the window had another number of rows.
        """
        if f"{key}.json" not in self.folder:
            return None
        record = WindowRecord.model_validate_json(self.folder.read(f"{key}.json"))
        if record.read != len(window):
            raise KdcError(
                "the input changed while the job was stopped", given=window.file, remedy="start over: --force"
            )
        return None if record.skipped and not job.skip_bad else record

    def add(self, key: str, good: Window, rows: bytes) -> WindowRecord:
        """Keep a window (its bad rows apart), and its answered rows as they will be written."""
        self._rows.write(key + self._ending, rows)
        if good.bad:
            self.folder.write(f"{key}.errors", error_lines(good))
        record = record_of(good, rows)
        self.folder.write(f"{key}.json", record.model_dump_json().encode())
        return record

    def name_errors(self, address: str, keys: Iterable[str]) -> None:
        """Write the file that names the bad rows.

        Its place is kept first. A job that is killed after this finds the file there, and knows that it is its own.

        Args:
            address: of the file.
            keys: of the windows that have bad rows, in their order.

        Raises:
            KdcError: the lines of a window are gone.
        """
        self.folder.write(_ERRORS_PLACE, _place(address))
        with whole_file_at(address) as stream:
            for key in keys:
                stream.write(_read(self.folder, f"{key}.errors"))

    def rows(self, key: str, size: int) -> bytes:
        """A window's answered rows.

        Raises:
            KdcError: they are gone, or have another size than when they were written.
        """
        rows = _read(self._rows, key + self._ending)
        self.check_size(key, size, len(rows))
        return rows

    def check_size(self, key: str, size: int, present: int | None) -> None:
        """Check that a window's answered rows have as many bytes as were written; `present` is None if they are gone.

        Raises:
            KdcError: they are gone or have another size.
        """
        name = key + self._ending
        if present is None:
            raise KdcError("finished rows are gone", given=name, remedy=_START_OVER)
        if present != size:
            raise KdcError(
                "finished rows were changed", given=f"{name}: {present} bytes, {size} were written", remedy=_START_OVER
            )


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError as error:
        raise KdcError("finished rows are gone", given=error, remedy=_START_OVER) from error


def answer_window(
    job: Job, engine: Engine, scorer: Scorer, writer: Writer, window: Window, *, columns_seen: bool
) -> tuple[Window, bytes]:
    """Answer one window.

    Args:
        job: what is asked.
        engine: the model.
        scorer: of that engine.
        writer: of the output.
        window: as it was read.
        columns_seen: whether an earlier row had the columns with the texts.

    Returns:
        the window with its bad rows apart, and its other rows with their answers, as they will be written.

    Raises:
        InputError: the columns are missing, a row is bad and bad rows stop the job, or a value does not fit the
            output's format.
    """
    is_jsonl = window.batch is None and not (job.files and job.files[0].format in ("csv", "tsv"))
    good, texts = split_bad(window, job.columns, skip_bad=job.skip_bad, columns_seen=columns_seen and is_jsonl)
    return good, writer.piece(good, answers(scorer(texts), engine, job.columns))


def record_of(good: Window, rows: bytes) -> WindowRecord:
    """The record of a window whose bad rows are apart, and whose other rows were written as `rows`."""
    return WindowRecord(read=len(good), written=len(good.lines), skipped=len(good.bad), bytes=len(rows))


def error_lines(good: Window) -> bytes:
    """A window's bad rows as JSONL."""
    return b"".join(json.dumps(vars(bad)).encode() + b"\n" for bad in good.bad)


def _place(address: str) -> bytes:
    """The absolute place of an address, so that it is the same from every working directory."""
    system, path = file_system(address)
    return f"{system.protocol}: {path}".encode()


def resume_or_start(job: Job, folder: Folder, shards: Folder | None = None) -> bool:
    """Go on with an unfinished job if it is the same one, or start anew.

    Args:
        job: what is asked.
        folder: of the records.
        shards: the output itself, if it grows under its name while the job runs.

    Returns:
        Whether an unfinished job goes on.

    Raises:
        InputError: the output exists, or another job with this output is unfinished, and `job.force` is not set.
    """
    fingerprint = json.dumps(job.fingerprint(), sort_keys=True).encode()
    # A job that reads standard input cannot go on, because that cannot be read again.
    goes_on = bool(job.files) and JOB in folder and folder.read(JOB) == fingerprint
    is_own_output = goes_on and shards is not None and SUCCESS not in shards
    errors_place = folder.read(_ERRORS_PLACE) if goes_on and _ERRORS_PLACE in folder else None
    outputs = [] if is_own_output else [job.output]
    if job.errors is not None and errors_place != _place(job.errors):
        outputs.append(job.errors)
    for address in outputs:
        if not job.force and exists(address):
            raise InputError("the output is there already", given=address, remedy="another name, or --force")
    if goes_on:
        return True
    if folder.exists() and not job.force:
        raise InputError(
            "another job with this output is unfinished: its input, artifact or options were others",
            given=f"{job.output}.partial",
            remedy="finish it by the same command as before, or drop it: --force",
        )
    folder.remove()
    if shards is not None:
        shards.remove()
    folder.write(JOB, fingerprint)
    return False


@contextmanager
def lock(job: Job) -> Iterator[None]:
    """Keep other processes from writing the same output. Only local outputs are locked: object stores have no locks.

    Raises:
        InputError: another process writes it.
    """
    system, path = file_system(job.output)
    if not is_local(system):
        yield
        return
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise InputError("another process writes this output", given=job.output, remedy="wait for it") from None
    try:
        yield
    finally:
        Path(held.lock_file).unlink(missing_ok=True)
        held.release()
