"""A job of `kdc predict`, with its finished windows.

`OUTPUT.partial/` holds `job.json`, and each finished window's answers, bad rows and record, written in this order.
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
_ERRORS = "errors"  # address of the list of bad rows
SUCCESS = "_SUCCESS"
_START_OVER = "does another process work there? then start over: --force"


@dataclass(frozen=True)
class Job:
    """A checked request."""

    request: PredictRequest
    files: list[File]  # empty for JSONL on standard input
    task: TaskInfo
    identity: dict[str, str]  # of the artifact and device; decides the answers too

    def __post_init__(self) -> None:
        text_pair = self.request.text_pair
        if text_pair is not None and not self.task.is_pair:
            raise InputError(f"the task {self.task.name} takes one text a row", given=f"--text-pair {text_pair}")
        if self.request.all_scores and not self.task.traits.has_labels:
            raise InputError("regression has no classes", given="--all-scores", remedy="leave it out")

    @property
    def text_columns(self) -> tuple[str, ...]:
        request, task = self.request, self.task
        pair = () if task.text_pair is None else (request.text_pair or task.text_pair,)
        return (request.text or task.text, *pair)

    @property
    def added_columns(self) -> dict[str, str]:
        """Types of the new columns: "text", "texts" or "number"."""
        traits, labels = self.task.traits, self.task.labels if self.request.all_scores else ()
        types = {"label": "texts" if traits.has_lists else "text"} if traits.has_labels else {}
        types |= {"score": "number"} | ({"set": "texts"} if self.task.sets is not None else {})
        types |= {f"score_{label}": "number" for label in labels}
        return {self.request.prefix + name: type_name for name, type_name in types.items()}

    def fingerprint(self) -> dict[str, Any]:
        """Equal for jobs with the same windows."""
        request, (text, text_pair) = self.request, (*self.text_columns, None)[:2]
        columns = {"text": text, "text_pair": text_pair, "prefix": request.prefix, "all_scores": request.all_scores}
        return {
            "files": [[file.address, file.size, _version(file)] for file in self.files],
            "kind": request.format,
            "dialect": [request.delimiter, request.encoding],
            "columns": columns,
            "max_text_chars": request.max_text_chars,
            "window": [WINDOW_ROWS, WINDOW_BYTES],
            **self.identity,
        }


class Counts(Frozen):
    read: int = 0
    written: int = 0
    skipped: int = 0
    resumed: int = 0

    def plus(self, more: "Counts") -> "Counts":
        return Counts(**{name: getattr(self, name) + getattr(more, name) for name in Counts.model_fields})


class WindowRecord(Counts):
    bytes: int


Progress = Callable[[Counts, int], None]  # counts, input bytes read


class FinishedWindows:
    def __init__(self, job: Job, ending: str, rows: Folder | None = None) -> None:
        self.job, self._ending = job, ending
        self.folder = Folder(f"{job.request.output}.partial", first=_JOB)
        self._rows = self.folder if rows is None else rows
        self._goes_on = False

    def resume_or_start(self, shards: Folder | None = None) -> None:
        """`shards` is the output, if it grows under its name.

        Raises:
            InputError: without `--force`, the output or another unfinished job exists.
        """
        fingerprint = json.dumps(self.job.fingerprint(), sort_keys=True).encode()
        folder, output, errors = self.folder, self.job.request.output, self.job.request.errors
        # Standard input cannot be read again.
        self._goes_on = bool(self.job.files) and _JOB in folder and folder.read(_JOB) == fingerprint
        is_own_output = self._goes_on and shards is not None and SUCCESS not in shards
        own_errors = folder.read(_ERRORS) if self._goes_on and _ERRORS in folder else None
        outputs = [] if is_own_output else [output]
        if errors is not None and own_errors != _absolute(errors):
            outputs.append(errors)
        for address in outputs:
            if not self.job.request.force and exists(address):
                raise InputError("the output is there already", given=address, remedy="another name, or --force")
        if self._goes_on:
            return
        if folder.exists() and not self.job.request.force:
            what = "another job with this output is unfinished: its input, artifact or options differ"
            remedy = "finish it by the same command as before, or drop it: --force"
            raise InputError(what, given=f"{output}.partial", remedy=remedy)
        folder.remove()
        if shards is not None:
            shards.remove()
        folder.write(_JOB, fingerprint)

    def find(self, key: str, window: Window) -> WindowRecord | None:
        if not self._goes_on or f"{key}.json" not in self.folder:
            return None
        record = WindowRecord.model_validate_json(self.folder.read(f"{key}.json"))
        if record.read != len(window):
            what = "the input changed while the job was stopped"
            raise KdcError(what, given=window.file, remedy="start over: --force")
        if record.skipped and self.job.request.on_error != "skip":
            return None
        return record.model_copy(update={"resumed": record.read})

    def add(self, key: str, good: Window, rows: bytes) -> WindowRecord:
        self._rows.write(key + self._ending, rows)
        if good.bad:
            self.folder.write(f"{key}.errors", good.error_lines())
        record = record_of(good, rows)
        self.folder.write(f"{key}.json", record.model_dump_json(exclude={"resumed"}).encode())
        return record

    def rows(self, key: str) -> bytes:
        return _read(self._rows, key + self._ending)

    def _check(self, records: Mapping[str, WindowRecord]) -> None:
        sizes = self._rows.sizes()
        for key, record in records.items():
            name = key + self._ending
            if name not in sizes:
                raise KdcError("finished rows are gone", given=name, remedy=_START_OVER)
            if sizes[name] != record.bytes:
                given = f"{name}: {sizes[name]} bytes, {record.bytes} were written"
                raise KdcError("finished rows were changed", given=given, remedy=_START_OVER)

    def conclude(self, records: Mapping[str, WindowRecord]) -> None:
        """Write the list of bad rows. Its address comes first, so a resumed job knows its list."""
        self._check(records)
        if (address := self.job.request.errors) is None:
            return
        self.folder.write(_ERRORS, _absolute(address))
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
    return WindowRecord(read=len(good), written=len(good.lines), skipped=len(good.bad), bytes=len(rows))


def _version(file: File) -> str:
    """A hash replaces the path, which may hold secrets."""
    return file.changed or hashlib.sha256(file.path.encode()).hexdigest()


def _absolute(address: str) -> bytes:
    system, path = file_system(address)
    return f"{system.protocol}: {path}".encode()
