"""Atomic writing: after a crash a file has its old or its new content."""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kdc.common.errors import KdcError

_ROOM = "make room, then run the same command again: most commands resume"
_RIGHTS = "see that this user may read and write there"
_REFUSALS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "write elsewhere, or raise the limit of a file's size (`ulimit -f`)",
    errno.EROFS: "write elsewhere: this place is read-only",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: "the disk or the volume fails: see the machine's log, then run the same command again",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "name a place that lies in folders, not in a file",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    with whole_file(path, shared=shared) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """A stream whose content replaces `path` when the block ends without an error. A power cut leaves no empty file.

    Args:
        path: in an existing folder.
        shared: processes may write at once. A killed writer's temporary file stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex if shared else 'kdc'}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # a killed writer's; links are not followed
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # a write's error names no file
            error.filename = str(path)
        raise


def disk_is_full(error: BaseException | None) -> bool:
    """Rust and C++ libraries report a full disk only in the message."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def refusal(error: OSError) -> KdcError | None:
    remedy = _REFUSALS.get(error.errno or 0)
    if remedy is None:
        return None
    file = "" if error.filename is None else f"{error.filename}: "
    return KdcError("the file system refused", given=f"{file}{error.strerror}", remedy=remedy)
