"""Artifacts in folders of fsspec: local paths, s3://, gs://, file://, and https:// to read."""

import contextlib
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from kdc.artifact.folder import describe_files
from kdc.artifact.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, SIGNATURE_NAME, FileInfo, Manifest
from kdc.artifact.stores.sources import Documents, Opened, Outgoing, Source
from kdc.common.errors import InputError, KdcError, without_secrets
from kdc.common.places import file_system, is_local, lock, reaching, whole_file_at
from kdc.common.progress import Meter

JOURNAL_NAME = ".kdc-push.json"  # the manifest of an unfinished push
# Bytes of a range request. Large ones take memory.
_REQUEST_BYTES = 8 * 1024 * 1024
_COPY_BYTES = 1024 * 1024
_REMEDY = (
    "check the name, the network, and the credentials and endpoint that the scheme's package reads; the same command "
    "again resumes"
)


class FileSource(Source):
    """Messages show `address`, if given."""

    def __init__(self, url: str, address: str | None = None) -> None:
        self._whole_address = address or url
        self.address = without_secrets(self._whole_address)
        with reaching(self._whole_address, _REMEDY):  # some packages connect here
            self._system, path = file_system(url)
        self._path = path.rstrip("/")
        self._system.invalidate_cache()  # another process may have written

    def open(self, name: str, offset: int = 0) -> Opened:
        is_web = "https" in self._system.protocol
        with self._reaching(name, passing=(FileNotFoundError,)), _telling_why(is_web):
            block_size = _REQUEST_BYTES
            if is_web and not self._system.info(self._at(name)).get("partial"):
                block_size = 0  # no ranges: one stream
            stream = self._system.open(self._at(name), "rb", cache_type="none", block_size=block_size)
            start = 0
            if offset:  # stores without seeking raise
                with contextlib.suppress(ValueError, NotImplementedError, OSError):
                    stream.seek(offset)
                    start = offset
        return Opened(start, getattr(stream, "size", None), self._chunks(stream, name))

    def _chunks(self, stream: Any, name: str) -> Generator[bytes, None, None]:
        with self._reaching(name), stream:
            while chunk := stream.read(_REQUEST_BYTES):
                yield chunk

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _reaching(self, name: str = "", passing: tuple[type[Exception], ...] = ()) -> AbstractContextManager[None]:
        return reaching(f"{self._whole_address}/{name}" if name else self._whole_address, _REMEDY, passing)


@contextlib.contextmanager
def _telling_why(is_web: bool) -> Iterator[None]:
    """Raise the cause: fsspec's HTTP package reports every failure as a missing file."""
    try:
        yield
    except NotADirectoryError as error:
        raise FileNotFoundError(error.filename) from error
    except FileNotFoundError as error:
        if is_web and error.__cause__ is not None and getattr(error.__cause__, "status", None) not in (404, 410):
            raise error.__cause__ from None
        raise


def push_to_files(url: str, artifact: Outgoing, *, force: bool) -> tuple[int | None, str]:
    """Send missing files, manifest last. `force` replaces another artifact, or writes among other files.

    Returns:
        Bytes sent (None: all was there), and the address without secrets.

    Raises:
        InputError: something else is there, or another process writes.
    """
    target = FileTarget(url)
    with Meter() as meter, lock(url):
        return target.send(artifact, force=force, meter=meter), target.address


class FileTarget(FileSource):
    """A folder to push into. A journal lets the next push skip complete files."""

    def send(self, artifact: Outgoing, *, force: bool, meter: Meter) -> int | None:
        manifest = artifact.manifest
        present = self._artifact_to_replace(manifest, force)
        old = None if present is None else present.manifest
        stored = {} if old is None else old.files
        if old is None and self._journal() == artifact.content:
            stored = manifest.files
        missing = {
            name: info for name, info in manifest.files.items() if stored.get(name) != info or not self._has(name, info)
        }
        missing_bytes = sum(info.size for info in missing.values())
        meter.start(f"push {self.address}", manifest.size_bytes)
        meter.advance(manifest.size_bytes - missing_bytes)
        if present is not None and present.manifest.sha256 == manifest.sha256 and not missing:
            if artifact.signature in (None, present.signature):
                return None
            self._write(SIGNATURE_NAME, artifact.signature)
            return len(artifact.signature)
        self._remove([*missing])  # the journal vouches for files that are there
        self._write(JOURNAL_NAME, artifact.content)
        self._remove([MANIFEST_NAME, SIGNATURE_NAME])
        for name in sorted(missing, key=lambda name: missing[name].size):
            self._send_file(artifact.folder / name, name, meter)
        for name, content in artifact.by_name.items():
            self._write(name, content)
        outdated = set() if old is None else old.files.keys() - manifest.files.keys()
        self._remove([*sorted(outdated), JOURNAL_NAME])
        return missing_bytes + artifact.size_bytes

    def _artifact_to_replace(self, manifest: Manifest, force: bool) -> Documents | None:
        try:
            present = self.read_documents()
            if self.has_hub_layout:
                raise KdcError("an exported repository is there", given=self.address)
        except KdcError as error:
            if force or not self._is_occupied():
                return None
            remedy = "another place, or --force to write into it"
            raise InputError("something else is there", given=self.address, remedy=remedy) from error
        old = present.manifest
        if old.sha256 != manifest.sha256 and not force:
            given, remedy = f"{self.address}: {old.task.name}, SHA-256 {old.sha256}", "another place, or --force"
            raise InputError("another artifact is there", given=given, remedy=remedy)
        return present

    def _is_occupied(self) -> bool:
        with self._reaching():
            if not self._system.isdir(self._path):
                return bool(self._system.exists(self._path))
            names = {path.rstrip("/").rpartition("/")[2] for path in self._system.ls(self._path, detail=False)}
        # Object stores may list the folder itself.
        return JOURNAL_NAME not in names and bool(names - {self._path.rpartition("/")[2], ""})

    def _journal(self) -> bytes | None:
        try:
            return self.read(JOURNAL_NAME, MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return None

    def _has(self, name: str, info: FileInfo) -> bool:
        try:
            if is_local(self._system):
                return describe_files(Path(self._path), [name])[name] == info
            return self._system.info(self._at(name)).get("size") == info.size
        except FileNotFoundError:
            return False

    def _send_file(self, path: Path, name: str, meter: Meter) -> None:
        with self._reaching(name), path.open("rb") as file, self._writing(name) as stream:
            while chunk := file.read(_COPY_BYTES):
                stream.write(chunk)
                meter.advance(len(chunk))

    def _write(self, name: str, content: bytes) -> None:
        with self._reaching(), self._writing(name) as stream:
            stream.write(content)

    def _writing(self, name: str) -> AbstractContextManager[IO[bytes]]:
        return whole_file_at(self._system.unstrip_protocol(self._at(name)))

    def _remove(self, names: list[str]) -> None:
        with self._reaching():
            for name in names:
                if self._system.exists(self._at(name)):
                    self._system.rm_file(self._at(name))
