"""Files that are there whole or not at all: a crash at any moment leaves the old content or the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step: a reader finds the old content or the new one, never a part.

    Args:
        path: the file; its folder exists.
        content: text (written as UTF-8) or bytes.
    """
    with whole_file(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose content takes the name `path` when the block ends without an error.

    The content is on the disk before it takes the name, so that a power cut does not leave an empty file. After an
    error the file named `path` is as it was before.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
