"""A job of answering a table, whichever engine does it: what is asked, how it begins, and its finished windows.

While a job runs, the folder `OUTPUT.partial/` holds `job.json` (what is asked), for each finished window its bad rows
and a small record that is written last, and at the end `errors` (where the bad rows are named). A job that was killed
goes on with the windows that have no record.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import InputError, KdcError
from kdc.common.frozen import Frozen
from kdc.common.places import File, Folder, exists, file_system, whole_file_at
from kdc.serving.bulk.inputs import WINDOW_BYTES, WINDOW_ROWS, Window
from kdc.serving.bulk.request import PredictRequest

_JOB = "job.json"
_ERRORS_PLACE = "errors"  # holds where the file of bad rows is that this job writes
SUCCESS = "_SUCCESS"  # this file is in a directory of shards when all of them are
_START_OVER = "does another process work there? then start over: --force"


@dataclass(frozen=True)
class Job:
    """A request, with what was found for it.

    Attributes:
        request: what to answer, and where to write it.
        files: the input in its order; an empty list stands for JSONL on standard input.
        task: what the artifact answers.
        identity: what else decides the answers (artifact, variant, provider), to tell this job from another.

    Raises:
        InputError: an option does not fit the task.
    """

    request: PredictRequest
    files: list[File]
    task: TaskInfo
    identity: dict[str, str]

    def __post_init__(self) -> None:
        text_pair = self.request.text_pair
        if text_pair is not None and not self.task.is_pair:
            raise InputError(f"the task {self.task.name} takes one text a row", given=f"--text-pair {text_pair}")
        if self.request.all_scores and self.task.kind == "regression":
            raise InputError("regression has no classes", given="--all-scores", remedy="leave it out")

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that hold the texts: two for a task with pairs of texts, else one."""
        request, task = self.request, self.task
        pair = () if task.text_pair is None else (request.text_pair or task.text_pair,)
        return (request.text or task.text, *pair)

    @property
    def added_columns(self) -> dict[str, str]:
        """The new columns by name, with the type of their values: "text", "texts" or "number"."""
        kind, labels = self.task.kind, self.task.labels if self.request.all_scores else ()
        types = {} if kind == "regression" else {"label": "texts" if kind == "multilabel" else "text"}
        types |= {"score": "number"} | ({"set": "texts"} if self.task.sets is not None else {})
        types |= {f"score_{label}": "number" for label in labels}
        return {self.request.prefix + name: type_name for name, type_name in types.items()}

    def fingerprint(self) -> dict[str, Any]:
        """Equal for jobs whose windows are the same."""
        request, (text, text_pair) = self.request, (*self.text_columns, None)[:2]
        columns = {"text": text, "text_pair": text_pair, "prefix": request.prefix, "all_scores": request.all_scores}
        return {
            "files": [[file.address, file.size, file.changed or _digest(file.path)] for file in self.files],
            "kind": request.format,
            "columns": columns,
            "max_text_chars": request.max_text_chars,
            "window": [WINDOW_ROWS, WINDOW_BYTES],
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

    Windows are found by keys, whose sorted order is the order of the input.

    Args:
        job: whose windows they are.
        ending: ending of the names of files with answered rows.
        rows: folder of the answered rows; None for the folder of the records.

    Attributes:
        goes_on: whether an unfinished job goes on, so that windows may have been finished before.
    """

    def __init__(self, job: Job, ending: str, rows: Folder | None = None) -> None:
        self.job, self._ending = job, ending
        self.folder = Folder(f"{job.request.output}.partial", first=_JOB)
        self._rows = self.folder if rows is None else rows
        self.goes_on = False

    def resume_or_start(self, shards: Folder | None = None) -> None:
        """Go on with an unfinished job if it is the same one, or start anew.

        Args:
            shards: the output itself, if it grows under its name while the job runs.

        Raises:
            InputError: the output exists, or another job with this output is unfinished, and `--force` is not given.
        """
        fingerprint = json.dumps(self.job.fingerprint(), sort_keys=True).encode()
        folder, output, errors = self.folder, self.job.request.output, self.job.request.errors
        # A job that reads standard input cannot go on, because that cannot be read again.
        self.goes_on = bool(self.job.files) and _JOB in folder and folder.read(_JOB) == fingerprint
        is_own_output = self.goes_on and shards is not None and SUCCESS not in shards
        errors_place = folder.read(_ERRORS_PLACE) if self.goes_on and _ERRORS_PLACE in folder else None
        outputs = [] if is_own_output else [output]
        if errors is not None and errors_place != _place(errors):
            outputs.append(errors)
        for address in outputs:
            if not self.job.request.force and exists(address):
                raise InputError("the output is there already", given=address, remedy="another name, or --force")
        if self.goes_on:
            return
        if folder.exists() and not self.job.request.force:
            raise InputError(
                "another job with this output is unfinished: its input, artifact or options were others",
                given=f"{output}.partial",
                remedy="finish it by the same command as before, or drop it: --force",
            )
        folder.remove()
        if shards is not None:
            shards.remove()
        folder.write(_JOB, fingerprint)

    def find(self, key: str, window: Window) -> WindowRecord | None:
        """The record of a window that an earlier run has finished; None if the window has to be answered.

        A window with bad rows is answered again if bad rows stop the job.

        Raises:
            KdcError: the window had another number of rows.
        """
        if not self.goes_on or f"{key}.json" not in self.folder:
            return None
        record = WindowRecord.model_validate_json(self.folder.read(f"{key}.json"))
        if record.read != len(window):
            raise KdcError(
                "the input changed while the job was stopped", given=window.file, remedy="start over: --force"
            )
        return None if record.skipped and self.job.request.on_error != "skip" else record

    def add(self, key: str, good: Window, rows: bytes) -> WindowRecord:
        """Keep a window (its bad rows apart), and its answered rows as they will be written."""
        self._rows.write(key + self._ending, rows)
        if good.bad:
            self.folder.write(f"{key}.errors", good.error_lines())
        record = record_of(good, rows)
        self.folder.write(f"{key}.json", record.model_dump_json().encode())
        return record

    def rows(self, key: str) -> bytes:
        """A window's answered rows.

        Raises:
            KdcError: they are gone.
        """
        return _read(self._rows, key + self._ending)

    def check(self, records: Mapping[str, WindowRecord]) -> None:
        """Check that this process sees the answered rows of all these windows as they were written.

        Raises:
            KdcError: rows are gone, or have another size.
        """
        sizes = self._rows.sizes()
        for name, size in ((key + self._ending, record.bytes) for key, record in records.items()):
            if name not in sizes:
                raise KdcError("finished rows are gone", given=name, remedy=_START_OVER)
            if sizes[name] != size:
                given = f"{name}: {sizes[name]} bytes, {size} were written"
                raise KdcError("finished rows were changed", given=given, remedy=_START_OVER)

    def name_errors(self, records: Mapping[str, WindowRecord]) -> None:
        """Write the file that names the bad rows of these windows, if the request asks for one.

        Its place is kept first. A job that is killed after this finds the file there, and knows that it is its own.

        Raises:
            KdcError: the lines of a window are gone.
        """
        if (address := self.job.request.errors) is None:
            return
        self.folder.write(_ERRORS_PLACE, _place(address))
        with whole_file_at(address) as stream:
            for key in sorted(records):
                if records[key].skipped:
                    stream.write(_read(self.folder, f"{key}.errors"))


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError as error:
        raise KdcError("finished rows are gone", given=error, remedy=_START_OVER) from error


def record_of(good: Window, rows: bytes) -> WindowRecord:
    """The record of a window whose bad rows are apart, and whose other rows were written as `rows`."""
    return WindowRecord(read=len(good), written=len(good.lines), skipped=len(good.bad), bytes=len(rows))


def _digest(path: str) -> str:
    """Tells one source from another where a server says nothing of it, without what its address may hold of secrets."""
    return hashlib.sha256(path.encode()).hexdigest()


def _place(address: str) -> bytes:
    """The absolute place of an address, so that it is the same from every working directory."""
    system, path = file_system(address)
    return f"{system.protocol}: {path}".encode()
