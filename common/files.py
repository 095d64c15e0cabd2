"""Atomic writing: after a crash at any moment a file has its old content or its new one, never a part."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


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
    """A binary stream whose content takes the name `path` when the block ends without an error.

    The content is on the disk before it takes the name, so that a power cut does not leave an empty file. After an
    error the file named `path` is as it was before.

    Args:
        path: the file; its folder exists.
        shared: several processes may write the same file at once. Each then has a temporary file of its own; one whose
            writer was killed stays, while otherwise the next writer overwrites it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp" if shared else f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a writer that was killed; a link in its place is not followed
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
