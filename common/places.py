"""Input and output at local paths and addresses of fsspec."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kdc.common import files
from kdc.common.errors import InputError, KdcError, without_secrets
from kdc.common.records import FORMATS, USUAL, Dialect

_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
STANDARD = "-"

_REMEDY = "check the name, and the credentials and endpoint that the scheme's package reads"
_SERVER = re.compile(r"\b(https?)://([^/?#]*)")
_WORDS = re.compile(r"\w{3,}")
# Keys for a file's version or modification time.
_CHANGED = ("mtime", "ETag", "etag", "LastModified", "Last-Modified", "updated")
_LONGEST_DETAIL = 600  # some messages hold a whole page


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system, and the path."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address, **_of_web(address))
    except (ImportError, ValueError) as error:
        remedy = "install the fsspec package of this scheme"
        raise InputError(f"cannot reach this place: {_told(error, address)}", given=address, remedy=remedy) from error


def _of_web(address: str) -> dict[str, Any]:
    servers = dict(_SERVER.findall(address))
    if not servers:
        return {}
    from kdc.common.web import session

    return {scheme: {"get_client": session, "client_kwargs": {"server": name}} for scheme, name in servers.items()}


def _told(error: Exception, address: str) -> str:
    """Only the error's type if its message repeats a secret."""
    words = without_secrets(str(error))[:_LONGEST_DETAIL]
    secrets = set(_WORDS.findall(address)) - set(_WORDS.findall(without_secrets(address)))
    return type(error).__name__ + ("" if any(secret in words for secret in secrets) else f": {words}")


def is_local(system: Any) -> bool:
    return "file" in system.protocol


