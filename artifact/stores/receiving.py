"""Receiving: the files of an artifact from a store into a folder, each with a check of its size and SHA-256.

A file that is in the folder already is used: as it is where its hash is right, and from where it ends where it is cut
off.
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from kdc.artifact.manifest import FileInfo, Manifest
from kdc.artifact.stores.sources import Source
from kdc.common.errors import KdcError
from kdc.common.progress import Meter

_SPARE_BYTES = 16 * 1024 * 1024  # of the disk; file systems need some for themselves
_PULL_AGAIN = "pull again; if it stays so, push the artifact again from a copy that `kdc inspect` finds whole"


def receive_files(source: Source, manifest: Manifest, folder: Path, meter: Meter) -> int:
    """Bring all files of an artifact into a folder, small ones first.

    Returns:
        The number of bytes that came from the store.

    Raises:
        KdcError: the disk is full, the store refused or did not answer, or what arrived is damaged.
    """
    present = sum(path.lstat().st_size for path in folder.iterdir())
    needed, free = manifest.size_bytes - present + _SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise KdcError(
            "the disk has no room for the artifact",
            given=f"{folder.parent}: {free} bytes free, {needed} needed",
            remedy="free some, or pull elsewhere (`kdc serve`: set KDC_CACHE)",
        )
    meter.start(f"pull {source.shown}", manifest.size_bytes)
    received = 0
    for name, info in sorted(manifest.files.items(), key=lambda item: (item[1].size, item[0])):
        received += _receive_file(source, name, info, folder / name, meter)
    return received


def _receive_file(source: Source, name: str, info: FileInfo, path: Path, meter: Meter) -> int:
    """Complete one file, and fetch it once more from its start if its hash is wrong; return the bytes that came."""
    received = 0
    for is_second_try in (False, True):
        start, count, digest = _receive_rest(source, name, info, path, meter)
        received += count
        if digest == info.sha256:
            return received
        path.unlink()
        meter.advance(-info.size)
        # If all of it came just now, the store itself is wrong. Otherwise an earlier pull left a damaged beginning.
        if is_second_try or not start:
            break
    raise KdcError(
        "a file of the artifact was changed on the way, or in the store",
        given=f"{source.shown}/{name}: SHA-256 {digest}, the manifest says {info.sha256}",
        remedy=_PULL_AGAIN,
    )


def _receive_rest(source: Source, name: str, info: FileInfo, path: Path, meter: Meter) -> tuple[int, int, str]:
    """Append what is missing of a file; return where that began, how many bytes came, and the SHA-256 of it all."""
    # The hidden folder is ours but lies where others may write, so that no link in it is followed.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o644)
    with os.fdopen(handle, "r+b") as file:
        if os.fstat(handle).st_size > info.size:
            file.truncate(0)
        digest, start = hashlib.file_digest(file, "sha256"), file.tell()
        meter.advance(start)
        if start == info.size:
            return start, 0, digest.hexdigest()
        try:
            opened = source.open(name, start)
        except FileNotFoundError as error:
            raise KdcError(
                "a file of the artifact is missing",
                given=f"{source.shown}/{name}",
                remedy="push the artifact again: `kdc push` sends what is missing",
            ) from error
        with contextlib.closing(opened.chunks):
            _check_size(source, name, opened.size, info)
            if opened.start != start:  # the store can only begin at the file's first byte
                meter.advance(-start)
                digest, start = hashlib.sha256(), 0
                file.seek(0)
                file.truncate()
            count = 0
            for chunk in opened.chunks:
                count += len(chunk)
                _check_size(source, name, start + count, info, is_end=False)
                file.write(chunk)
                digest.update(chunk)
                meter.advance(len(chunk))
        file.flush()
        os.fsync(handle)
    _check_size(source, name, start + count, info)
    return start, count, digest.hexdigest()


def _check_size(source: Source, name: str, size: int | None, info: FileInfo, *, is_end: bool = True) -> None:
    """Refuse more bytes of a file than the manifest says, and at its end fewer too."""
    if size is None or size == info.size or (not is_end and size < info.size):
        return
    comparison = "fewer" if size < info.size else "more"
    raise KdcError(
        f"the store has {comparison} bytes of a file than the manifest says",
        given=f"{source.shown}/{name}: {size} bytes{'' if is_end else ' and more'}, the manifest says {info.size}",
        remedy=_PULL_AGAIN,
    )
