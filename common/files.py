"""Atomic writing: after a crash at any moment a file has its old content or its new one, never a part."""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kdc.common.errors import KdcError

_ROOM = "make room, then give the same command again: most commands go on where they stopped"
_RIGHTS = "see that this user may read and write there"
_REFUSALS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "write elsewhere, or raise the limit of a file's size (`ulimit -f`)",
    errno.EROFS: "write elsewhere: this place can only be read",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: "the disk or the volume fails: see the machine's log, then give the same command again",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "name a place that lies in folders, not in a file",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Write a file in one step: a reader finds the old content or the new one, never a part.

    Args:
        path: the file; its folder exists.
        content: text (written as UTF-8) or bytes.
        shared: several processes may write the same file at once, see `whole_file`.
    """
    with whole_file(path, shared=shared) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """A binary stream whose content takes the name `path` when the block ends. After an error the file is as it was
    before; an error of the disk names it. The content is on the disk before it takes the name: a power cut leaves no
    empty file.

    Args:
        path: the file; its folder exists.
        shared: several processes may write the same file at once. Each then has a temporary file of its own, which
            stays if its writer is killed. Otherwise the next writer overwrites it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex if shared else 'kdc'}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a writer that was killed; a link in its place is not followed
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:  # of a write
            error.filename = str(path)
        raise


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or its cause, says that there is no room. Libraries in Rust and C++ say it in the message."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def refusal(error: OSError) -> KdcError | None:
    """The error for a person if the disk or its rights caused an error; None for another kind."""
    remedy = _REFUSALS.get(error.errno or 0)
    if remedy is None:
        return None
    file = "" if error.filename is None else f"{error.filename}: "
    return KdcError("the file system refused", given=f"{file}{error.strerror}", remedy=remedy)