@contextmanager
def reaching(address: str, remedy: str = _REMEDY, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn a store's errors into `KdcError`, except `passing`."""
    try:
        yield
    except Exception as error:  # packages' errors share no base
        if isinstance(error, (KdcError, *passing)):
            raise
        given = f"{without_secrets(address)}: {_told(error, address)}"
        raise KdcError("the store refused, or did not answer", given=given, remedy=remedy) from error


def reaching_remote(system: Any, address: str) -> AbstractContextManager[None]:
    """`reaching`, but errors of the local file system pass."""
    return reaching(address, passing=(Exception,) if is_local(system) else ())


@dataclass(frozen=True)
class File:
    address: str  # without secrets
    system: Any  # fsspec's
    path: str  # on that system
    size: int  # bytes
    changed: str  # modification time or entity tag
    dialect: Dialect = USUAL

    @property
    def format(self) -> str:
        return format_of(self.address)

    def open(self) -> IO[bytes]:
        """Open for reading, decompressed."""
        from fsspec.compression import available_compressions

        compression = _COMPRESSED.get(Path(_without_query(self.path)).suffix)
        if compression is not None and compression not in available_compressions():
            what = f"nothing that unpacks {compression} is installed"
            raise InputError(what, given=self.address, remedy="unpack it first")
        return self.system.open(self.path, "rb", compression=compression)


def format_of(address: str) -> str:
    ending = _ending(address)
    if ending not in FORMATS:
        raise InputError("unknown format", given=address, remedy=f"one of {', '.join(FORMATS)}")
    return FORMATS[ending]


def _ending(address: str) -> str:
    name = Path(_without_query(address))
    return Path(name.stem if name.suffix in _COMPRESSED else name).suffix.lower()


def is_packed(address: str) -> bool:
    return Path(_without_query(address)).suffix in _COMPRESSED


def _without_query(address: str) -> str:
    return address.partition("?")[0] if "://" in address else address


def exists(address: str) -> bool:
    system, path = file_system(address)
    with reaching_remote(system, address):
        return bool(system.exists(path))


def find(address: str, dialect: Dialect = USUAL) -> list[File]:
    """Sorted files of an input: one file, a directory or a pattern."""
    system, path = file_system(address)
    with reaching_remote(system, address):
        return [_describe(system, match, address, dialect) for match in _matches(system, path, address)]


def _matches(system: Any, path: str, address: str) -> list[str]:
    if system.isdir(path):
        matches = [name for name in system.find(path) if _ending(name) in FORMATS and not _is_hidden(name, path)]
    elif system.exists(path):  # before patterns: data[1].csv can be a file
        matches = [path]
    else:
        matches = [name for name in system.glob(path) if not system.isdir(name)] if set(path) & set("*?[") else []
    if not matches:
        remedy = f"a file, a directory or a pattern of {', '.join(FORMATS)}"
        raise InputError("there is no input", given=address, remedy=remedy)
    return sorted(matches)


def _describe(system: Any, path: str, address: str, dialect: Dialect) -> File:
    info = system.info(path)
    changed = next((str(info[key]) for key in _CHANGED if key in info), "")
    whole = path if is_local(system) or "://" in path else f"{address.partition('://')[0]}://{path}"
    return File(without_secrets(whole), system, path, int(info.get("size") or 0), changed, dialect)


def _is_hidden(path: str, root: str) -> bool:
    """Made by a tool: .ipynb_checkpoints, _temporary, _delta_log."""
    below = PurePosixPath(path).relative_to(PurePosixPath(root)).parts
    return any(part.startswith((".", "_")) for part in below)


class Folder:
    """A folder of small files, each written atomically.

    Args:
        first: what `remove` deletes first. A folder without it is half removed.
    """

    def __init__(self, address: str, first: str) -> None:
        self._system, self._path = file_system(address)
        self._address = address
        self._first = first

    def __contains__(self, name: str) -> bool:
        with reaching_remote(self._system, self._address):
            return bool(self._system.exists(self._at(name)))

    def exists(self) -> bool:
        return exists(self._address)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        return self._system.cat_file(self._at(name))

    def write(self, name: str, data: bytes) -> None:
        if not is_local(self._system):  # object stores are atomic
            with reaching_remote(self._system, self._address):
                self._system.pipe_file(self._at(name), data)
            return
        os.makedirs(self._path, exist_ok=True)
        # Ray may restart a task that still writes.
        files.write_whole(Path(self._at(name)), data, shared=True)

    def sizes(self) -> dict[str, int]:
        """Bytes by file name."""
        with reaching_remote(self._system, self._address):
            self._system.invalidate_cache()  # others write here too
            listing = self._system.find(self._path, detail=True)
        return {Path(path).name: int(info["size"]) for path, info in listing.items()}

    def move(self, address: str) -> None:
        """Rename a local folder, after removing the target."""
        _, path = file_system(address)
        for temporary in Path(self._path).glob("*.tmp"):  # left by killed writers
            temporary.unlink()
        if os.path.isdir(path):
            shutil.rmtree(path)
        Path(path).unlink(missing_ok=True)
        os.replace(self._path, path)

    def remove(self) -> None:
        if self._first in self:
            self._system.rm_file(self._at(self._first))
        if self.exists():
            self._system.rm(self._path, recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"


@contextmanager
def whole_file_at(address: str) -> Iterator[IO[bytes]]:
    """The file gets its name when it is complete. Local folders are created."""
    system, path = file_system(address)
    if is_local(system):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with files.whole_file(Path(path)) as stream:
            yield stream
        return
    with system.transaction, system.open(path, "wb") as stream:
        yield stream


@contextmanager
def lock(output: str) -> Iterator[None]:
    """Lock a local output, if its folder is writable."""
    from filelock import FileLock, Timeout

    system, path = file_system(output)
    if not is_local(system):
        yield
        return
    file = Path(path).with_name(f".{Path(path).name}.lock")
    held = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        raise InputError("another process writes this output", given=output, remedy="wait for it") from None
    except OSError as error:  # the output may be a writable mount in a read-only folder
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    try:
        yield
    finally:
        if held.is_locked:
            file.unlink(missing_ok=True)
            held.release()
