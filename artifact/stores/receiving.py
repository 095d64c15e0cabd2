"""Receives an artifact in a hidden folder, checks every file, then renames the folder.

A killed pull to `copy` may leave `.copy.partial-*` for the next pull, and `.copy.kdc-replaced`, the old artifact.
"""

import contextlib
import glob
import os
import shutil
from pathlib import Path

from kdc.artifact.folder import load_manifest, parse_manifest
from kdc.artifact.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileInfo, Manifest
from kdc.artifact.stores.sources import Source
from kdc.common.errors import InputError, KdcError
from kdc.common.files import sha256_of
from kdc.common.progress import Meter

_SPARE_BYTES = 16 * 1024 * 1024  # for the file system
_PULL_AGAIN = "pull again; if that fails, push the artifact again from a copy that `kdc inspect` accepts"


def holds(folder: Path, manifest: Manifest, *, force: bool, is_cache: bool = False) -> bool:
    """Whether the artifact is there; False: it may be placed there. `is_cache`: it may replace any folder.

    Raises:
        InputError: something else is there.
    """
    try:
        present = load_manifest(folder)
        if present.sha256 == manifest.sha256:
            return True
        obstacle = f"another artifact is there: {present.task.name}, SHA-256 {present.sha256}"
    except InputError:
        obstacle = "something else is there"
    except KdcError as error:
        obstacle = f"a damaged artifact is there: {error.what}"
    if not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return False
    if folder.is_symlink():
        raise InputError(obstacle, given=f"{folder}, a link", remedy="name a folder, not a link to one")
    if not is_cache and (strangers := _strangers(folder)):
        given = f"{folder}: {', '.join(strangers[:5])}"
        raise InputError(obstacle, given=given, remedy="name another folder, one that is not there yet")
    if not force:
        raise InputError(obstacle, given=folder, remedy="name another folder, or --force to replace it")
    return False


def _strangers(folder: Path) -> list[str]:
    if not folder.is_dir():
        return [folder.name]
    path = folder / MANIFEST_NAME
    try:
        known = {path.name, SIGNATURE_NAME, *parse_manifest(path.read_bytes(), path).files}
    except (OSError, KdcError):
        known = set()
    return sorted(path.name for path in folder.iterdir() if path.name not in known or not path.is_file())


def prepare(folder: Path, manifest: Manifest) -> Path:
    """Make or reuse the hidden folder. Removes other artifacts' hidden folders.

    Raises:
        InputError: the folder is another user's, whose links could lead anywhere.
    """
    partial = folder.parent / f".{folder.name}.partial-{manifest.sha256[:16]}"
    for old in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
        if old != partial and old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(mode=0o700, exist_ok=True)
    if partial.is_symlink() or (hasattr(os, "geteuid") and partial.lstat().st_uid != os.geteuid()):
        raise InputError("another user's folder is in the way", given=partial, remedy="remove it, or pull elsewhere")
    return partial


def receive_files(source: Source, manifest: Manifest, folder: Path, meter: Meter) -> int:
    """Small files first. Returns bytes received."""
    present = sum(path.lstat().st_size for path in folder.iterdir())
    needed, free = manifest.size_bytes - present + _SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        given = f"{folder.parent}: {free} bytes free, {needed} needed"
        remedy = "free some, or pull elsewhere (`kdc serve`: set KDC_CACHE)"
        raise KdcError("the disk has no room for the artifact", given=given, remedy=remedy)
    meter.start(f"pull {source.address}", manifest.size_bytes)
    received = 0
    for name, info in sorted(manifest.files.items(), key=lambda item: (item[1].size, item[0])):
        received += _receive_file(source, name, info, folder / name, meter)
    return received


def _receive_file(source: Source, name: str, info: FileInfo, path: Path, meter: Meter) -> int:
    """Complete a file; fetch it again if its hash is wrong."""
    received = 0
    start: int | None = None
    while start != 0:  # a file received from byte 0 is wrong in the store
        start, count = _receive_rest(source, name, info, path, meter)
        received += count
        digest = sha256_of(path)
        if digest == info.sha256:
            return received
        path.unlink()
        meter.advance(-info.size)
    given = f"{source.address}/{name}: SHA-256 {digest}, the manifest says {info.sha256}"
    raise KdcError("a file of the artifact was changed on the way, or in the store", given=given, remedy=_PULL_AGAIN)


def _receive_rest(source: Source, name: str, info: FileInfo, path: Path, meter: Meter) -> tuple[int, int]:
    """Append missing bytes; return their start and number."""
    # Follow no links: others may write here.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o644), "r+b") as file:
        start, count = os.fstat(file.fileno()).st_size, 0
        if start == info.size:
            meter.advance(start)
            return start, count
        try:
            opened = source.open(source.path_of(name), start if start < info.size else 0)
        except FileNotFoundError as error:
            given, remedy = f"{source.address}/{name}", "push the artifact again: `kdc push` sends what is missing"
            raise KdcError("a file of the artifact is missing", given=given, remedy=remedy) from error
        with contextlib.closing(opened.chunks):
            _check_size(source, name, opened.size, info)
            start = file.seek(opened.start)
            file.truncate()
            meter.advance(start)
            for chunk in opened.chunks:
                count += len(chunk)
                if start + count > info.size:
                    break
                file.write(chunk)
                meter.advance(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    _check_size(source, name, start + count, info)
    return start, count


def _check_size(source: Source, name: str, size: int | None, info: FileInfo) -> None:
    if size is not None and size != info.size:
        what = f"the store has {'fewer' if size < info.size else 'more'} bytes of a file than the manifest says"
        given = f"{source.address}/{name}: {size} bytes, the manifest says {info.size}"
        raise KdcError(what, given=given, remedy=_PULL_AGAIN)


def recover(folder: Path) -> None:
    """After a killed pull, restore the old artifact, or delete it if the new one took its name."""
    old = _replaced(folder)
    if os.path.lexists(folder) or not (old / MANIFEST_NAME).exists():
        _delete(old)
    else:
        os.rename(old, folder)


def publish(partial: Path, folder: Path) -> None:
    """Rename the hidden folder. The old artifact moves aside, and back on failure."""
    partial.chmod(0o755)  # a server may run as another user
    old = _replaced(folder)
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    _delete(old)
    if hasattr(os, "O_DIRECTORY"):  # the rename must survive a power cut
        handle = os.open(folder.parent, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replaced(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.kdc-replaced"


def _delete(folder: Path) -> None:
    """Delete an artifact, manifest first: `recover` restores no folder without one."""
    if not folder.is_symlink():  # perhaps another user's link
        with contextlib.suppress(OSError):
            (folder / MANIFEST_NAME).unlink()
    shutil.rmtree(folder, ignore_errors=True)
