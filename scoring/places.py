"""Where input and output lie: local paths, and every address that fsspec has a package for (s3://, gs://, ...)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from errors import InputError

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
STANDARD = "-"


@dataclass(frozen=True)
class File:
    """One file of the input.

    Attributes:
        address: path or URL, as people write it.
        path: the same as its file system knows it.
        bytes: its size.
        changed: what tells this version from another: the time of its last change, or an entity tag.
    """

    address: str
    path: str
    bytes: int
    changed: str

    @property
    def format(self) -> str:
        """csv, tsv, jsonl or parquet."""
        return format_of(self.address)

    @property
    def is_compressed(self) -> bool:
        """Whether reading it unpacks it."""
        return self.address.endswith(_COMPRESSED)


def file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and its path there.

    Raises:
        InputError: fsspec knows no such scheme, or the package for it is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"cannot reach this place: {error}", given=address, remedy="install the fsspec package of this scheme"
        ) from error


def find(address: str) -> list[File]:
    """The files of an input: one file, those of a directory, or what a pattern matches, by name.

    Raises:
        InputError: there is nothing, or nothing of a known format.
    """
    system, path = file_system(address)
    if any(sign in path for sign in "*?["):
        found = [each for each in system.glob(path) if not system.isdir(each)]
    elif system.isdir(path):
        found = [each for each in system.find(path) if _known(each) and not Path(each).name.startswith((".", "_"))]
    else:
        found = [path] if system.exists(path) else []
    if not found:
        raise InputError(
            "there is no input", given=address, remedy=f"a file, a directory or a pattern of {', '.join(_FORMATS)}"
        )
    return [_describe(system, each) for each in sorted(found)]


def format_of(address: str) -> str:
    """csv, tsv, jsonl or parquet, by the ending.

    Raises:
        InputError: another ending.
    """
    name = address
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    try:
        return _FORMATS[Path(name).suffix.lower()]
    except KeyError:
        raise InputError("unknown format", given=address, remedy=f"one of {', '.join(_FORMATS)}") from None


class Folder:
    """A folder of small files, each of which is whole or not there.

    Args:
        address: local, or of any file system of fsspec.
    """

    def __init__(self, address: str) -> None:
        self._system, self._path = file_system(address)
        self._is_local = "file" in self._system.protocol

    def __contains__(self, name: str) -> bool:
        return bool(self._system.exists(self._at(name)))

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return self._system.cat_file(self._at(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole; a crash leaves it as it was. An object store does so by itself."""
        if not self._is_local:
            self._system.pipe_file(self._at(name), data)
            return
        os.makedirs(self._path, exist_ok=True)
        temporary = self._at(f"{name}.tmp")
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self._at(name))

    def remove(self) -> None:
        """Remove the folder with all that is in it; nothing where it is not there."""
        if self._system.exists(self._path):
            self._system.rm(self._path, recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"


@contextmanager
def whole_file(address: str) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name only when all of it was written."""
    system, path = file_system(address)
    if "file" not in system.protocol:
        with system.open(path, "wb") as stream:  # object stores show an upload when it is closed
            yield stream
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _describe(system: Any, path: str) -> File:
    info = system.info(path)
    changed = next((str(info[key]) for key in ("mtime", "ETag", "etag", "LastModified", "updated") if key in info), "")
    local = "file" in system.protocol
    return File(path if local else system.unstrip_protocol(path), path, int(info.get("size") or 0), changed)


def _known(path: str) -> bool:
    try:
        return bool(format_of(path))
    except InputError:
        return False
