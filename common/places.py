"""Where input and output lie: local paths, and every address that fsspec has a package for (s3://, gs://, ...)."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kdc.common.errors import InputError, KdcError

_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
STANDARD = "-"


@dataclass(frozen=True)
class File:
    """One file of the input.

    Attributes:
        address: as people are told it.
        system: fsspec's file system.
        path: of the file there.
        size: in bytes.
        changed: what tells this version from another: the time of its last change, or an entity tag.
    """

    address: str
    system: Any
    path: str
    size: int
    changed: str

    @property
    def format(self) -> str:
        """csv, tsv, jsonl or parquet."""
        return format_of(self.address)

    def open(self) -> IO[bytes]:
        """To read, unpacked.

        Raises:
            InputError: the package that unpacks it is not installed.
        """
        from fsspec.compression import available_compressions

        packed = _COMPRESSED.get(Path(self.address).suffix)
        if packed is not None and packed not in available_compressions():
            raise InputError(
                f"nothing that unpacks {packed} is installed", given=self.address, remedy="unpack it first"
            )
        return self.system.open(self.path, "rb", compression=packed)


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


def is_local(system: Any) -> bool:
    """Whether paths are those of this machine."""
    return "file" in system.protocol


@contextmanager
def reaching(system: Any, address: str) -> Iterator[None]:
    """What a store answers with, and what its package raises, as an error of ours. Local errors stay as they are.

    Raises:
        KdcError: the store refused, or did not answer.
    """
    try:
        yield
    except KdcError:
        raise
    except Exception as error:  # each package has its own, and they share no base
        if is_local(system):
            raise
        raise KdcError(
            "the store refused, or did not answer",
            given=f"{address}: {type(error).__name__}: {error}",
            remedy="see the bucket's name, the credentials and the endpoint, which the package of this scheme reads",
        ) from error


def exists(address: str) -> bool:
    """Whether there is anything at an address.

    Raises:
        KdcError: the store cannot be asked.
    """
    system, path = file_system(address)
    with reaching(system, address):
        return bool(system.exists(path))


def find(address: str) -> list[File]:
    """The files of an input: one file, those of a directory, or what a pattern matches, by name.

    Raises:
        InputError: there is nothing, or nothing of a known format.
        KdcError: the store cannot be asked.
    """
    system, path = file_system(address)
    with reaching(system, address):
        return [_describe(system, each, address) for each in _names(system, path, address)]


def _names(system: Any, path: str, address: str) -> list[str]:
    if system.isdir(path):
        found = [each for each in system.find(path) if _known(each) and not _is_hidden(each, path)]
    elif system.exists(path):  # before patterns: data[1].csv is a name too
        found = [path]
    else:
        found = [each for each in system.glob(path) if not system.isdir(each)] if set(path) & set("*?[") else []
    if not found:
        raise InputError(
            "there is no input", given=address, remedy=f"a file, a directory or a pattern of {', '.join(_FORMATS)}"
        )
    return sorted(found)


def format_of(address: str) -> str:
    """csv, tsv, jsonl or parquet, by the ending.

    Raises:
        InputError: another ending.
    """
    name = address.removesuffix(Path(address).suffix) if is_packed(address) else address
    try:
        return _FORMATS[Path(name).suffix.lower()]
    except KeyError:
        raise InputError("unknown format", given=address, remedy=f"one of {', '.join(_FORMATS)}") from None


def is_packed(address: str) -> bool:
    """Whether the name says that it is compressed."""
    return Path(address).suffix in _COMPRESSED


class Folder:
    """A folder of small files, each of which is whole or not there.

    Args:
        address: local, or of any file system of fsspec.
        first: the file that is removed before all others, so that what a cut-off removal leaves is known for it.
    """

    def __init__(self, address: str, first: str) -> None:
        self._system, self._path = file_system(address)
        self._address = address
        self._first = first

    def __contains__(self, name: str) -> bool:
        with reaching(self._system, self._address):
            return bool(self._system.exists(self._at(name)))

    def exists(self) -> bool:
        """Whether there is anything at its place."""
        return exists(self._address)

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: it is not there.
        """
        return self._system.cat_file(self._at(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole; a crash leaves it as it was. An object store does so by itself."""
        if not is_local(self._system):
            with reaching(self._system, self._address):
                self._system.pipe_file(self._at(name), data)
            return
        os.makedirs(self._path, exist_ok=True)
        temporary = self._at(f"{name}.{uuid.uuid4().hex}.tmp")  # a retry may write beside what it repeats
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self._at(name))

    def sizes(self) -> dict[str, int]:
        """Its files, with their bytes."""
        with reaching(self._system, self._address):
            self._system.invalidate_cache()  # others write here too
            found = self._system.find(self._path, detail=True)
        return {Path(path).name: int(info["size"]) for path, info in found.items()}

    def move(self, address: str) -> None:
        """Move a local folder, in one step where nothing is at its new place; what is there is removed before."""
        _, path = file_system(address)
        for left in Path(self._path).glob("*.tmp"):  # of writers that were killed
            left.unlink()
        if os.path.isdir(path):
            shutil.rmtree(path)
        Path(path).unlink(missing_ok=True)
        os.replace(self._path, path)

    def remove(self) -> None:
        """Remove the folder with all that is in it; nothing where it is not there."""
        if self._first in self:
            self._system.rm_file(self._at(self._first))
        if self.exists():
            self._system.rm(self._path, recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"


@contextmanager
def whole_file(address: str) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name only when all of it was written."""
    system, path = file_system(address)
    if not is_local(system):
        with system.transaction, system.open(path, "wb") as stream:  # an upload is committed at the end, or dropped
            yield stream
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _describe(system: Any, path: str, address: str) -> File:
    info = system.info(path)
    changed = next((str(info[key]) for key in ("mtime", "ETag", "etag", "LastModified", "updated") if key in info), "")
    told = path if is_local(system) else f"{address.partition('://')[0]}://{path}"
    return File(told, system, path, int(info.get("size") or 0), changed)


def _known(path: str) -> bool:
    try:
        return bool(format_of(path))
    except InputError:
        return False


def _is_hidden(path: str, root: str) -> bool:
    """Whether a name on the way is one that tools use for their own: .ipynb_checkpoints, _temporary, _delta_log."""
    below = PurePosixPath(path).relative_to(PurePosixPath(root)).parts
    return any(part.startswith((".", "_")) for part in below)
