"""The folder in which `kdc serve` and its workers leave files for each other: started, failed and why, stopping.

An environment variable names it to the workers. Without `kdc serve`, as under `bentoml serve`, there is no such folder.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdc.common.errors import InputError, KdcError
from kdc.common.files import write_whole

DIRECTORY = "KDC_RUNTIME_DIR"
SUPERVISOR = "KDC_SUPERVISOR"  # the process id of what starts the workers: `kdc serve` or `bentoml serve`
_STARTED = "started-"  # and a process id: is there once this worker has started successfully
STOPPING = "stopping"  # is there once the whole service stops, not one worker alone
_FAILED = "failed.json"
_PREFIX, _LOCK = "kdc-serve-", "lock"


def directory() -> Path | None:
    """The folder; None without `kdc serve`."""
    name = os.environ.get(DIRECTORY)
    return None if name is None else Path(name)


@contextmanager
def own_folder() -> Iterator[Path]:
    """Make this process's folder, which no other user can enter, and hold its lock while the context lasts. Folders of
    services that were killed are removed: nobody holds their locks."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or another service removes it now
            if left.lstat().st_uid == os.getuid() and not left.is_symlink():
                with (left / _LOCK).open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        making = Path(name, f"{_LOCK}.new")  # it has its name once it is held
        with making.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            making.rename(Path(name, _LOCK))
            yield Path(name)


def report_ready(folder: Path) -> None:
    """Note that this worker has started successfully."""
    (folder / f"{_STARTED}{os.getpid()}").touch()


def has_started(folder: Path) -> bool:
    """Whether any worker has ever started successfully."""
    return any(folder.glob(f"{_STARTED}*"))


def was_ready(folder: Path, worker: int) -> bool:
    """Whether the worker of a process id has started successfully."""
    return (folder / f"{_STARTED}{worker}").exists()


def report_failure(folder: Path, error: KdcError) -> None:
    """Note why no worker can start."""
    parts = {"what": error.what, "given": None if error.given is None else str(error.given), "remedy": error.remedy}
    content = json.dumps({"exit_code": error.exit_code, "parts": parts})
    write_whole(folder / _FAILED, content, shared=True)  # all workers fail at the same moment


def read_failure(folder: Path) -> KdcError | None:
    """Why no worker can start; None if none has said so."""
    if not (folder / _FAILED).exists():
        return None
    failure = json.loads((folder / _FAILED).read_bytes())
    kind = InputError if failure["exit_code"] == InputError.exit_code else KdcError
    return kind(**failure["parts"])
