"""The folder in which `kdc serve` and its workers leave files for each other: started, failed and why, stopping.

An environment variable names it to the workers. Without `kdc serve`, as under `bentoml serve`, there is no such folder.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import psutil

from kdc.common.errors import InputError, KdcError
from kdc.common.files import write_whole

DIRECTORY = "KDC_RUNTIME_DIR"
SUPERVISOR = "KDC_SUPERVISOR"  # the process id of what starts the workers: `kdc serve` or `bentoml serve`
STARTED = "started"  # is there once a worker has started successfully
STOPPING = "stopping"  # is there once the whole service stops, not one worker alone
_FAILED = "failed.json"
_PREFIX = "kdc-serve-"


def directory() -> Path | None:
    """The folder; None without `kdc serve`."""
    name = os.environ.get(DIRECTORY)
    return None if name is None else Path(name)


def own_folder() -> tempfile.TemporaryDirectory[str]:
    """Make this process's folder, which no other user can enter, and remove those of processes that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        # In a container its predecessor had the same number.
        is_gone = pid.isdigit() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))
        if is_gone and left.lstat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-")


def report_failure(folder: Path, error: KdcError) -> None:
    """Note why no worker can start."""
    parts = {"what": error.what, "given": str(error.given or "") or None, "remedy": error.remedy}
    content = json.dumps({"exit_code": error.exit_code, "parts": parts})
    write_whole(folder / _FAILED, content, shared=True)  # all workers fail at the same moment


def read_failure(folder: Path) -> KdcError | None:
    """Why no worker can start; None if none has said so."""
    if not (folder / _FAILED).exists():
        return None
    failure = json.loads((folder / _FAILED).read_bytes())
    kind = InputError if failure["exit_code"] == InputError.exit_code else KdcError
    return kind(**failure["parts"])
