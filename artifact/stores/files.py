"""Artifacts in a folder of any file system that fsspec knows: local paths, s3://, gs://, file://, https:// to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from kdc.artifact.folder import describe_files
from kdc.artifact.manifest import MANIFEST_NAME, FileInfo, Manifest
from kdc.artifact.stores.addresses import shown
from kdc.artifact.stores.progress import Meter
from kdc.artifact.stores.sources import Opened, missing, no_artifact, reaching, read_manifest
from kdc.common.errors import InputError, KdcError
from kdc.common.places import file_system, is_local, whole_file

# In the target while a push is under way, and after one that was cut off: which files are there whole.
JOURNAL_NAME = ".kdc-push.json"
_JOURNAL_BYTES = 1024 * 1024
_REQUEST_BYTES = 8 * 1024 * 1024  # of a range: fewer cost requests, more cost memory and what a cut-off loses
_COPY_BYTES = 1024 * 1024


class FileSource:
    """An artifact in a folder.

    Args:
        url: of the folder.
        told: how people are told of it, where not by its URL.
    """

    def __init__(self, url: str, told: str | None = None) -> None:
        self._told = told or shown(url)
        try:
            with reaching(self._told):  # some packages connect here
                self._system, path = file_system(url)
        except InputError as error:  # its words hold the address as it was given
            raise InputError(shown(error.what), given=self._told, remedy=error.remedy) from None
        self._path = path.rstrip("/")
        self._system.invalidate_cache()  # a long process must not see yesterday's listing

    @property
    def shown(self) -> str:
        """Its address, for people."""
        return self._told

    def read_manifest(self, limit: int) -> bytes:
        """At most `limit` bytes of `manifest.json`; see `Source`."""
        try:
            return self._read(MANIFEST_NAME, limit)
        except FileNotFoundError:
            with reaching(self._told):
                half = self._system.exists(self._at(JOURNAL_NAME))
            raise no_artifact(self._told, "a push to it was not finished" if half else "") from None

    def open(self, name: str, offset: int) -> Opened:
        """A file from a byte on; see `Source`."""
        told = f"{self._told}/{name}"
        try:
            with reaching(told, passing=(FileNotFoundError,)):
                stream = self._system.open(self._at(name), "rb", cache_type="none", block_size=self._block_size(name))
                start = _seek(stream, offset) if offset else 0
        except FileNotFoundError as error:
            raise missing(told) from error
        return Opened(start, getattr(stream, "size", None), self._chunks(stream, told))

    def _chunks(self, stream: Any, told: str) -> Generator[bytes, None, None]:
        with reaching(told), stream:
            while chunk := stream.read(_REQUEST_BYTES):
                yield chunk

    def _read(self, name: str, limit: int) -> bytes:
        try:
            with (
                reaching(f"{self._told}/{name}", passing=(FileNotFoundError, NotADirectoryError)),
                self._system.open(self._at(name), "rb", cache_type="none", block_size=self._block_size(name)) as stream,
            ):
                return bytes(stream.read(limit))
        except NotADirectoryError as error:
            raise FileNotFoundError(name) from error

    def _block_size(self, name: str) -> int:
        """Of requests; 0, which is fsspec's for one stream, where a web server has no ranges."""
        if "https" not in self._system.protocol or self._system.info(self._at(name)).get("partial"):
            return _REQUEST_BYTES
        return 0

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"


def _seek(stream: Any, offset: int) -> int:
    """Go to a byte, where the store can; where the stream now is."""
    try:
        stream.seek(offset)
    except (ValueError, NotImplementedError, OSError):  # it can only be read from its start
        return 0
    return offset


