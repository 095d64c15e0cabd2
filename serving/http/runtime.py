"""The folder for messages between `kdc serve` and its workers. `bentoml serve` has none."""

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
SUPERVISOR = "KDC_SUPERVISOR"  # the supervisor's process id
_STARTED = "started-"  # before a worker's process id
STOPPING = "stopping"  # the whole service stops
_FAILED = "failed.json"
_PREFIX, _LOCK = "kdc-serve-", "lock"


def directory() -> Path | None:
    name = os.environ.get(DIRECTORY)
    return None if name is None else Path(name)


@contextmanager
def own_folder() -> Iterator[Path]:
    """Make and lock a folder; remove the unlocked ones of killed services."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or removed meanwhile
            if left.lstat().st_uid == os.getuid() and not left.is_symlink():
                with (left / _LOCK).open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        making = Path(name, f"{_LOCK}.new")  # renamed once locked
        with making.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            making.rename(Path(name, _LOCK))
            yield Path(name)


def report_ready(folder: Path) -> None:
    (folder / f"{_STARTED}{os.getpid()}").touch()


def has_started(folder: Path) -> bool:
    return any(folder.glob(f"{_STARTED}*"))


def was_ready(folder: Path, worker: int) -> bool:
    return (folder / f"{_STARTED}{worker}").exists()


def report_failure(folder: Path, error: KdcError) -> None:
    parts = {"what": error.what, "given": None if error.given is None else str(error.given), "remedy": error.remedy}
    content = json.dumps({"exit_code": error.exit_code, "parts": parts})
    write_whole(folder / _FAILED, content, shared=True)  # all workers fail together


def read_failure(folder: Path) -> KdcError | None:
    if not (folder / _FAILED).exists():
        return None
    failure = json.loads((folder / _FAILED).read_bytes())
    kind = InputError if failure["exit_code"] == InputError.exit_code else KdcError
    return kind(**failure["parts"])
