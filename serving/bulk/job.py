"""A job of bulk scoring, whichever engine does it: what is asked, how it begins, and the windows that are done.

While a job runs, `OUTPUT.partial/` holds `job.json` (what is asked), for each finished window its bad rows and, last, a
small record, and at the end `errors` (where the bad rows are named). A killed job goes on with the windows without one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdc.common.errors import InputError, KdcError
from kdc.common.places import File, Folder, exists, file_system, is_local, whole_file_at
from kdc.serving.bulk.inputs import WINDOW_ROWS, BadRow, Window
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.windows import Columns, Scorer, answers, split_bad
from kdc.serving.engine.engine import Engine, Text

JOB = "job.json"
_NAMED = "errors"  # where the file of bad rows is that this job writes
SUCCESS = "_SUCCESS"  # of a directory of shards: it is there when all of them are
_START_OVER = "does another process work there? then start over: --force"


@dataclass(frozen=True)
class Job:
    """What to answer, and where to.

    Attributes:
        files: the input in its order; none is JSONL on standard input.
        output: address of the file or directory to write, or "-".
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
            "kind": self.kind,
            "columns": vars(self.columns),
            "window_rows": WINDOW_ROWS,
            **self.identity,
        }


@dataclass
class Counts:
    """Rows: `read` of the input, `written`, `skipped` as bad, `resumed` that were done before."""

    read: int = 0
    written: int = 0
    skipped: int = 0
    resumed: int = 0

    def add(self, record: dict[str, Any], *, resumed: bool = False) -> None:
        """One window's record."""
        self.read += record["read"]
        self.written += record["written"]
        self.skipped += record["skipped"]
        self.resumed += record["read"] if resumed else 0


Progress = Callable[[Counts, int], None]


class Kept:
    """The windows that are done: rows as they will be written, lines that name the bad ones, and a record of both.

    Args:
        folder: of the records.
        rows: where the rows go.
        ending: of the rows' files.
    """

    def __init__(self, folder: Folder, rows: Folder, ending: str) -> None:
        self._folder, self._rows, self._ending = folder, rows, ending

    def find(self, key: str, window: Window, job: Job) -> dict[str, Any] | None:
        """The record of a window that was done before. One with bad rows is done again where those stop the job.

        Raises:
            KdcError: the window had other rows.
        """
        if f"{key}.json" not in self._folder:
            return None
        record = json.loads(self._folder.read(f"{key}.json"))
        if record["read"] != len(window):
            raise KdcError(
                "the input changed while the job was stopped", given=window.file, remedy="start over: --force"
            )
        return None if record["skipped"] and not job.skip_bad else record

    def add(self, key: str, good: Window, rows: bytes) -> dict[str, Any]:
        """Keep a window.

        Args:
            key: its name.
            good: the window with its bad rows apart.
            rows: as they will be written.

        Returns:
            Its record: read, written, skipped (rows), bytes.
        """
        self._rows.write(key + self._ending, rows)
        if good.bad:
            self._folder.write(f"{key}.errors", error_lines(good))
        record = {"read": len(good), "written": len(good.lines), "skipped": len(good.bad), "bytes": len(rows)}
        self._folder.write(f"{key}.json", json.dumps(record).encode())
        return record

    def name_errors(self, address: str, keys: Iterable[str]) -> None:
        """Write the file that names the bad rows of windows that have some.

        It is noted first: killed after this, the job finds the file there, and it is its own.

        Raises:
            KdcError: what names them is gone.
        """
        self._folder.write(_NAMED, _place(address))
        with whole_file_at(address) as stream:
            for key in keys:
                stream.write(self._errors(key))

    def rows(self, key: str, size: int) -> bytes:
        """A window's rows.

        Raises:
            KdcError: they are gone, or not what was written.
        """
        name = key + self._ending
        try:
            found = self._rows.read(name)
        except FileNotFoundError as error:
            raise KdcError("finished rows are gone", given=error, remedy=_START_OVER) from error
        self.check_size(key, size, len(found))
        return found

    def check_size(self, key: str, size: int, found: int | None) -> None:
        """See that a window's rows are as they were written, as far as their number of bytes tells.

        Raises:
            KdcError: they are gone (None), or not what was written.
        """
        name = key + self._ending
        if found is None:
            raise KdcError("finished rows are gone", given=name, remedy=_START_OVER)
        if found != size:
            raise KdcError(
                "finished rows were changed", given=f"{name}: {found} bytes, {size} were written", remedy=_START_OVER
            )

    def _errors(self, key: str) -> bytes:
        try:
            return self._folder.read(f"{key}.errors")
        except FileNotFoundError as error:
            raise KdcError("finished rows are gone", given=error, remedy=_START_OVER) from error


def usable(job: Job, window: Window, *, known: bool) -> tuple[Window, list[Text]]:
    """The window without its bad rows, and the texts of the rest.

    Args:
        job: what is asked.
        window: as it was read.
        known: a row with the wanted columns was met before.

    Raises:
        InputError: the columns are not there, or a row is bad and bad rows stop the job.
    """
    is_jsonl = window.batch is None and not (job.files and job.files[0].format in ("csv", "tsv"))
    good, texts = split_bad(window, job.columns, known=known and is_jsonl)
    if good.bad and not job.skip_bad:
        first = good.bad[0]
        raise InputError(
            first.problem,
            given=f"{first.file}, line {first.line}",
            remedy="mend the row (the job then starts over), or go on without such rows: --on-error skip",
        )
    return good, texts


def answered(
    job: Job, engine: Engine, scorer: Scorer, writer: Writer, window: Window, *, known: bool
) -> tuple[Window, bytes]:
    """The window without its bad rows, and the rest as it will be written. See `usable`."""
    good, texts = usable(job, window, known=known)
    return good, writer.piece(good, answers(scorer(texts), engine, job.columns))


def error_lines(good: Window) -> bytes:
    """A window's bad rows as JSONL."""
    return b"".join(map(_line, good.bad))


def _line(bad: BadRow) -> bytes:
    return json.dumps(vars(bad)).encode() + b"\n"


def _place(address: str) -> bytes:
    """Where an address leads, from wherever it was typed."""
    system, path = file_system(address)
    return f"{system.protocol}: {path}".encode()


def begin(job: Job, folder: Folder, shards: Folder | None = None) -> bool:
    """Go on with the same job, or start anew. Nothing is touched that was not asked for.

    Args:
        job: what is asked.
        folder: of the records.
        shards: the output itself, where it grows under its name while the job runs.

    Returns:
        Whether the job goes on.

    Raises:
        InputError: the output is there, or what is left of another job.
    """
    wanted = json.dumps(job.fingerprint(), sort_keys=True).encode()
    # Standard input cannot be read again.
    goes_on = bool(job.files) and JOB in folder and folder.read(JOB) == wanted
    own = goes_on and shards is not None and SUCCESS not in shards
    named = goes_on and job.errors is not None and _NAMED in folder and folder.read(_NAMED) == _place(job.errors)
    for address in (None if own else job.output, None if named else job.errors):
        if address is not None and not job.force and exists(address):
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
    folder.write(JOB, wanted)
    return False


@contextmanager
def lock(job: Job) -> Iterator[None]:
    """One job an output. Only locally: object stores know no locks.

    Raises:
        InputError: another process has it.
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