class FileTarget(FileSource):
    """A folder to push into. What it was sent whole is written down in it, so that the next push need not send it."""

    def send(self, artifact: Path, manifest: Manifest, content: bytes, *, force: bool, meter: Meter) -> int | None:
        """Send what is not there, and the manifest last.

        Args:
            artifact: the folder.
            manifest: of it.
            content: the manifest's bytes.
            force: also in the place of another artifact, or into a folder of other things.
            meter: told of bytes.

        Returns:
            The bytes that were sent; None where all was there already.

        Raises:
            InputError: something else is there, and `force` was not given.
            KdcError: the store refused, or a file changed on the way.
        """
        before = self._before(manifest, force)
        there = before.files if before is not None else self._journal()
        kept = {
            name: info for name, info in manifest.files.items() if there.get(name) == info and self._has(name, info)
        }
        meter.start(f"push {self.shown}", sum(info.size for info in manifest.files.values()))
        meter.advance(sum(info.size for info in kept.values()))
        if before is not None and before.sha256 == manifest.sha256 and len(kept) == len(manifest.files):
            return None
        with reaching(self._told):
            self._write(JOURNAL_NAME, _dumped(kept))
            if self._system.exists(self._at(MANIFEST_NAME)):
                self._system.rm_file(self._at(MANIFEST_NAME))
        sent = len(content)
        for name in sorted(manifest.files.keys() - kept.keys(), key=lambda name: manifest.files[name].size):
            self._send_file(artifact / name, name, manifest.files[name], meter)
            sent += manifest.files[name].size
            kept[name] = manifest.files[name]
            with reaching(self._told):
                self._write(JOURNAL_NAME, _dumped(kept))
        # Names of a manifest are plain; those of a journal are whatever its store says, and are never removed.
        old = set() if before is None else before.files.keys() - manifest.files.keys()
        with reaching(self._told):
            self._write(MANIFEST_NAME, content)
            for name in [*sorted(old), JOURNAL_NAME]:
                if self._system.exists(self._at(name)):
                    self._system.rm_file(self._at(name))
        return sent

    def _before(self, manifest: Manifest, force: bool) -> Manifest | None:
        """The artifact that is there, if it may be written over; None where there is none."""
        try:
            before, _ = read_manifest(self)
        except KdcError as error:
            if not self._is_taken(error) or force:
                return None
            raise InputError(
                "something else is there", given=self._told, remedy="another place, or --force to write into it"
            ) from error
        if before.sha256 != manifest.sha256 and not force:
            raise InputError(
                "another artifact is there",
                given=f"{self._told}: {before.task.name}, SHA-256 {before.sha256}",
                remedy="another place, or --force to replace it",
            )
        return before

    def _is_taken(self, error: KdcError) -> bool:
        """Whether there is something that no push of ours left: a manifest that cannot be read, or other files."""
        with reaching(self._told):
            if not self._system.exists(self._path):
                return False
            if not self._system.isdir(self._path):
                return True
            names = {each.rstrip("/").rpartition("/")[2] for each in self._system.ls(self._path, detail=False)}
        if MANIFEST_NAME in names and not isinstance(error, InputError):
            return True
        return JOURNAL_NAME not in names and bool(names - {self._path.rpartition("/")[2], ""})

    def _journal(self) -> dict[str, FileInfo]:
        """What a push that was cut off had sent whole. A damaged one counts as none."""
        try:
            found = json.loads(self._read(JOURNAL_NAME, _JOURNAL_BYTES))
            return {name: FileInfo.model_validate(info) for name, info in found.items()}
        except (FileNotFoundError, ValueError, AttributeError, RecursionError):
            return {}

    def _has(self, name: str, info: FileInfo) -> bool:
        try:
            if is_local(self._system):
                return describe_files(Path(self._path), [name])[name] == info
            return self._system.info(self._at(name)).get("size") == info.size
        except FileNotFoundError:
            return False

    def _send_file(self, path: Path, name: str, info: FileInfo, meter: Meter) -> None:
        digest = hashlib.sha256()
        # An error drops what was sent of it: an object or a file is there whole, or as it was.
        with reaching(f"{self._told}/{name}"), path.open("rb") as file, self._whole(name) as stream:
            while chunk := file.read(_COPY_BYTES):
                digest.update(chunk)
                stream.write(chunk)
                meter.advance(len(chunk))
            if digest.hexdigest() != info.sha256:
                raise KdcError("a file of the artifact changed while it was sent", given=path, remedy="push it again")

    def _write(self, name: str, content: bytes) -> None:
        with self._whole(name) as stream:
            stream.write(content)

    def _whole(self, name: str) -> Any:
        return whole_file(self._system.unstrip_protocol(self._at(name)))


def _dumped(files: dict[str, FileInfo]) -> bytes:
    return json.dumps({name: info.model_dump() for name, info in files.items()}, indent=1).encode()
